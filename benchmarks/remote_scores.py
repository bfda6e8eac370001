"""Pictures through two servers of `jpeg`: how fast, how much memory, and whether a score differs.

python benchmarks/remote_scores.py [COUNT] [SIZE] [CALL] [FORMAT]
"""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray

from flowopd import plugins
from flowopd.tasks.prompts import PromptRecord

SERVERS, CELL = 2, 8
SCORED = "flowopd_reward_images_total "
COMPARED = 10
"""Every so many calls, the pictures are scored here, too, and memory is looked at."""


@contextlib.contextmanager
def served() -> Iterator[tuple[list[str], list[int]]]:
    """Addresses of the servers, and their processes."""
    command = [sys.executable, "-m", "flowopd", "reward", "serve", "jpeg", "--port", "0"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(SERVERS)
    ]
    try:
        lines = [one.stdout.readline() if one.stdout else "" for one in processes]
        yield [line.split()[-1] for line in lines], [one.pid for one in processes]
    finally:
        for one in processes:
            one.kill()
            one.communicate()


def pictures(count: int, size: int) -> NDArray[np.uint8]:
    """Cells of colour with some noise, so that no two are alike and none is the worst for jpeg."""
    rng = np.random.default_rng(0)
    cells = rng.integers(0, 128, (count, size // CELL, size // CELL, 3), dtype=np.uint8)
    large = cells.repeat(CELL, axis=1).repeat(CELL, axis=2)
    return large + rng.integers(0, 64, large.shape, dtype=np.uint8)


def mebibytes(process: int) -> int:
    """What a process holds."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // 2**20


def scored(url: str) -> int:
    """How many pictures a server has scored."""
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return int(float(next(line.split()[1] for line in lines if line.startswith(SCORED))))


def main(count: int = 10_000, size: int = 512, call: int = 100, form: str = "png") -> None:
    base, records = pictures(call, size), [PromptRecord(f"prompt {i}") for i in range(call)]
    local = plugins.load_scorer("jpeg")
    with served() as (urls, processes):
        spec = {"name": "remote", "scorer": "jpeg", "urls": urls, "format": form}
        with contextlib.closing(plugins.load_scorer(spec)) as remote:
            remote.load()
            began, different = time.perf_counter(), 0
            for number in range(count // call):
                images = np.roll(base, number, axis=1)
                found = remote.score(images, records)
                if number % COMPARED == 0:
                    here = local.score(images, records)
                    different += sum(a.values != b.values for a, b in zip(found, here, strict=True))
                    held = [mebibytes(process) for process in processes]
                    print(f"call {number}: MiB here {mebibytes(os.getpid())}, servers {held}")
            seconds = time.perf_counter() - began
        shares = [scored(url) for url in urls]
    done = count // call * call
    print(f"{done} pictures of {size} x {size} as {form} in calls of {call}: {seconds:.0f} s")
    print(f"{done / seconds:.0f} a second, {different} other scores; of each server: {shares}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]), *sys.argv[4:5])
