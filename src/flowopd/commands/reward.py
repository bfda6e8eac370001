"""``flowopd reward``: whether scorers work here, and scorers for other machines."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from flowopd.errors import FlowOPDError

if TYPE_CHECKING:
    from flowopd.rewards.scorer import Scorer
    from flowopd.rewards.settings import ScorerSpec
    from flowopd.rewards.work.examination import Examination

MEBIBYTE = 2**20
NOTHING = "–"
app = typer.Typer(help="Scorers: whether they work here, and serving them to other machines.")


@app.command()
def check(
    arguments: list[str] = typer.Argument(
        None,
        metavar="[NAME]... [KEY=VALUE]...",
        help="Scorers (plug-ins, or path/to/file.py:Class) and settings of them.",
    ),
    recipe: Path = typer.Option(None, help="All scorers of a study or a protocol instead."),
) -> None:
    """Load scorers and let them check themselves on pictures of known answer.

    Exit code 2 when one reads wrong.
    """
    from flowopd.reporting.terminal import show
    from flowopd.rewards.work import Jury
    from flowopd.rewards.work.checking import refusal

    found: list[tuple[str, Examination]] = []
    for spec in _wanted(arguments or [], recipe):
        try:
            scorer = spec.load()
        except FlowOPDError as error:
            found.append((spec.title, _unloaded(error)))
            continue
        with Jury([(spec, scorer)]) as jury:
            ((_, result),) = jury.examine(speed=True)
        if not result.problem:
            show(_table(scorer, result))
        found.append((spec.title, result))
    problem = refusal(found, hint=False)
    if problem:
        raise FlowOPDError(problem)


@app.command()
def serve(
    name: str = typer.Argument(help="A scorer: a plug-in, or path/to/file.py:Class."),
    settings: list[str] = typer.Argument(
        None, metavar="[KEY=VALUE]...", help="Settings of the scorer."
    ),
    device: str = typer.Option(None, help="auto, cpu, cuda, cuda:1."),
    host: str = typer.Option(
        None, help="The address to answer at; this machine's own if left out."
    ),
    port: int = typer.Option(None, help="The port; 0 is any free one."),
    token: str = typer.Option(
        None, help="What clients have to know; needed where other machines can reach it."
    ),
    token_file: Path = typer.Option(None, help="A file with the token instead."),
    batch: int = typer.Option(None, help="Pictures of a request, at most."),
    body: int = typer.Option(None, help="Bytes of a request, at most."),
    pixels: int = typer.Option(None, help="Pixels of all pictures of a request, at most."),
    queue: int = typer.Option(None, help="Requests at the same time; more are sent away."),
) -> None:
    """Serve a scorer over HTTP until it is interrupted."""
    from flowopd.commands.arguments import given
    from flowopd.config import build
    from flowopd.rewards.service.limits import Limits
    from flowopd.rewards.service.server import serve as run

    limits = build(Limits, given(batch=batch, body=body, pixels=pixels, queue=queue))

    changes = [*(settings or []), *([f"device={device}"] if device is not None else [])]
    (spec,) = _named([name], changes)
    run(spec, limits=limits, **given(host=host, port=port, token=token, token_file=token_file))


def _wanted(arguments: list[str], recipe: Path | None) -> "list[ScorerSpec]":
    names = [text for text in arguments if "=" not in text]
    changes = [text for text in arguments if "=" in text]
    if recipe is not None:
        if names:
            raise FlowOPDError("Give names of scorers, or --recipe with all those of a file.")
        from flowopd.study.scorers import scorers_of

        return scorers_of(recipe, changes)
    if not names:
        from flowopd import plugins

        raise FlowOPDError(
            f"Which scorers? Name some ({', '.join(plugins.found('scorers'))}), or give --recipe "
            "with a study or a protocol."
        )
    return _named(names, changes)


def _named(names: list[str], changes: list[str]) -> "list[ScorerSpec]":
    """Scorers with the same settings."""
    from flowopd.config import load_config
    from flowopd.rewards.settings import ScorerSpec

    return [load_config(ScorerSpec, overrides=changes, options={"name": name}) for name in names]


def _unloaded(error: FlowOPDError) -> "Examination":
    from flowopd.rewards.work.examination import Examination

    return Examination(problem=str(error))


def _table(scorer: "Scorer", result: "Examination") -> Any:
    from rich.table import Table

    from flowopd.rewards.work.checking import in_digits

    table = Table(title=f"{scorer.name}: {_verdict(result)}", title_justify="left")
    for column in ("what", "value", "expected", ""):
        table.add_column(column, justify="right" if column == "value" else "left")
    for one in result.findings:
        good = "good" if one.good else "[bold red]bad[/]"
        table.add_row(one.what, in_digits(one.value), one.expected, good)
    table.add_section()
    rate = result.images_per_second
    table.add_row("images a second", NOTHING if rate is None else _rate(rate), "", "")
    table.add_row("memory (MiB)", _memory(result), "", "")
    return table


def _verdict(result: "Examination") -> str:
    if not result.good:
        return "bad"
    return "good" if result.checks_itself else "loads; it has no self-check"


def _rate(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def _memory(result: "Examination") -> str:
    host = f"{result.host_bytes / MEBIBYTE:.0f}"
    device = f" + {result.device_bytes / MEBIBYTE:.0f} on the GPU" if result.device_bytes else ""
    return host + device
