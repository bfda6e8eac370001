"""What the world is made of: its canvas, its colours, its shapes and its letters."""

import numpy as np

CANVAS = 32
CELL = 8  # a letter's cell: two patches of the model on a side, so that strokes meet the patch grid

BACKGROUND = np.array([1.0, 1.0, 1.0], dtype=np.float32)
INK = np.array([0.05, 0.05, 0.05], dtype=np.float32)
COLORS: dict[str, np.ndarray] = {
    "red": np.array([0.86, 0.12, 0.12], dtype=np.float32),
    "green": np.array([0.10, 0.62, 0.20], dtype=np.float32),
    "blue": np.array([0.13, 0.25, 0.86], dtype=np.float32),
    "yellow": np.array([0.96, 0.80, 0.10], dtype=np.float32),
}
SHAPES = ("circle", "square", "triangle", "cross")
RADII = (4, 6)  # half the side of an object's box, in pixels: two or three patches a side

# 5 by 7 pixels; twelve letters that stay apart from each other at this size.
_FONT = {
    "A": ".###. #...# #...# ##### #...# #...# #...#",
    "C": ".#### #.... #.... #.... #.... #.... .####",
    "E": "##### #.... #.... ####. #.... #.... #####",
    "F": "##### #.... #.... ####. #.... #.... #....",
    "H": "#...# #...# #...# ##### #...# #...# #...#",
    "K": "#...# #..#. #.#.. ##... #.#.. #..#. #...#",
    "L": "#.... #.... #.... #.... #.... #.... #####",
    "N": "#...# ##..# ##..# #.#.# #..## #..## #...#",
    "O": ".###. #...# #...# #...# #...# #...# .###.",
    "T": "##### ..#.. ..#.. ..#.. ..#.. ..#.. ..#..",
    "U": "#...# #...# #...# #...# #...# #...# .###.",
    "X": "#...# #...# .#.#. ..#.. .#.#. #...# #...#",
}
LETTERS = "".join(_FONT)


def _bitmap(rows: str) -> np.ndarray:
    cell = np.zeros((CELL, CELL), dtype=np.float32)
    cell[:7, 1:6] = [[pixel == "#" for pixel in row] for row in rows.split()]
    return cell


GLYPHS: dict[str, np.ndarray] = {letter: _bitmap(rows) for letter, rows in _FONT.items()}


def _inside(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points of the box [-1, 1]^2 (y down) belong to the shape."""
    if shape == "circle":
        return x**2 + y**2 <= 1
    if shape == "square":
        return np.ones_like(x, dtype=bool)
    if shape == "triangle":
        return np.abs(x) <= (y + 1) / 2
    return (np.abs(x) <= 0.36) | (np.abs(y) <= 0.36)


def coverage(shape: str, height: int, width: int, samples: int = 8) -> np.ndarray:
    """The share of each pixel of a box that the shape covers."""
    y = (np.arange(height * samples) + 0.5) / (height * samples) * 2 - 1
    x = (np.arange(width * samples) + 0.5) / (width * samples) * 2 - 1
    fine = _inside(shape, *np.meshgrid(x, y)).reshape(height, samples, width, samples)
    return fine.mean(axis=(1, 3)).astype(np.float32)


MASKS: dict[tuple[str, int], np.ndarray] = {
    (shape, radius): coverage(shape, 2 * radius, 2 * radius)
    for shape in SHAPES
    for radius in range(min(RADII), CANVAS // 2 + 1)
}
