"""The command ``hcmae``: check the machine, fetch data, run stages."""

from __future__ import annotations

import os
import sys

import typer

from hcmae.cli import data, doctor, run

typer_app = typer.Typer(
    name="hcmae", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
doctor.register(typer_app)
data.register(typer_app)
run.register(typer_app)


def app() -> None:
    """Entry point: what cannot be used or is not there ends in one line; HCMAE_DEBUG=1 shows where it was found."""
    try:
        typer_app()
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if os.environ.get("HCMAE_DEBUG"):
            raise
        print(f"hcmae: {error.args[0] if isinstance(error, KeyError) and error.args else error}", file=sys.stderr)
        raise SystemExit(2) from None
