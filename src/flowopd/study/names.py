"""What stages are called."""

from collections.abc import Sequence
from difflib import get_close_matches

BASE = "base"
EVAL = "eval"
ADAPTER = "adapter"
"""The folder of a stage's adapter, within the stage's own."""


def seed_names(stage: str, seeds: Sequence[int]) -> list[str]:
    """The first seed's stage has the plain name, the others end in ``.s`` and their seed."""
    return [stage, *(f"{stage}.s{seed}" for seed in seeds[1:])]


def evaluation_of(stage: str) -> str:
    """The stage that evaluates a stage."""
    return f"{EVAL}.{stage}"


def unknown(name: str, known: Sequence[str], what: str) -> str:
    """The end of a sentence on a name that is not known: what may be meant, and what there is."""
    close = get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} The {what}: {', '.join(known) or 'none'}."
