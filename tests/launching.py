"""Starting several processes of a test or of the command line, and waiting for them."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PATIENCE = 120.0  # seconds


@dataclass(frozen=True)
class Ended:
    """How a launched run ended."""

    code: int
    output: str


def torchrun(count: int, *command: str) -> list[str]:
    """`command` in `count` processes; it is a script, or -m and a module, and their arguments."""
    local = ("--standalone", "--local-addr", "127.0.0.1")
    return [sys.executable, "-m", "torch.distributed.run", *local, *_count(count), *command]


def accelerate(count: int, *command: str) -> list[str]:
    """The same by accelerate's launcher, at a port that is free."""
    launch = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(count))
    fixed = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no")
    return [sys.executable, *launch, *fixed, "--main_process_port", "0", *command]


def start(
    command: Sequence[str], log: Path, changes: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """On the CPU, with one thread a process, and what they write in a file."""
    own = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", **(changes or {})}
    with log.open("wb") as file:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={**os.environ, **own},
        )


def wait(process: "subprocess.Popen[bytes]", log: Path) -> Ended:
    """Until all processes have ended; that they do is part of every test."""
    try:
        code = process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"still running after {PATIENCE} s:\n{log.read_text()}") from None
    return Ended(code, log.read_text(encoding="utf-8", errors="replace"))


def launch(command: Sequence[str], log: Path, changes: Mapping[str, str] | None = None) -> Ended:
    return wait(start(command, log, changes), log)


def with_fakes(folder: Path) -> dict[str, str]:
    """What makes tests/fakes.py a plug-in of the command line: a package's description."""
    from fakes import POINTS

    described = folder / "fakes-0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: fakes\nVersion: 0\n")
    groups = [
        "\n".join([f"[flowopd.{group}]", *(f"{name} = {where}" for name, where in points.items())])
        for group, points in POINTS.items()
    ]
    (described / "entry_points.txt").write_text("\n\n".join(groups) + "\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(Path(__file__).parent)])}


def _count(count: int) -> tuple[str, str]:
    return "--nproc-per-node", str(count)
