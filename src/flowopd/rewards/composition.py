"""GenEval's decisions, as pure functions of what was found in an image.

A requirement is GenEval metadata: `{"include": [{"class", "count", "color"?, "position"?:
[relation, index of an earlier include]}], "exclude": [{"class", "count"}]}`. What is found comes
sorted by confidence, the surest of each class first.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flowopd.errors import FlowOPDError

RELATIONS = ("left of", "right of", "above", "below")
MARGIN = 0.1  # the share of two boxes' sizes by which their centres may differ for free


@dataclass(frozen=True)
class Box:
    left: float
    top: float
    right: float
    bottom: float

    @property
    def center(self) -> tuple[float, float]:
        return (self.left + self.right) / 2, (self.top + self.bottom) / 2

    @property
    def size(self) -> tuple[float, float]:
        return self.right - self.left, self.bottom - self.top


@dataclass(frozen=True)
class Found:
    """An object that was found."""

    name: str
    box: Box
    color: str | None = None


@dataclass(frozen=True)
class Verdict:
    """`correct`: GenEval's own rule. `strict`: correct, and no class more often than asked.

    `soft`: the partial credit that training sees, in [0, 1].
    """

    correct: bool
    strict: bool
    soft: float
    reasons: tuple[str, ...]


def check_requirement(requirement: Mapping[str, Any]) -> None:
    """Refuse what is not in GenEval's format."""
    include, exclude = requirement.get("include"), requirement.get("exclude", [])
    if not isinstance(include, list) or not include:
        raise FlowOPDError("it has no 'include', the list of what should be there.")
    if not isinstance(exclude, list):
        raise FlowOPDError(f"its 'exclude' is {exclude!r}; it should be a list.")
    for entry in include:
        _check_entry(entry, {"class", "count", "color", "position"})
    for entry in exclude:
        _check_entry(entry, {"class", "count"})
    for number, entry in enumerate(include):
        if "position" in entry:
            _check_position(entry, number)


def _check_entry(entry: Any, known: set[str]) -> None:
    if not isinstance(entry, dict) or not {"class", "count"} <= entry.keys():
        raise FlowOPDError(f"{entry!r} should name a 'class' and a 'count'.")
    name, count = entry["class"], entry["count"]
    for key in ("class", "color"):
        if key in entry and (not isinstance(entry[key], str) or not entry[key]):
            raise FlowOPDError(f"the {key} in {entry!r} should be a text.")
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise FlowOPDError(f"the count of {name!r} is {count!r}; it should be 1 or more.")
    unknown = sorted(set(entry) - known)
    if unknown:
        listed = ", ".join(sorted(known))
        raise FlowOPDError(f"{entry!r} has the key {unknown[0]!r}; the keys there are {listed}.")


def _check_position(entry: Mapping[str, Any], number: int) -> None:
    position, name = entry["position"], entry["class"]
    if not isinstance(position, list | tuple) or len(position) != 2:
        raise FlowOPDError(
            f"the position of {name!r} is {position!r}; it should be a relation and the index of "
            'an earlier include, as ["left of", 0].'
        )
    relation, index = position
    if relation not in RELATIONS:
        raise FlowOPDError(
            f"the relation of {name!r} is {relation!r}; it should be one of {', '.join(RELATIONS)}."
        )
    if isinstance(index, bool) or not isinstance(index, int) or not 0 <= index < number:
        raise FlowOPDError(
            f"the position of {name!r} is relative to include {index!r}; it should name an "
            f"earlier include, and {name!r} is number {number}, counted from 0."
        )


def judge(found: Sequence[Found], requirement: Mapping[str, Any]) -> Verdict:
    """Whether what was found is what was asked for, by all three rules."""
    include = requirement["include"]
    by_class: dict[str, list[Found]] = {}
    for thing in found:
        by_class.setdefault(thing.name, []).append(thing)
    reasons = _why_not(by_class, include, requirement.get("exclude", ()))
    exact = all(len(by_class.get(i["class"], ())) == i["count"] for i in include)
    return Verdict(
        correct=not reasons,
        strict=not reasons and exact,
        soft=_soft(by_class, include),
        reasons=tuple(reasons),
    )


def relations(a: Box, b: Box) -> set[str]:
    """Where `a` is as seen from `b`; empty when they are in the same place."""
    raw = (a.center[0] - b.center[0], a.center[1] - b.center[1])
    free = (MARGIN * (a.size[0] + b.size[0]), MARGIN * (a.size[1] + b.size[1]))
    reduced = [max(abs(r) - f, 0.0) * (1 if r > 0 else -1) for r, f in zip(raw, free, strict=True)]
    if not any(reduced):
        return set()
    norm = (raw[0] ** 2 + raw[1] ** 2) ** 0.5
    x, y = (component / norm for component in reduced)
    names = {"left of": x < -0.5, "right of": x > 0.5, "above": y < -0.5, "below": y > 0.5}
    return {name for name, holds in names.items() if holds}


Classes = Mapping[str, Sequence[Found]]


def _group(by_class: Classes, include: Mapping[str, Any]) -> Sequence[Found]:
    """The objects that an include is about: the surest `count` of its class."""
    return by_class.get(include["class"], ())[: include["count"]]


def _of_color(group: Sequence[Found], color: str) -> int:
    return sum(thing.color == color for thing in group)


def _placed(group: Sequence[Found], target: Sequence[Found], relation: str) -> bool:
    """Whether every object of the group stands so to every object of the target."""
    return all(relation in relations(a.box, b.box) for a in group for b in target)


def _why_not(
    by_class: Classes, include: Sequence[Mapping[str, Any]], exclude: Sequence[Mapping[str, Any]]
) -> list[str]:
    """What GenEval's own rule finds wrong; nothing when the image is correct."""
    reasons: list[str] = []
    matched: list[Sequence[Found] | None] = []
    for wanted in include:
        group, count, name = _group(by_class, wanted), wanted["count"], wanted["class"]
        reason = None
        if len(group) < count:
            reason = f"expected {name} at least {count} times, found {len(group)}"
        elif "color" in wanted and _of_color(group, wanted["color"]) < count:
            color = wanted["color"]
            reason = f"expected {count} {color} {name}, found {_of_color(group, color)}"
        elif "position" in wanted:
            relation, index = wanted["position"]
            target = matched[index]
            if target is None:
                reason = f"nothing for {name} to be {relation}"
            elif not _placed(group, target, relation):
                reason = f"expected {name} {relation} {include[index]['class']}"
        matched.append(None if reason else group)
        reasons += [reason] if reason else []
    for banned in exclude:
        seen = len(by_class.get(banned["class"], ()))
        if seen >= banned["count"]:
            reasons.append(
                f"expected {banned['class']} fewer than {banned['count']} times, found {seen}"
            )
    return reasons


def _soft(by_class: Classes, include: Sequence[Mapping[str, Any]]) -> float:
    """The mean of the partial credits of every include.

    A colour or a place counts only when the number is right, a place only when the colour is, and
    a place against an include that is not itself fulfilled is wrong.
    """
    parts: list[float] = []
    matched: list[Sequence[Found] | None] = []
    for wanted in include:
        found, count = by_class.get(wanted["class"], ()), wanted["count"]
        parts.append(max(0.0, 1 - abs(count - len(found)) / count))
        holds = len(found) == count
        if not holds and ("color" in wanted or "position" in wanted):
            parts.append(0.0)
        if holds and "color" in wanted:
            painted = _of_color(found, wanted["color"])
            parts.append(1 - (count - painted) / count)
            holds = painted == count
        if holds and "position" in wanted:
            relation, index = wanted["position"]
            target = matched[index]
            holds = target is not None and _placed(found, target, relation)
            parts.append(float(holds))
        matched.append(found if holds else None)
    return sum(parts) / len(parts)
