"""``flowopd eval``: a model, and adapters of it, under a protocol."""

from pathlib import Path

import typer

from flowopd.commands.arguments import given, split_arguments
from flowopd.errors import FlowOPDError


def evaluate(
    arguments: list[str] = typer.Argument(
        ..., metavar="PROTOCOL.yaml [KEY=VALUE]...", help="A protocol and changes to it."
    ),
    model: str = typer.Option(None, help="A family, the folder of a pipeline, or a hub id."),
    adapter: list[str] = typer.Option(
        None,
        metavar="NAME=PATH",
        help="A row for this LoRA (a folder, or a hub id); may be given several times.",
    ),
    out: Path = typer.Option(None, help="The folder for scores, table and results.json."),
    limit: int = typer.Option(None, help="At most so many prompts of each set."),
    batch_size: int = typer.Option(None, help="Pictures that are made at once."),
    save_images: bool = typer.Option(None, "--save-images", help="Keep the pictures."),
    skip_reward_check: bool = typer.Option(
        False, "--skip-reward-check", help="Use scorers although they were not checked."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the configuration and stop."),
) -> None:
    """Score a model and adapters of it: per-image scores, a table with intervals, results.json."""
    from flowopd.config import dump_yaml, load_config
    from flowopd.evaluation.protocol import EvalConfig
    from flowopd.evaluation.run import RESULTS, prepare
    from flowopd.evaluation.run import evaluate as run
    from flowopd.evaluation.table import terminal_table
    from flowopd.reporting.terminal import show
    from flowopd.training.ranks import is_main, named_process, start_team

    config, overrides = split_arguments(arguments)
    options = given(
        model=model,
        adapters=named_paths(adapter or []) or None,
        out=out,
        limit=limit,
        batch_size=batch_size,
        save_images=save_images,
        check_rewards=False if skip_reward_check else None,
    )
    with named_process():
        team = start_team()
        plan = prepare(load_config(EvalConfig, config, overrides, options=options))
        team.wait()  # nobody may check any more when the main process begins to write
        rows = [] if dry_run else run(plan, team=team)
        team.leave()
    if not is_main():
        return
    if dry_run:
        typer.echo(dump_yaml(plan.config), nl=False)
        return
    show(terminal_table(plan.config.name, rows))
    typer.echo(plan.config.out / RESULTS)


def named_paths(texts: list[str]) -> dict[str, Path]:
    """``NAME=PATH`` options as a mapping, in their order."""
    paths: dict[str, Path] = {}
    for text in texts:
        name, equals, path = text.partition("=")
        if not equals or not name or not path:
            raise FlowOPDError(f"--adapter {text!r} should be NAME=PATH (the name of its row).")
        if name in paths:
            raise FlowOPDError(f"--adapter {name!r} is given twice; each row needs its own name.")
        paths[name] = Path(path)
    return paths
