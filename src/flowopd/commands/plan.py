"""``flowopd plan``: what a study needs, before anything is loaded."""

import json
import os
from pathlib import Path

import typer

from flowopd.commands.arguments import split_arguments
from flowopd.errors import FlowOPDError

GIB = 2**30


def plan(
    arguments: list[str] = typer.Argument(
        ..., metavar="STUDY.yaml [KEY=VALUE]...", help="A study and changes to it."
    ),
    devices: int = typer.Option(
        None, min=1, help="Devices; as many as `accelerate launch` would use if left out."
    ),
    memory: float = typer.Option(
        None, metavar="GB", min=0, help="Memory of each device; that of the GPU if left out."
    ),
    only: list[str] = typer.Option(
        None, metavar="STAGE", help="This stage and what it needs; may be given several times."
    ),
    out: Path = typer.Option(None, help="The folder of the run; runs/NAME if left out."),
    as_json: Path = typer.Option(None, "--json", metavar="FILE", help="Write the numbers there."),
) -> None:
    """Say what memory, work and disk a study takes, and what to change where it does not fit."""
    from flowopd.files import write_atomic
    from flowopd.planning.study_plan import plan_study
    from flowopd.planning.table import study_tables
    from flowopd.reporting.terminal import show
    from flowopd.study.config import load_study
    from flowopd.study.run import folder_of

    file, overrides = split_arguments(arguments)
    if file is None:
        raise FlowOPDError("Which study? Give its file: flowopd plan STUDY.yaml.")
    study = load_study(file, overrides)
    needs = plan_study(
        study,
        folder_of(study, out),
        only=only or (),
        devices=devices or _devices_here(),
        memory=_memory_here() if memory is None else round(memory * GIB),
    )
    show(study_tables(needs))
    if as_json is not None:
        write_atomic(as_json, json.dumps(needs.record(), indent=2, ensure_ascii=False) + "\n")


def _devices_here() -> int:
    """What a launcher started, or `accelerate launch` would start now; else 1."""
    if "WORLD_SIZE" in os.environ:
        return int(os.environ["WORLD_SIZE"])
    return _accelerate_would_start() or _gpus() or 1


def _memory_here() -> int | None:
    """Bytes of the smallest GPU; None where there is none."""
    import torch

    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(_gpus())]
    return min(sizes, default=None)


def _accelerate_would_start() -> int | None:
    """By the file that `accelerate config` writes."""
    from accelerate.commands.config.config_args import default_config_file, load_config_from_file

    if not os.path.isfile(default_config_file):
        return None
    return int(load_config_from_file(None).num_processes)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
