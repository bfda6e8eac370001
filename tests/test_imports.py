"""Imports point one way, and the built-in world is a plug-in that nothing else knows of."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import flowopd

ROOT = Path(flowopd.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

# A part imports itself and parts of the lines above its own, without those named as forbidden.
LAYERS = (
    ("errors", "hub"),
    ("config", "devices", "files", "locks", "logs", "versions", "team"),
    ("flow", "tasks", "plugins", "reporting"),
    ("rewards", "policy"),
    ("models", "adapters", "merging", "algorithms"),
    ("evaluation", "sampling", "doctor"),
    ("training",),
    ("study",),
    ("planning",),
    ("commands",),
    ("cli", "world"),
    ("__main__",),
)
FORBIDDEN = {
    "tasks": {"plugins"},
    "rewards": {"flow", "policy"},
    "algorithms": {"models", "adapters"},
    "world": {"training", "study", "cli"},
}
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def part_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path: Path) -> Iterator[str]:
    """The names of ours that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("flowopd"))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            if node.module == "flowopd":
                yield from (f"flowopd.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("flowopd."):
                yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    part = part_of(path)
    if part == "__init__":
        assert not list(imported(path))
        return
    assert part in LEVEL, f"{part} is new: give it a place in LAYERS"
    for name in imported(path):
        other = name.split(".")[1]
        if other in (part, "__version__"):
            continue
        assert other in LEVEL, f"{path} imports {name}, which has no place in LAYERS"
        assert LEVEL[other] < LEVEL[part], f"{path} imports {name}"
        assert other not in FORBIDDEN.get(part, ()), f"{path} imports {name}"


def test_nothing_names_the_world_but_itself() -> None:
    outside = [path for path in MODULES if part_of(path) != "world"]
    assert [path for path in outside if "flowopd.world" in path.read_text(encoding="utf-8")] == []


def test_the_command_line_imports_nothing_heavy() -> None:
    code = "import sys, flowopd.cli; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    heavy = {"torch", "numpy", "scipy", "diffusers", "transformers", "peft", "pydantic", "PIL"}
    heavy |= {"matplotlib", "jinja2", "accelerate"}
    assert heavy.isdisjoint(output)
