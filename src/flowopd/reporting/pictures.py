"""Pictures inside the page: as data URIs, small ones with hard pixels, large ones made smaller."""

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from flowopd.reporting.run_files import as_number
from flowopd.reporting.run_folder import Picture, Run, Stage

SMALL = 128  # pixels of the longer side up to which pixels are shown as squares
QUALITY = 80  # of a WebP that stands for a larger picture
MIMES = {"PNG": "image/png", "JPEG": "image/jpeg", "WEBP": "image/webp"}


class Most(NamedTuple):
    """How large a picture may be: pixels of the longer side, bytes of its file."""

    side: int
    size: int


PICTURE = Most(256, 64 * 1024)
SHEET = Most(960, 64 * 1024)


class Shown(NamedTuple):
    uri: str
    width: int
    height: int
    hard: bool
    """Enlarged pixels stay squares."""


class Column(NamedTuple):
    prompt: str
    seed: int


class Prompt(NamedTuple):
    text: str
    seeds: Sequence[int]


class PanelRow(NamedTuple):
    name: str
    groups: Sequence[Sequence[Shown | None]]
    """For every prompt, the pictures of its seeds; None: it is not there."""


class PanelGrid(NamedTuple):
    """One line a row of the table, one column a prompt and seed."""

    prompts: Sequence[Prompt]
    rows: Sequence[PanelRow]

    @property
    def columns(self) -> int:
        return sum(len(prompt.seeds) for prompt in self.prompts)


class Sheet(NamedTuple):
    update: str
    picture: Shown


def panel_grid(run: Run) -> PanelGrid:
    """The same prompts and seeds across the rows that have pictures."""
    panels = {row: run.panel(row) for row in run.rows}
    columns = dict.fromkeys(_column(picture) for panel in panels.values() for picture in panel)
    texts = dict.fromkeys(column.prompt for column in columns)
    prompts = [
        Prompt(text, [column.seed for column in columns if column.prompt == text]) for text in texts
    ]
    rows = [PanelRow(row, _groups(run, panel, prompts)) for row, panel in panels.items() if panel]
    return PanelGrid(prompts, rows)


def training_sheets(run: Run, stage: Stage) -> list[Sheet]:
    """The first, the middle and the last of a stage's picture panels."""
    paths = sorted((stage.folder / "panels").glob("[!.]*.png"))
    if not paths:
        return []
    chosen = dict.fromkeys([paths[0], paths[(len(paths) - 1) // 2], paths[-1]])
    pairs = [(path, shown(run, path, SHEET)) for path in chosen]
    return [
        Sheet(path.stem.lstrip("0") or "0", picture)
        for path, picture in pairs
        if picture is not None
    ]


def shown(run: Run, path: Path, most: Most) -> Shown | None:
    """The picture as it is, or smaller; None, and a sentence, when it is none."""
    try:
        with Image.open(path) as image:
            image.load()
            kind = image.format or ""
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        run.files.say(path, "is no picture that can be opened and is left out")
        return None
    side = max(image.size)
    content = path.read_bytes()
    if kind in MIMES and (side <= SMALL or (side <= most.side and len(content) <= most.size)):
        return Shown(_uri(content, MIMES[kind]), *image.size, side <= SMALL)
    smaller = image.convert("RGB")
    smaller.thumbnail((most.side, most.side), Image.Resampling.LANCZOS)
    output = io.BytesIO()
    smaller.save(output, "WEBP", quality=QUALITY)
    return Shown(_uri(output.getvalue(), MIMES["WEBP"]), *smaller.size, side <= SMALL)


def _groups(
    run: Run, panel: Sequence[Picture], prompts: Sequence[Prompt]
) -> list[list[Shown | None]]:
    paths = {_column(picture): picture.path for picture in panel}
    found = {column: shown(run, path, PICTURE) for column, path in paths.items() if path}
    return [[found.get(Column(text, seed)) for seed in seeds] for text, seeds in prompts]


def _column(picture: Picture) -> Column:
    return Column(picture.prompt, int(as_number(picture.seed) or 0))


def _uri(content: bytes, mime: str) -> str:
    return f"data:{mime};base64,{base64.b64encode(content).decode('ascii')}"
