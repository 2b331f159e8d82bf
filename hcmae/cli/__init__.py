"""The command ``hcmae``: check the machine and the data, fetch, run stages, hand a model over."""

from __future__ import annotations

from typing import Annotated

import typer

from hcmae import __version__
from hcmae.cli import bundle, check, data, doctor, run, slide, stream
from hcmae.cli.errors import Commands
from hcmae.cli.progress import silence

typer_app = typer.Typer(
    name="hcmae",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
)


def _version(asked: bool) -> None:
    if asked:
        print(f"hcmae {__version__}")
        raise typer.Exit


@typer_app.callback(help=__doc__)
def main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing but warnings and errors.")] = False,
) -> None:
    """What comes before a command."""
    context.with_resource(silence(quiet))


doctor.register(typer_app)
check.register(typer_app)
data.register(typer_app)
run.register(typer_app)
bundle.register(typer_app)
stream.register(typer_app)
slide.register(typer_app)


def app(args: list[str] | None = None) -> None:
    """Entry point: what cannot be used or is not there ends in one line and status 2; HCMAE_DEBUG=1 shows where."""
    typer_app(args)
