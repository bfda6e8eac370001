"""The scorers that a recipe names: a study, with its protocol, or a protocol alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict

from flowopd.config import Config, build, load_config, parse_override, read_yaml
from flowopd.errors import FlowOPDError
from flowopd.rewards.settings import ScorerSpec, by_name
from flowopd.study.config import load_study

PLACES = (("scorers",), ("train", "scorers"), ("train", "probe", "scorers"))


class _Naming(Config):
    """A file that names scorers, whatever else it says."""

    model_config = ConfigDict(extra="ignore")
    shorthands = {"scorers.*": by_name}  # noqa: RUF012

    scorers: list[ScorerSpec]


def scorers_of(path: Path, overrides: Sequence[str] = ()) -> list[ScorerSpec]:
    """Each once, in the order in which the file has them."""
    data = read_yaml(path)
    if "stages" in data:
        found = _of_study(path, overrides)
    elif "scorers" in data:
        _refuse_others(path, overrides)
        found = load_config(_Naming, path, overrides).scorers
    else:
        raise FlowOPDError(f"{path} is neither a study (stages) nor a protocol (scorers).")
    if not found:
        raise FlowOPDError(f"{path} names no scorer.")
    return list({spec.model_dump_json(): spec for spec in found}.values())


def _refuse_others(path: Path, overrides: Sequence[str]) -> None:
    for text in overrides:
        if parse_override(text).keys[0] != "scorers":
            raise FlowOPDError(
                f"{text!r} changes no scorer of {path}; write scorers.0.device=cpu, say, for the "
                "first of them."
            )


def _of_study(path: Path, overrides: Sequence[str]) -> list[ScorerSpec]:
    study = load_study(path, overrides)
    data = study.config.model_dump()
    lists = [_at(holder, place) for holder in (data, *data["stages"].values()) for place in PLACES]
    written = {"scorers": [one for some in lists for one in some]}
    found = build(_Naming, written, context={"folder": study.folder}).scorers
    if study.config.evaluation is not None:
        found += load_config(_Naming, study.config.evaluation.protocol).scorers
    return found


def _at(data: Any, place: Sequence[str]) -> list[Any]:
    for key in place:
        data = data.get(key) if isinstance(data, dict) else None
    return data if isinstance(data, list) else []
