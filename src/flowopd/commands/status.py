"""``flowopd status``: how far a study is."""

from pathlib import Path

import typer

from flowopd.commands.arguments import split_arguments
from flowopd.errors import FlowOPDError


def status(
    arguments: list[str] = typer.Argument(
        ...,
        metavar="RUN|STUDY.yaml [KEY=VALUE]...",
        help="The folder of a run, or a study and changes to it.",
    ),
    out: Path = typer.Option(None, help="The folder of the run, if it is not runs/NAME."),
) -> None:
    """Show what is done, under way, changed and new. Writes nothing."""
    from flowopd.locks import LOCK, holder
    from flowopd.reporting.terminal import show
    from flowopd.study.config import load_study
    from flowopd.study.plan import build_plan
    from flowopd.study.run import STUDY, folder_of, states
    from flowopd.study.table import status_table

    first = Path(arguments[0])
    if first.is_dir():
        if not (first / STUDY).is_file():
            raise FlowOPDError(f"{first} is no folder of a run: it has no {STUDY}.")
        out, arguments = first, [str(first / STUDY), *arguments[1:]]
    file, overrides = split_arguments(arguments)
    if file is None:
        raise FlowOPDError("Which study? Give the folder of its run, or its file.")
    study = load_study(file, overrides)
    plan = build_plan(study, folder_of(study, out))
    show(status_table(plan, states(plan)))
    working = holder(plan.folder / LOCK)
    if working:
        typer.echo(f"{working} is at work on it")
