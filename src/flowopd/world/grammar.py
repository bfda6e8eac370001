"""Prompts of the world and what they ask for, in GenEval's metadata format.

`meta` of a compose prompt is `{"include": [{"class", "count", "color"?, "position"?}], "exclude":
[{"class", "count"}]}`, `meta` of a text prompt `{"target": "HAT"}`. What a prompt leaves open
(size, place, often colour) is the model's to choose: that is where its diversity lives.
"""

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from flowopd.errors import FlowOPDError
from flowopd.tasks.prompts import PromptRecord
from flowopd.world.palette import COLORS, LETTERS, SHAPES

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")
RELATIONS = ("left of", "right of", "above", "below")
NUMBERS = {"two": 2, "three": 3, "four": 4}
WORD_LENGTHS = {1: 0.15, 2: 0.35, 3: 0.50}
HELD_OUT = 0.2  # the share of the many-valued prompts kept for evaluation
MOST_DIFFERENT = 1000

Draw = Callable[[np.random.Generator], PromptRecord]


def _compose(tag: str, prompt: str, include: list[dict[str, Any]]) -> PromptRecord:
    exclude = [{"class": i["class"], "count": i["count"] + 1} for i in include if i["count"] > 1]
    return PromptRecord(
        prompt=prompt, task="compose", tag=tag, meta={"include": include, "exclude": exclude}
    )


def _two(rng: np.random.Generator, names: tuple[str, ...]) -> tuple[str, str]:
    first, second = rng.choice(len(names), size=2, replace=False)
    return names[first], names[second]


def _one(rng: np.random.Generator, names: tuple[str, ...]) -> str:
    return names[rng.integers(len(names))]


def single_object(rng: np.random.Generator) -> PromptRecord:
    shape = _one(rng, SHAPES)
    return _compose("single_object", f"a {shape}", [{"class": shape, "count": 1}])


def two_object(rng: np.random.Generator) -> PromptRecord:
    first, second = _two(rng, SHAPES)
    include = [{"class": first, "count": 1}, {"class": second, "count": 1}]
    return _compose("two_object", f"a {first} and a {second}", include)


def plural(shape: str) -> str:
    return shape + ("es" if shape.endswith("s") else "s")


def counting(rng: np.random.Generator) -> PromptRecord:
    shape, number = _one(rng, SHAPES), _one(rng, tuple(NUMBERS))
    include = [{"class": shape, "count": NUMBERS[number]}]
    return _compose("counting", f"{number} {plural(shape)}", include)


def colors(rng: np.random.Generator) -> PromptRecord:
    shape, color = _one(rng, SHAPES), _one(rng, tuple(COLORS))
    include = [{"class": shape, "count": 1, "color": color}]
    return _compose("colors", f"a {color} {shape}", include)


def position(rng: np.random.Generator) -> PromptRecord:
    """As in GenEval, the first include is the one that the other is placed against."""
    subject, target = _two(rng, SHAPES)
    relation = _one(rng, RELATIONS)
    include = [
        {"class": target, "count": 1},
        {"class": subject, "count": 1, "position": [relation, 0]},
    ]
    return _compose("position", f"a {subject} {relation} a {target}", include)


def color_attr(rng: np.random.Generator) -> PromptRecord:
    first, second = _two(rng, SHAPES)
    color_a, color_b = _two(rng, tuple(COLORS))
    include = [
        {"class": first, "count": 1, "color": color_a},
        {"class": second, "count": 1, "color": color_b},
    ]
    return _compose("color_attr", f"a {color_a} {first} and a {color_b} {second}", include)


def word(rng: np.random.Generator) -> PromptRecord:
    length = rng.choice(list(WORD_LENGTHS), p=list(WORD_LENGTHS.values()))
    target = "".join(LETTERS[i] for i in rng.integers(len(LETTERS), size=length))
    return PromptRecord(
        prompt=f'the word "{target}"', task="text", tag="text", meta={"target": target}
    )


COMPOSE: dict[str, Draw] = {
    "single_object": single_object,
    "two_object": two_object,
    "counting": counting,
    "colors": colors,
    "position": position,
    "color_attr": color_attr,
}


def many_valued(record: PromptRecord) -> bool:
    """Whether prompts of this kind are many: three-letter words and scenes of two colours."""
    return record.tag == "color_attr" or len(record.meta.get("target", "")) == 3


def held_out(record: PromptRecord) -> bool:
    """Whether a prompt is kept for evaluation, by its hash.

    Kinds with few prompts keep none back: of those, only the seeds of an evaluation are new. The
    base has seen all prompts; what is held out is held out from whatever is trained on top of it.
    """
    digest = hashlib.sha256(record.prompt.encode()).digest()
    return many_valued(record) and digest[0] < 256 * HELD_OUT


def evaluation_prompts(task: str, count: int, seed: int) -> list[PromptRecord]:
    """`count` fixed prompts of one task, its tags in equal parts, held-out ones where there are."""
    rng = np.random.default_rng([seed, count])
    draws = list(COMPOSE.values()) if task == "compose" else [word]
    records: list[PromptRecord] = []
    while len(records) < count:
        record = draws[len(records) % len(draws)](rng)
        if held_out(record) or not many_valued(record):
            records.append(record)
    return records


def diversity_prompts(count: int, seed: int) -> list[PromptRecord]:
    """`count` different prompts of both tasks, to be drawn with several seeds each."""
    if count > MOST_DIFFERENT:
        raise FlowOPDError(
            f"{count} different prompts were asked for; the world has not many more than "
            f"{MOST_DIFFERENT}."
        )
    rng = np.random.default_rng([seed, count, 1])
    chosen: dict[str, PromptRecord] = {}
    for draw in itertools.cycle([*COMPOSE.values(), word, word]):
        if len(chosen) == count:
            break
        record = draw(rng)
        chosen[record.prompt] = replace(record, task="diversity")
    return list(chosen.values())


def training_prompt(task: str, rng: np.random.Generator) -> PromptRecord:
    """One prompt of a task that evaluation does not hold out."""
    while True:
        draw = COMPOSE[TAGS[rng.integers(len(TAGS))]] if task == "compose" else word
        record = draw(rng)
        if not held_out(record):
            return record
