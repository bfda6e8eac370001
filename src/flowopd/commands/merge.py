"""``flowopd merge``: several adapters into one."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flowopd.commands.arguments import given
from flowopd.errors import FlowOPDError

if TYPE_CHECKING:
    from flowopd.merging import Merged
    from flowopd.policy.adapter_files import AdapterFiles
    from flowopd.policy.protocol import ModelConfig

WORST = 5
MEBIBYTE = 2**20


def merge(
    adapters: list[Path] = typer.Argument(
        ...,
        metavar="ADAPTER...",
        help="LoRAs of one base: folders, .safetensors files, or hub ids (org/name[@revision]).",
    ),
    out: Path = typer.Option(..., help="The folder for the merged adapter."),
    weights: str = typer.Option(
        None, help="A weight for each, as 0.5,0.3,0.2; equal ones if left out."
    ),
    method: str = typer.Option(None, help="svd (default), exact, ties, dare or factors."),
    rank: int = typer.Option(None, help="svd, ties, dare: the rank; else the adapters' largest."),
    density: float = typer.Option(None, help="ties, dare: the share of entries kept (0.5)."),
    seed: int = typer.Option(None, help="dare: the seed of its draw (0)."),
    any_sum: bool = typer.Option(None, "--any-sum", help="The weights need not sum to 1."),
    model: str = typer.Option(None, help="Check the adapters against this model, without weights."),
) -> None:
    """Merge LoRA adapters, and say how far the result is from their weighted sum."""
    from flowopd.config import build
    from flowopd.files import check_writable
    from flowopd.merging import MergeConfig, check_weights
    from flowopd.merging import merge as run
    from flowopd.policy.adapter_files import read_adapter
    from flowopd.reporting.terminal import show

    options = given(method=method, rank=rank, density=density, seed=seed, any_sum=any_sum)
    config = build(MergeConfig, options)
    shares = _numbers(weights) if weights is not None else [1 / len(adapters)] * len(adapters)
    check_weights(shares, len(adapters), config)
    check_writable(out)
    base = _model(model) if model is not None else None
    files = [read_adapter(path) for path in adapters]
    _require_elsewhere(out, files)
    if base is not None:
        _require_model(base, adapters)
    merged = run(files, shares, config)
    for warning in merged.warnings:
        typer.echo(f"warning: {warning}", err=True)
    merged.save(out)
    show(_table(merged))
    typer.echo(out)


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise FlowOPDError(
            f"--weights {text!r} should be numbers with commas between them, as 0.5,0.3,0.2."
        ) from None


def _model(name: str) -> "ModelConfig":
    from flowopd import plugins
    from flowopd.config import build
    from flowopd.models import model_keys

    keys = model_keys(name)
    family = plugins.load("models", keys["family"])
    config: ModelConfig = build(family, keys, prefix="model", context={"folder": Path.cwd()})
    config.check()
    return config


def _require_model(model: "ModelConfig", adapters: list[Path]) -> None:
    from flowopd.adapters import check_loras

    check_loras(model, {str(path): path for path in adapters})


def _require_elsewhere(out: Path, files: "list[AdapterFiles]") -> None:
    """A merge must not take the place of what it was made from."""
    for adapter in files:
        if adapter.folder.resolve() == out.resolve():
            raise FlowOPDError(
                f"The output folder {out} holds an adapter to be merged, {adapter.source}, which "
                "would be replaced. Choose another with --out."
            )


def _table(merged: "Merged") -> Any:
    from rich.table import Table

    ranks = merged.ranks
    low, high = min(ranks.values()), max(ranks.values())
    size = 4 * merged.parameters / MEBIBYTE
    worst = sorted(merged.errors.layers.items(), key=lambda item: -item[1])[:WORST]
    table = Table(title="error against the weighted sum", title_justify="left")
    table.add_column("layer", no_wrap=True)
    table.add_column("error", justify="right")
    table.add_column("rank", justify="right")
    for path, error in worst:
        table.add_row(path, _percent(error), str(ranks[path]))
    table.add_section()
    rank = str(low) if low == high else f"{low}–{high}"
    table.add_row(f"all {len(ranks)} layers ({size:.1f} MiB)", _percent(merged.errors.total), rank)
    return table


def _percent(error: float) -> str:
    """Rounding of what is exact is no error that anyone wants to read."""
    return "0" if error < 1e-6 else f"{error:.2%}"
