"""What a study's report shows beside its table: the figures, in the order of the page."""

from collections.abc import Collection, Iterator
from difflib import get_close_matches
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, model_validator

from flowopd.config import Config, build
from flowopd.errors import FlowOPDError

Axis = Literal["images", "seconds", "update"]


def _named_once(names: list[str]) -> list[str]:
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"each may be named once, and {', '.join(twice)} is there again")
    return names


Names = Annotated[list[str], Field(min_length=1), AfterValidator(_named_once)]


class Used(NamedTuple):
    """A name that a figure uses, and the key where it stands."""

    key: str
    name: str


class Figure(Config):
    """What every figure has."""

    title: str = ""
    caption: str = ""

    def result_rows(self) -> Iterator[Used]:
        """Rows whose evaluation the figure shows."""
        yield from ()

    def training_rows(self) -> Iterator[Used]:
        """Rows whose training the figure shows."""
        yield from ()

    def metric_names(self) -> Iterator[Used]:
        yield from ()


class Bars(Figure):
    """The metrics of rows with their intervals, one panel a metric."""

    kind: Literal["bars"] = "bars"
    rows: Names
    metrics: Names

    def result_rows(self) -> Iterator[Used]:
        yield from _used("rows", self.rows)

    def metric_names(self) -> Iterator[Used]:
        yield from _used("metrics", self.metrics)


class Goal(Config):
    """A dashed line: a share of what a row has in the evaluation."""

    row: str
    share: float = Field(1.0, gt=0, allow_inf_nan=False)


class Curves(Figure):
    """The probes of rows while they train, one panel a metric."""

    kind: Literal["curves"] = "curves"
    rows: Names
    metrics: Names
    x: Axis = "images"
    goals: dict[str, Goal] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _goals_are_of_metrics(self) -> Self:
        others = sorted(set(self.goals) - set(self.metrics))
        if others:
            raise ValueError(
                f"goals are for the figure's metrics ({', '.join(self.metrics)}), and "
                f"{', '.join(others)} is none of them"
            )
        return self

    def result_rows(self) -> Iterator[Used]:
        for metric, goal in self.goals.items():
            yield Used(f"goals.{metric}.row", goal.row)

    def training_rows(self) -> Iterator[Used]:
        yield from _used("rows", self.rows)

    def metric_names(self) -> Iterator[Used]:
        yield from _used("metrics", self.metrics)


class Points(Figure):
    """Metrics of rows against a number that tells the rows of a series apart."""

    kind: Literal["points"] = "points"
    metrics: Names
    series: dict[str, dict[float, str]] = Field(min_length=1)
    x_label: str = ""

    def result_rows(self) -> Iterator[Used]:
        for name, places in self.series.items():
            for x, row in places.items():
                yield Used(f"series.{name}.{x:g}", row)

    def metric_names(self) -> Iterator[Used]:
        yield from _used("metrics", self.metrics)


class Interference(Figure):
    """Cosines between the tasks' gradients, one panel a pair of tasks."""

    kind: Literal["interference"] = "interference"
    rows: Names

    def training_rows(self) -> Iterator[Used]:
        yield from _used("rows", self.rows)


class Log(Figure):
    """Any keys of the training log, one panel a key."""

    kind: Literal["log"] = "log"
    rows: Names
    keys: Names
    x: Axis = "images"

    def training_rows(self) -> Iterator[Used]:
        yield from _used("rows", self.rows)


KINDS: dict[str, type[Figure]] = {
    "bars": Bars,
    "curves": Curves,
    "points": Points,
    "interference": Interference,
    "log": Log,
}


def _figures(value: Any) -> Any:
    """Every figure as its kind's configuration, so that an error names that kind's keys."""
    if not isinstance(value, list):
        return value
    return [_figure(entry, f"report.figures.{number}") for number, entry in enumerate(value)]


def _figure(entry: Any, key: str) -> Any:
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if isinstance(entry, Figure):
        return entry
    if not isinstance(kind, str) or kind not in KINDS:
        given = "has no kind" if kind is None else f"is of the kind {kind!r}"
        raise FlowOPDError(f"The figure {key!r} {given}; the kinds are: {', '.join(KINDS)}.")
    return build(KINDS[kind], entry, prefix=key)


class ReportConfig(Config):
    """The key ``report`` of a study."""

    title: str = ""
    intro: str = ""
    best_of: Names | None = None
    """The rows of which the best is bold; None: all."""
    figures: Annotated[list[SerializeAsAny[Figure]], BeforeValidator(_figures)] = Field(
        default_factory=list
    )


def check_report(
    config: ReportConfig,
    rows: Collection[str],
    metrics: Collection[str],
    trained: Collection[str] | None = None,
) -> None:
    """Refuse a report on rows or metrics that the study does not have.

    ``metrics`` are all that the evaluation will give, with ``average``. ``trained`` are the stages
    that train, if they are known: only they have curves and logs, evaluated or not.
    """
    for name in config.best_of or ():
        _check(Used("report.best_of", name), rows, "row")
    for number, figure in enumerate(config.figures):
        place = f"report.figures.{number}"
        for used in figure.result_rows():
            _check(_inside(place, used), rows, "row")
        for used in figure.training_rows():
            known, word = (rows, "row") if trained is None else (trained, "training stage")
            _check(_inside(place, used), known, word)
        for used in figure.metric_names():
            _check(_inside(place, used), metrics, "metric")


def _used(key: str, names: list[str]) -> Iterator[Used]:
    return (Used(f"{key}.{number}", name) for number, name in enumerate(names))


def _inside(place: str, used: Used) -> Used:
    return Used(f"{place}.{used.key}", used.name)


def _check(used: Used, known: Collection[str], word: str) -> None:
    if used.name in known:
        return
    close = get_close_matches(used.name, list(known), n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    raise FlowOPDError(
        f"The key {used.key!r} names {used.name!r}, which is no {word} of this study.{hint} "
        f"The {word}s are: {', '.join(known)}."
    )
