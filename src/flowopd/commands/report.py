"""``flowopd report``: the report of a study's folder."""

from pathlib import Path

import typer


def report(
    run: Path = typer.Argument(..., metavar="RUN", help="The folder that `flowopd run` writes."),
) -> None:
    """Write RUN/report.html, one file with tables, figures and pictures of a study so far."""
    from flowopd.reporting.report import write_report

    typer.echo(write_report(run))
