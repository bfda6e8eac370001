"""What a report says in words: the summary, what is missing, how numbers were made."""

from collections.abc import Sequence
from datetime import UTC, datetime

from flowopd.reporting.run_files import as_mapping, as_number
from flowopd.reporting.run_folder import AVERAGE, NOT_BEGUN, RESULTS, Run
from flowopd.reporting.tables import is_detail

SHORT = 12  # digits of a hash in running text
PACKAGES = ("flowopd", "torch", "python")
SAMPLING = ("steps", "sampler", "guidance", "seed")


def summary(run: Run) -> str:
    """One paragraph: what was compared, on what, by whom and when."""
    done = sum(row in run.entries for row in run.rows)
    known = "evaluated" if done == len(run.rows) else f"of which {done} are evaluated"
    sentences = [f"The study {run.name} has {len(run.rows)} rows, {known}{_protocol(run)}."]
    counts = _image_counts(run)
    if counts:
        sentences.append(f"Images of each row and seed: {counts}.")
    first = next((found for row in run.rows if (found := run.evaluation(row))), {})
    model = as_mapping(first.get("model"))
    if model:
        device = f", evaluated on {first['device']}" if first.get("device") else ""
        digest = f" ({str(model['sha256'])[:SHORT]})" if model.get("sha256") else ""
        sentences.append(f"Model: {model.get('name', '')}{digest}{device}.")
    results = run.folder / RESULTS
    if results.is_file():
        when = datetime.fromtimestamp(results.stat().st_mtime, UTC)
        found = as_mapping(first.get("versions"))
        names = [f"{name} {found[name]}" for name in PACKAGES if name in found]
        sentences.append(f"Results of {when:%Y-%m-%d %H:%M} UTC{_with(names)}.")
    return " ".join(sentences)


def _protocol(run: Run) -> str:
    protocol = as_mapping(run.results.get("protocol"))
    if not protocol:
        return ""
    settings = [f"{key} {protocol[key]}" for key in SAMPLING if protocol.get(key) is not None]
    digest = [str(protocol["hash"])[:SHORT]] if protocol.get("hash") else []
    inside = ", ".join([*settings, *digest])
    return f" under the protocol {protocol.get('name', '')}" + (f" ({inside})" if inside else "")


def _with(names: Sequence[str]) -> str:
    return f", by {', '.join(names)}" if names else ""


def _image_counts(run: Run) -> str:
    """``512 for compose and text, 1,024 for quality``; a range where rows differ."""
    sizes: dict[str, list[int]] = {}
    for row in run.entries.values():
        seeds = max(1, len(row.get("seeds") or ()))
        for name, metric in row["metrics"].items():
            size = as_number(as_mapping(metric).get("n"))
            if size and name != AVERAGE and not is_detail(name):
                sizes.setdefault(name, []).append(round(size / seeds))
    names: dict[str, list[str]] = {}
    for name, found in sizes.items():
        least, most = min(found), max(found)
        count = f"{least:,}" if least == most else f"{least:,} to {most:,}"
        names.setdefault(count, []).append(name)
    return "; ".join(f"{count} for {', '.join(found)}" for count, found in names.items())


def unfinished(run: Run) -> list[str]:
    """Sentences on the stages that are not done."""
    states = {name: stage.state for name, stage in run.stages.items() if stage.state}
    if not states:
        return []
    absent = [name for name, state in states.items() if state == NOT_BEGUN]
    if len(absent) == len(run.stages):
        return [f"None of the {len(absent)} stages has begun."]
    under_way = [f"{name} ({state})" for name, state in states.items() if name not in absent]
    sentences = [f"{len(states)} of {len(run.stages)} stages are not done."]
    if under_way:
        sentences.append(f"Under way: {', '.join(under_way)}.")
    if absent:
        sentences.append(f"Not begun: {', '.join(absent)}.")
    return sentences


def warnings(run: Run) -> list[str]:
    """What the evaluation warned of, row by row."""
    found = {row: run.evaluation(row).get("warnings") or () for row in run.rows}
    return [f"{row}: {text}" for row, texts in found.items() for text in texts]


def methods(run: Run) -> list[str]:
    """How the numbers were made, a paragraph each."""
    paragraphs = [
        "Intervals are 95% intervals. What is drawn at random is the prompt: all images of one "
        "prompt, those of several seeds of a row among them, are one cluster (cluster-robust "
        "variance). Metrics that are right or wrong have Wilson's interval at their effective "
        "number of images, others Student's, cut at the metric's bounds. A mean over parts "
        "combines their intervals by square-and-add (MOVER), which keeps their asymmetry.",
        "An interval speaks of the prompts and of the noise that the images began with. How much "
        "another training would differ is not in it; where a row has several seeds, their means "
        "show that.",
        "Bold goes by the digits that are printed: rows that share them share the place.",
        "Curves over training and detectors are of probes, a few prompts and seeds that stay the "
        "same while a stage trains; the table is of the evaluation's prompts.",
    ]
    if run.divisors:
        terms = [
            name if divisor == 1 else f"{name} / {divisor:g}"
            for name, divisor in run.divisors.items()
        ]
        average = f"The average is the mean of {', '.join(terms)}. "
        why = "Its interval is of the prompts' influence on the whole of it, for a prompt counts "
        paragraphs.insert(1, average + why + "for several metrics at once.")
    return paragraphs
