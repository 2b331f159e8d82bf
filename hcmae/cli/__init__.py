"""The command ``hcmae``: check the machine and the data, fetch, run stages, hand a model over."""

from __future__ import annotations

import typer

from hcmae.cli import bundle, check, data, doctor, run
from hcmae.cli.errors import Commands

typer_app = typer.Typer(
    name="hcmae",
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help=__doc__,
)
doctor.register(typer_app)
check.register(typer_app)
data.register(typer_app)
run.register(typer_app)
bundle.register(typer_app)


def app(args: list[str] | None = None) -> None:
    """Entry point: what cannot be used or is not there ends in one line and status 2; HCMAE_DEBUG=1 shows where."""
    typer_app(args)
