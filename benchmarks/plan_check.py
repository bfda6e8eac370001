"""What `flowopd plan` says an update takes of memory, against what a device is found to hold.

    python benchmarks/plan_check.py --size sd35m --device cuda    # true size, on a GPU
    python benchmarks/plan_check.py                               # a CPU, a small network

Random weights; nothing is fetched. On a GPU torch's allocator is asked. A CPU has none that tells,
so that there the tensors of a real update are counted: that tests the rehearsal on shapes, and not
what a GPU's operators use within themselves, which the plan makes an allowance for.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from diffusers.utils import logging as diffusers_logging
from torch import nn

from flowopd.planning import held
from flowopd.planning.attention import fused_attention
from flowopd.planning.experts import Experts
from flowopd.planning.memory import LiveMemory
from flowopd.planning.needs import PhaseNeed
from flowopd.planning.prompt_files import Assumed
from flowopd.planning.rehearsal import Rehearsal
from flowopd.tasks.prompt_set import read_set
from flowopd.training.config import TrainConfig
from opd_setup import Material, Options, recipe, write_material
from opd_sides import Ours, load
from random_sd3 import RandomSD3, RandomSD3Config, SizeName

GIB = 2**30
FEWEST = 3
"""Steps of a rollout: one of the cases trains on three of them."""
MICRO: Mapping[SizeName, int] = {"smallest": 2, "cpu": 2, "sd35m": 4}
WITHIN = 0.15


@dataclass(frozen=True)
class Case:
    """One of the benchmark's recipes, with or without gradient checkpointing."""

    label: str
    variant: str
    checkpointing: bool = False


CASES = (
    Case("fused", "c"),
    Case("fused, checkpointing", "c", checkpointing=True),
    Case("fused, 3 steps of 10", "d"),
    Case("stored path", "b"),
    Case("teachers merged", "f"),
)


@dataclass(frozen=True)
class Row:
    """Bytes, at the peak of an update."""

    label: str
    planned: int
    allowance: int
    measured: int
    reserved: int | None
    """What the allocator had taken from the device, gaps included; None on a CPU."""

    @property
    def ratio(self) -> float:
        return self.planned / self.measured


class Outlined(RandomSD3):
    """Shapes alone. Its embeddings come from nowhere, so that no text encoder is counted."""

    encoders: Mapping[str, nn.Module] = {}

    def run_encoders(self) -> None:
        """There are none."""


class OutlinedConfig(RandomSD3Config):
    def open(self) -> Outlined:
        return Outlined(self)


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    device = torch.device(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        sys.exit("There is no GPU here; leave --device out to count on the CPU.")
    if given.steps < FEWEST:
        sys.exit(f"--steps is {given.steps}; it should be {FEWEST} or more.")
    on_cpu = device.type == "cpu"
    if given.size == "sd35m" and on_cpu:
        sys.exit("sd35m is the true size, which needs a GPU: on a CPU an update takes hours.")
    if on_cpu:
        torch.set_num_threads(1)
        print(
            "There is no GPU: tensors are counted on the CPU. Only a GPU tells the whole truth.\n"
        )
    diffusers_logging.set_verbosity_error()
    micro = given.micro or MICRO[given.size]
    options = Options(
        size=given.size,
        device=str(device),
        dtype="fp32" if on_cpu else "bf16",
        images=4 * micro,
        micro=micro,
        steps=given.steps,
    )
    rows = run(options)
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if any(abs(row.ratio - 1) > WITHIN for row in rows):
        sys.exit(f"The plan is off by more than {WITHIN:.0%}.")


def run(options: Options) -> list[Row]:
    """Plan and measure each case, and print it."""
    rows = []
    print(
        f"{'GiB':24}{'planned':>9}{'measured':>10}{'ratio':>7}{'reserved':>10}{'+ allowance':>13}"
    )
    with tempfile.TemporaryDirectory() as folder:
        material = write_material(Path(folder), options)
        for case in CASES:
            chosen = replace(options, checkpointing=case.checkpointing)
            need = plan(recipe(chosen, material, case.variant))
            measured, reserved = measure(chosen, material, case.variant)
            rows.append(Row(case.label, need.measured, need.allowance, measured, reserved))
            print(_line(rows[-1]), flush=True)
    return rows


def plan(config: TrainConfig) -> PhaseNeed:
    """The phase that needs most."""
    model = OutlinedConfig(**{**dict(config.model), "device": "meta"})
    config = config.model_copy(update={"model": model})
    outline, experts = model.open(), Experts(model, {}, Assumed())
    weights = held.weights(outline, cached=False)
    records = {
        name: [record for one in task.prompts for record in read_set(one)]
        for name, task in config.tasks.items()
    }
    found = Rehearsal(config, outline, records, experts, devices=1).run()
    needs = held.phases([*weights, *held.of_training(config, found)], found.peaks)
    return max(needs, key=lambda need: need.measured)


def measure(options: Options, material: Material, variant: str) -> tuple[int, int | None]:
    """The peak of an update after the first, when everything that stays is there."""
    if options.device == "cpu":
        return _counted(options, material, variant), None
    torch.cuda.empty_cache()
    ours = Ours(load(options, material, variant), options, material, variant)
    ours.update(ours.draw())
    torch.cuda.reset_peak_memory_stats()
    ours.update(ours.draw())
    return torch.cuda.max_memory_allocated(), torch.cuda.max_memory_reserved()


def _counted(options: Options, material: Material, variant: str) -> int:
    """The model's weights, and all other tensors that were alive at a time."""
    memory = LiveMemory("cpu")
    with memory, fused_attention():
        loaded = load(options, material, variant)
        ours = Ours(loaded, options, material, variant)
        ours.update(ours.draw())
        memory.peak = memory.live
        ours.update(ours.draw())
    return memory.peak


def _line(row: Row) -> str:
    reserved = "–" if row.reserved is None else _gib(row.reserved)
    return (
        f"{row.label:24}{_gib(row.planned):>9}{_gib(row.measured):>10}{row.ratio:>7.3f}"
        f"{reserved:>10}{_gib(row.planned + row.allowance):>13}"
    )


def _gib(size: int) -> str:
    return f"{size / GIB:.4g}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=get_args(SizeName), default="smallest")
    parser.add_argument("--device", help="cpu or cuda; a GPU if there is one")
    parser.add_argument("--micro", type=int, help="images of a pass through the network")
    parser.add_argument("--steps", type=int, default=10, help="of a rollout")
    parser.add_argument("--json", type=Path, help="write the numbers there")
    return parser


if __name__ == "__main__":
    main()
