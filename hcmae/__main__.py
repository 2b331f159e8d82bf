"""``python -m hcmae``: the command, for launchers that start a module (torchrun, mpirun)."""

from hcmae.cli import app

app()
