"""``flowopd doctor``: what is installed here, and what can be used."""

import json

import typer


def doctor(as_json: bool = typer.Option(False, "--json", help="Print it as JSON.")) -> None:
    """Show versions, devices, caches and plug-ins; exit code 0 when models can be run here."""
    from flowopd.doctor import examine, report_table
    from flowopd.reporting.terminal import show

    report = examine()
    if as_json:
        typer.echo(json.dumps(report.facts(), indent=2))
    else:
        show(report_table(report))
    for problem in report.problems:
        typer.echo(problem, err=True)
    if report.problems:
        raise typer.Exit(1)
