"""The command ``hcmae``: check the machine, fetch data, run stages."""

from __future__ import annotations

import sys

import typer

from hcmae.cli import data, doctor, run
from hcmae.config import ConfigError

typer_app = typer.Typer(
    name="hcmae", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__
)
doctor.register(typer_app)
data.register(typer_app)
run.register(typer_app)


def app() -> None:
    """Entry point: settings that cannot be used and missing files end in one line, not in a traceback."""
    try:
        typer_app()
    except (ConfigError, FileNotFoundError) as error:
        print(f"hcmae: {error}", file=sys.stderr)
        raise SystemExit(2) from None
