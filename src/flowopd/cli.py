"""The command line. Commands import what is heavy when they run, so that help comes at once."""

import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from flowopd import __version__, plugins
from flowopd.commands.doctor import doctor
from flowopd.commands.eval import evaluate
from flowopd.commands.merge import merge
from flowopd.commands.plan import plan
from flowopd.commands.report import report
from flowopd.commands.reward import app as reward
from flowopd.commands.run import run
from flowopd.commands.sample import sample
from flowopd.commands.status import status
from flowopd.errors import FlowOPDError

BAD_INPUT, INTERRUPTED = 2, 130


class PluginGroup(TyperGroup):
    """A plug-in's commands: listed by name, imported when one of them is called."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        real = plugins.load("commands", self.name or "")
        if not isinstance(real, typer.Typer):
            raise FlowOPDError(f"The command group {self.name!r} is no typer application.")
        command = typer.main.get_command(real)
        command.name = self.name
        return command.make_context(*args, **kwargs)


class RootGroup(TyperGroup):
    """Our commands and the plug-ins' groups; what the user can mend ends in a sentence."""

    def list_commands(self, ctx: Any) -> list[str]:
        own = super().list_commands(ctx)
        return [*own, *(name for name in plugins.found("commands") if name not in own)]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        own = super().get_command(ctx, cmd_name)
        if own is not None or cmd_name not in plugins.found("commands"):
            return own
        target = plugins.found("commands")[cmd_name].value
        package = target.partition(":")[0]
        return PluginGroup(name=cmd_name, help=f"Commands of {package}.")

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FlowOPDError as error:
            typer.echo(f"flowopd: {error}", err=True)
            sys.exit(BAD_INPUT)
        except PermissionError as error:
            typer.echo(f"flowopd: {error.filename} may not be used: {error.strerror}.", err=True)
            sys.exit(BAD_INPUT)
        except OSError as error:
            typer.echo(f"flowopd: {error}. What was finished until now is kept.", err=True)
            sys.exit(BAD_INPUT)
        except KeyboardInterrupt:
            typer.echo("flowopd: interrupted; what was written until now is kept.", err=True)
            sys.exit(INTERRUPTED)


app = typer.Typer(
    cls=RootGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Turn several specialised text-to-image models into one that has all their skills.",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"flowopd {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(
        False, "--version", is_eager=True, callback=_show_version, help="Show the version."
    ),
) -> None:
    """Options that stand before a command."""


app.command("sample")(sample)
app.command("eval")(evaluate)
app.command("merge")(merge)
app.command("report")(report)
app.command("plan")(plan)
app.command("run")(run)
app.command("status")(status)
app.command("doctor")(doctor)
app.add_typer(reward, name="reward")


def main() -> None:
    """The entry point of the command ``flowopd``."""
    for library in ("TRANSFORMERS", "DIFFUSERS"):  # what they warn of when imported is not ours
        os.environ.setdefault(f"{library}_VERBOSITY", "error")
    app()
