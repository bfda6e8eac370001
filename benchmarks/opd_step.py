"""One update of distillation: ours against one that works as the released code works.

    python benchmarks/opd_step.py --profile                             # a CPU, some minutes
    python benchmarks/opd_step.py --size sd35m --device cuda --profile  # true size, on a GPU

Random weights, two teachers and an anchor as LoRAs of rank 32, guidance 4.5, 10 steps by Flow-SDE.
All in one process: a variant and the baseline take turns, and what counts is the median of the
ratios of their times. On a CPU one thread is used, and its processor time counts.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import torch
from diffusers.utils import logging as diffusers_logging

from opd_compare import Draw, compare, cosines
from opd_profile import profile
from opd_report import cosine_line, profile_text, table
from opd_setup import TASKS, VARIANTS, Material, Options, write_material
from opd_sides import Loaded, Ours, Released, Side, load
from random_sd3 import SizeName
from released_style import FrozenIn

USUAL: Mapping[SizeName, tuple[int, int]] = {"smallest": (6, 3), "cpu": (6, 3), "sd35m": (6, 3)}
"""Images of an update, and of a pass through the network."""
ALL = ("a", *VARIANTS)


def main(arguments: Sequence[str] | None = None) -> None:
    given = _parser().parse_args(arguments)
    options, names = _options(given), [name.strip() for name in given.only.split(",")]
    unknown = [name for name in names if name not in ALL]
    if unknown:
        sys.exit(f"--only names {unknown[0]!r}; the variants are {', '.join(ALL)}.")
    if options.device == "cpu":
        torch.set_num_threads(1)
    diffusers_logging.set_verbosity_error()
    report = run(names, options, given.repeats, profiled=given.profile)
    if given.json:
        given.json.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def run(names: Sequence[str], options: Options, repeats: int, *, profiled: bool) -> dict[str, Any]:
    """Measure and print; the same as plain values."""
    machine = _machine(options.device)
    print(
        f"{options.size} on {machine}, {options.dtype}, torch {torch.__version__}; "
        f"{options.images} images an update, {options.micro} a pass, {options.steps} steps; the "
        f"baseline's teachers compute in {options.frozen_in}.\n",
        flush=True,
    )
    device = torch.device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        material = write_material(Path(folder), options)
        sides = build_sides(names, options, material)
        draw = _drawing(sides, options, material)
        same = cosines(sides, draw())
        print(cosine_line(same, names[0]) + "\n", flush=True)
        rows = compare(sides, draw, device, repeats, _say)
        print(table(rows), flush=True)
        profiles = {}
        for name, side in sides.items() if profiled else ():
            if isinstance(side, Ours) and VARIANTS[name].all_fused:
                profiles[name] = profile(side, draw(), repeats)
                print("\n" + profile_text(name, profiles[name]), flush=True)
    return {
        "machine": machine,
        "torch": torch.__version__,
        "options": asdict(options),
        "repeats": repeats,
        "cosines": same,
        "rows": [asdict(row) | {"ratio": row.ratio} for row in rows],
        "profiles": {
            name: asdict(one) | {"reached": one.reached} for name, one in profiles.items()
        },
    }


def build_sides(names: Sequence[str], options: Options, material: Material) -> dict[str, Side]:
    """Variants whose models are the same share one."""
    loaded: dict[tuple[bool, bool], Loaded] = {}
    sides: dict[str, Side] = {}
    for name in names:
        _say(f"building ({name})")
        if name == "a":
            sides[name] = Released(options, material)
            continue
        model = VARIANTS[name].model
        if model not in loaded:
            loaded[model] = load(options, material, name)
        sides[name] = Ours(loaded[model], options, material, name)
    return sides


def _drawing(sides: Mapping[str, Side], options: Options, material: Material) -> Draw:
    ours = next((side for side in sides.values() if isinstance(side, Ours)), None)
    return (ours or Ours(load(options, material, "c"), options, material, "c")).draw


def _options(given: argparse.Namespace) -> Options:
    device = given.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = torch.device(device).type == "cpu"
    if given.size == "sd35m" and on_cpu and not given.force:
        sys.exit(
            "sd35m is the true size: on a CPU an update takes hours, and the baseline some 40 GB. "
            "Use --size cpu, or a GPU, or --force to do it all the same."
        )
    usual_images, usual_micro = USUAL[given.size]
    images, micro = given.images or usual_images, given.micro or usual_micro
    if images % len(TASKS):
        sys.exit(f"--images is {images}; it should be a multiple of the {len(TASKS)} tasks.")
    return Options(
        size=given.size,
        device=device,
        dtype=given.dtype or ("fp32" if on_cpu else "bf16"),
        images=images,
        micro=micro,
        steps=given.steps,
        checkpointing=given.checkpointing,
        frozen_in=given.baseline_teachers,
    )


def _machine(device: str) -> str:
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"one core of a CPU ({platform.machine()}) without a GPU"


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=get_args(SizeName), default="cpu")
    parser.add_argument("--device", help="cpu, cuda, cuda:1; else a GPU if there is one")
    parser.add_argument("--dtype", choices=["fp32", "bf16"], help="else bf16 on a GPU")
    parser.add_argument("--images", type=int, help="of an update")
    parser.add_argument("--micro", type=int, help="images that go through the network at once")
    parser.add_argument("--steps", type=int, default=10, help="of a trajectory")
    parser.add_argument("--repeats", type=int, default=5, help="pairs")
    parser.add_argument("--only", default=",".join(ALL), help="variants, such as a,c")
    parser.add_argument("--baseline-teachers", choices=get_args(FrozenIn), default="tf32")
    parser.add_argument("--checkpointing", action="store_true", help="recompute activations")
    parser.add_argument("--profile", action="store_true", help="where the time goes")
    parser.add_argument("--json", type=Path, help="a file for the numbers")
    parser.add_argument("--force", action="store_true", help="the true size without a GPU")
    return parser


if __name__ == "__main__":
    main()
