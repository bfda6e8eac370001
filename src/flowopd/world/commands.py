"""`flowopd world …`: making the base model, its prompts, and pictures of what prompts ask for."""

import json
from pathlib import Path
from typing import Annotated

import typer

from flowopd.commands.arguments import split_arguments
from flowopd.config import dump_yaml, load_config
from flowopd.errors import FlowOPDError
from flowopd.files import make_writable, write_atomic
from flowopd.tasks.prompts import PromptRecord

TASKS = ("compose", "text", "diversity")
SPLITS = ("evaluation", "training")
app = typer.Typer(help="The built-in world: its base model, its prompts, its truth.")

Task = Annotated[str, typer.Argument(help="compose, text or diversity")]
Seed = Annotated[int, typer.Option(min=0)]
Count = Annotated[int, typer.Option(min=1)]


@app.command()
def pretrain(
    arguments: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RECIPE.yaml] [KEY=VALUE]...", help="A recipe and changes to it."),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for checkpoints and weights.")] = Path(
        "runs/world-base"
    ),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the recipe and stop.")] = False,
) -> None:
    """Make the base model from nothing; call it again to go on where it was stopped."""
    from flowopd.world.recipe import PretrainConfig

    config, overrides = split_arguments(arguments)
    recipe = load_config(PretrainConfig, config, overrides)
    if dry_run:
        typer.echo(dump_yaml(recipe), nl=False)
        return
    make_writable(out)
    from flowopd.reporting.progress import progress
    from flowopd.world.assets import save_base
    from flowopd.world.pretrain import LossLog, start, train

    run = start(recipe, out)
    losses = LossLog(out / "log.jsonl", run)
    with progress("Pre-training", recipe.steps, "steps") as advance:
        advance(run.step)
        for loss in train(run, out):
            losses.add(loss)
            advance(1)
    path = save_base(run.average, out, recipe.model_dump(mode="json"))
    typer.echo(f"{path} (use it with model.family=world model.path={out})")


@app.command()
def prompts(
    task: Task,
    out: Annotated[Path, typer.Option(help="The .jsonl file to write.")],
    count: Count = 512,
    seed: Seed = 0,
    split: Annotated[str, typer.Option(help="evaluation or training")] = "evaluation",
) -> None:
    """Write a prompt file with what each prompt asks for, in GenEval's metadata format."""
    records = _prompts(task, split, count, seed)
    lines = [
        json.dumps({"prompt": r.prompt, "task": r.task, "tag": r.tag, **r.meta}) for r in records
    ]
    make_writable(out.parent)
    write_atomic(out, "\n".join(lines) + "\n")
    typer.echo(f"{len(records)} prompts in {out}")


@app.command()
def render(
    task: Task,
    out: Annotated[Path, typer.Option(help="The PNG to write.")],
    count: Count = 24,
    seed: Seed = 0,
) -> None:
    """Draw what prompts ask for, as the training data shows it."""
    import numpy as np
    from PIL import Image

    from flowopd.reporting.contact_sheet import contact_sheet
    from flowopd.world.render import render as draw
    from flowopd.world.render import to_uint8

    if out.suffix.lower() != ".png":
        raise FlowOPDError(f"--out {out} should end in .png.")
    records = _prompts(task, "evaluation" if task == "diversity" else "training", count, seed)
    rng = np.random.default_rng(seed)
    images = [Image.fromarray(to_uint8(draw(record, rng))) for record in records]
    make_writable(out.parent)
    contact_sheet(images, [record.prompt for record in records]).save(out)
    typer.echo(str(out))


def _prompts(task: str, split: str, count: int, seed: int) -> list[PromptRecord]:
    import numpy as np

    from flowopd.world.grammar import diversity_prompts, evaluation_prompts, training_prompt

    for value, known, what in ((task, TASKS, "task"), (split, SPLITS, "split")):
        if value not in known:
            raise FlowOPDError(f"There is no {what} {value!r} in the world: {', '.join(known)}.")
    if task == "diversity":
        if split != "evaluation":
            raise FlowOPDError("The diversity prompts are for evaluation; leave --split out.")
        return diversity_prompts(count, seed)
    if split == "evaluation":
        return evaluation_prompts(task, count, seed)
    rng = np.random.default_rng(seed)
    return [training_prompt(task, rng) for _ in range(count)]
