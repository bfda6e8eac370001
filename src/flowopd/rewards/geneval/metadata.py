"""GenEval's metadata, the ``tag``, ``include`` and ``exclude`` of a prompt, checked on loading."""

from difflib import get_close_matches

from flowopd.errors import FlowOPDError
from flowopd.rewards.composition import check_requirement
from flowopd.rewards.geneval.names import COLORS, NAMES, TAGS, geneval_name
from flowopd.tasks.prompts import PromptRecord


def check_metadata(record: PromptRecord) -> None:
    """Refuse a record that is not in GenEval's format, or asks for what it cannot see."""
    if not record.tag:
        raise FlowOPDError(f"it has no 'tag', which should be one of {', '.join(TAGS)}.")
    if record.tag not in TAGS:
        raise FlowOPDError(f"its tag is {record.tag!r}; it should be one of {', '.join(TAGS)}.")
    check_requirement(record.meta)
    for entry in (*record.meta["include"], *record.meta.get("exclude", ())):
        if entry["class"] not in NAMES:
            raise FlowOPDError(f"GenEval knows no class {entry['class']!r}.{_hint(entry['class'])}")
        if entry.get("color", COLORS[0]) not in COLORS:
            raise FlowOPDError(
                f"the color of {entry['class']!r} is {entry['color']!r}; it should be one of "
                f"{', '.join(COLORS)}."
            )


def _hint(name: str) -> str:
    meant = geneval_name(name) or next(iter(get_close_matches(name, NAMES, n=1, cutoff=0.5)), None)
    return f" Did you mean {meant!r}?" if meant else " It knows the 80 classes of COCO."
