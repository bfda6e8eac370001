"""Tables on standard output: as wide as the terminal, or as they need where there is none."""

import sys

from rich.console import Console, RenderableType

WIDTH_OFF_TERMINAL = 240


def show(renderable: RenderableType) -> None:
    Console(width=None if sys.stdout.isatty() else WIDTH_OFF_TERMINAL).print(renderable)
