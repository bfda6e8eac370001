"""``flowopd run``: a study, from what is done already to its report."""

from pathlib import Path

import typer

from flowopd.commands.arguments import split_arguments
from flowopd.errors import FlowOPDError

INTERRUPTED = 130


def run(
    arguments: list[str] = typer.Argument(
        ..., metavar="STUDY.yaml [KEY=VALUE]...", help="A study and changes to it."
    ),
    out: Path = typer.Option(None, help="The folder of the run; runs/NAME if left out."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the plan and stop."),
    only: list[str] = typer.Option(
        None, metavar="STAGE", help="This stage and what it needs; may be given several times."
    ),
    jobs: int = typer.Option(1, min=1, help="Stages that are done at the same time."),
    skip_reward_check: bool = typer.Option(
        False, "--skip-reward-check", help="Use scorers although they were not checked."
    ),
    worker: str | None = typer.Option(None, hidden=True),
    parent: int = typer.Option(0, hidden=True),
) -> None:
    """Do the stages of a study that are not done; go on with those that were stopped."""
    if worker is not None:
        from flowopd.study.lifeline import end_with_parent

        end_with_parent(parent)
    from flowopd.reporting.terminal import show
    from flowopd.study.config import load_study
    from flowopd.study.run import checked, folder_of, run_study, run_worker
    from flowopd.study.table import plan_table, results_table
    from flowopd.training.interrupt import Interrupted
    from flowopd.training.ranks import is_main, named_process

    file, overrides = split_arguments(arguments)
    if file is None:
        raise FlowOPDError("Which study? Give its file: flowopd run STUDY.yaml.")
    try:
        with named_process():
            unchecked = ["check_rewards=false"] if skip_reward_check else []
            study = load_study(file, [*overrides, *unchecked])
            folder = folder_of(study, out)
            if worker is not None:
                run_worker(study, folder, worker)
            elif dry_run:
                plan, found, _ = checked(study, folder, only=only or ())
                if is_main():
                    show(plan_table(plan, found))
            else:
                plan = run_study(study, folder, only=only or (), jobs=jobs)
                if not is_main():
                    return
                if study.config.evaluation is not None:
                    show(results_table(plan))
                typer.echo(plan.folder)
    except Interrupted as ended:
        if is_main():
            typer.echo(f"flowopd: {ended}", err=True)
        raise typer.Exit(INTERRUPTED) from None
