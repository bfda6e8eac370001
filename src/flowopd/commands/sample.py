"""``flowopd sample``: pictures of prompts, and a contact sheet."""

from pathlib import Path

import typer

from flowopd.commands.arguments import given, split_arguments


def sample(
    arguments: list[str] = typer.Argument(
        None, metavar="[CONFIG.yaml] [KEY=VALUE]...", help="A configuration and changes to it."
    ),
    model: str = typer.Option(None, help="A family, the folder of a pipeline, or a hub id."),
    prompt: list[str] = typer.Option(None, help="A prompt; may be given several times."),
    prompts: Path = typer.Option(None, help="A prompt file (.txt or .jsonl)."),
    out: Path = typer.Option(None, help="The folder for the pictures."),
    seed: int = typer.Option(None, help="Picture i of a prompt has seed + i."),
    images_per_prompt: int = typer.Option(None, help="Pictures of each prompt."),
    steps: int = typer.Option(None, help="Sampling steps."),
    guidance: float = typer.Option(None, help="Guidance scale; 1 is none."),
    sampler: str = typer.Option(None, help="ode, flow_sde or cps."),
    noise_level: float = typer.Option(None, help="Noise level of flow_sde and cps."),
    height: int = typer.Option(None, help="Height in pixels."),
    width: int = typer.Option(None, help="Width in pixels."),
    adapter: Path = typer.Option(None, help="A LoRA: a folder, a .safetensors file, or a hub id."),
    batch_size: int = typer.Option(None, help="Pictures that are made at once."),
    dry_run: bool = typer.Option(False, "--dry-run", help="Print the configuration and stop."),
) -> None:
    """Draw pictures of prompts, with a contact sheet and a record of how they were made."""
    from flowopd.config import dump_yaml, load_config
    from flowopd.sampling import SampleConfig, prepare, run

    config, overrides = split_arguments(arguments)
    options = given(
        model=model,
        prompts=prompt,
        prompt_file=prompts,
        out=out,
        seed=seed,
        images_per_prompt=images_per_prompt,
        steps=steps,
        guidance=guidance,
        sampler=sampler,
        noise_level=noise_level,
        height=height,
        width=width,
        adapter=adapter,
        batch_size=batch_size,
    )
    plan = prepare(load_config(SampleConfig, config, overrides, options=options))
    if dry_run:
        typer.echo(dump_yaml(plan.config), nl=False)
        return
    drawn = run(plan)
    typer.echo(f"{len(drawn.pictures)} pictures and {drawn.sheet}")
