"""For schemathesis: what a text of the format base64-image is. Loaded by it, not by a test."""

import base64
import io

import schemathesis
from hypothesis import strategies
from PIL import Image

sizes = strategies.integers(1, 20)
colours = strategies.tuples(*[strategies.integers(0, 255)] * 3)


def png(width: int, height: int, colour: tuple[int, int, int]) -> str:
    file = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


schemathesis.openapi.format("base64-image", strategies.builds(png, sizes, sizes, colours))
