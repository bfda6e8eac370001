"""The recipes of SD3.5-Medium in a folder of their own, with what they need in miniature."""

import json
import shutil
from pathlib import Path

from hub_cache import HubCache
from published import config_of, publish

RECIPES = Path(__file__).parents[2] / "recipes" / "sd35m"
TEACHERS = {
    "geneval": "jieliu/SD3.5M-FlowGRPO-GenEval",
    "ocr": "jieliu/SD3.5M-FlowGRPO-Text",
    "pickscore": "jieliu/SD3.5M-FlowGRPO-PickScore",
}
GENEVAL = [
    {"tag": "counting", "include": [{"class": "clock", "count": 3}], "prompt": "three clocks"},
    {"tag": "colors", "include": [{"class": "cup", "count": 1}], "prompt": "a red cup"},
    {"tag": "position", "include": [{"class": "fox", "count": 1}], "prompt": "a fox above a dog"},
    {"tag": "two_object", "include": [{"class": "dog", "count": 1}], "prompt": "a dog and a fox"},
]
OCR = ['a sign that says "hello"', 'the word "blue" on a square', 'a "red" circle', 'a "dog"']
PICKSCORE = ["a quick brown fox", "a lazy dog", "stars above a sign", "a photo"]


def copy_recipes(folder: Path) -> Path:
    """The recipes as they are, without prompts."""
    folder.mkdir()
    for path in RECIPES.glob("*.yaml"):
        shutil.copy(path, folder / path.name)
    return folder


def write_prompts(folder: Path) -> None:
    """A few prompts in the place and the formats of each set."""
    for part in (folder / "prompts", folder / "prompts" / "test"):
        part.mkdir()
        lines = [json.dumps({**record, "exclude": []}) for record in GENEVAL]
        (part / "geneval.jsonl").write_text("\n".join(lines) + "\n")
        (part / "ocr.txt").write_text("\n".join(OCR) + "\n")
        (part / "pickscore.txt").write_text("\n".join(PICKSCORE) + "\n")
    (folder / "prompts" / "test" / "drawbench.txt").write_text("\n".join(PICKSCORE) + "\n")


def shrink(folder: Path) -> None:
    """Pictures of 64 pixels, in every recipe."""
    for path in folder.glob("*.yaml"):
        text = path.read_text()
        path.write_text(
            text.replace("height: 512", "height: 64").replace("width: 512", "width: 64")
        )


def publish_teachers(hub: HubCache, folder: Path) -> None:
    """Three random adapters on the hub, in the published format."""
    for seed, name in enumerate(TEACHERS.values(), 1):
        hub.put(name, publish(folder / name, config_of("0.10"), seed=seed))
