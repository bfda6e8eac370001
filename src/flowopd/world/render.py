"""Drawing what a prompt asks for: what the base trains on, and the truth that readers meet."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowopd.tasks.prompts import PromptRecord
from flowopd.world.palette import (
    BACKGROUND,
    CANVAS,
    CELL,
    COLORS,
    GLYPHS,
    INK,
    MASKS,
    RADII,
)

GRID = 4  # objects' boxes lie on the model's patches, so that their outlines are quickly learned
GAP = 2  # pixels of background between two objects


@dataclass(frozen=True)
class Thing:
    """One object of a scene; its box is [x-radius, x+radius) by [y-radius, y+radius)."""

    shape: str
    color: str
    radius: int
    x: int
    y: int


@dataclass(frozen=True)
class Word:
    text: str
    row: int
    column: int


def draw(things: Sequence[Thing] = (), words: Sequence[Word] = ()) -> np.ndarray:
    """Float32 [32, 32, 3] in [0, 1]."""
    image = np.broadcast_to(BACKGROUND, (CANVAS, CANVAS, 3)).copy()
    for thing in things:
        rows = slice(thing.y - thing.radius, thing.y + thing.radius)
        columns = slice(thing.x - thing.radius, thing.x + thing.radius)
        cover = MASKS[thing.shape, thing.radius][:, :, None]
        image[rows, columns] += cover * (COLORS[thing.color] - image[rows, columns])
    for word in words:
        for offset, letter in enumerate(word.text):
            rows = slice(word.row * CELL, (word.row + 1) * CELL)
            left = (word.column + offset) * CELL
            glyph = GLYPHS[letter][:, :, None]
            image[rows, left : left + CELL] += glyph * (INK - image[rows, left : left + CELL])
    return image


def to_uint8(image: np.ndarray) -> np.ndarray:
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8)


def _apart(a: tuple[int, int, int], b: tuple[int, int, int]) -> bool:
    reach = a[2] + b[2] + GAP
    return abs(a[0] - b[0]) >= reach or abs(a[1] - b[1]) >= reach


def _related(subject: tuple[int, int, int], target: tuple[int, int, int], relation: str) -> bool:
    dx, dy = subject[0] - target[0], subject[1] - target[1]
    along = {"left of": -dx, "right of": dx, "above": -dy, "below": dy}[relation]
    across = abs(dy) if relation in ("left of", "right of") else abs(dx)
    return along > 0 and across <= along // 2


def _place(
    count: int, relation: str | None, rng: np.random.Generator
) -> list[tuple[int, int, int]] | None:
    """(x, y, radius) of every object, or None when they do not fit this time."""
    radii = rng.choice(RADII[: 2 if count < 4 else 1], size=count)
    spots: list[tuple[int, int, int]] = []
    for radius in radii.tolist():
        for _ in range(20):
            corner = rng.integers((CANVAS - 2 * radius) // GRID + 1, size=2) * GRID
            x, y = (corner + radius).tolist()
            spot = (x, y, radius)
            fits = all(_apart(spot, other) for other in spots)
            if fits and (relation is None or not spots or _related(spot, spots[0], relation)):
                spots.append(spot)
                break
        else:
            return None
    return spots


def scene(record: PromptRecord, rng: np.random.Generator) -> list[Thing]:
    """Objects that satisfy a compose prompt; what it leaves open is drawn at random."""
    include = record.meta["include"]
    shapes = [i["class"] for i in include for _ in range(i["count"])]
    names = tuple(COLORS)
    shades = [i.get("color") or names[rng.integers(len(names))] for i in include]
    colors = [shade for shade, i in zip(shades, include, strict=True) for _ in range(i["count"])]
    relation = next((i["position"][0] for i in include if "position" in i), None)
    spots = None
    while spots is None:
        spots = _place(len(shapes), relation, rng)
    return [
        Thing(shape, color, radius, x, y)
        for shape, color, (x, y, radius) in zip(shapes, colors, spots, strict=True)
    ]


def render(record: PromptRecord, rng: np.random.Generator) -> np.ndarray:
    """One image, float32 [32, 32, 3] in [0, 1], that shows what the prompt asks for."""
    if "target" in record.meta:
        text = str(record.meta["target"])
        room = CANVAS // CELL
        row, column = rng.integers(room), rng.integers(room - len(text) + 1)
        return draw(words=[Word(text, int(row), int(column))])
    return draw(things=scene(record, rng))
