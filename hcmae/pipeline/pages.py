"""What the cells of the lessons call, so that they stay short: a run is opened, source shown, a patient chosen."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from hcmae.config import ConfigError
from hcmae.pipeline.run import Run

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hcmae.survival.fold import FoldInputs

# The names of the cell of parameters, which papermill fills.
PARAMETERS = ("cancer", "profile", "source", "seed", "data_dir", "run_dir", "modalities", "slides")


class Text(str):
    """Text that a notebook shows as Markdown."""

    def _repr_markdown_(self) -> str:
        return str(self)


def open_run(parameters: Mapping[str, Any], **changes: Any) -> Run:
    """The run that a lesson's cell of parameters names: ``open_run(globals())``; ``changes`` replace some of them.

    Raises ConfigError where one is missing, and as ``Run``.
    """
    missing = [name for name in PARAMETERS if name not in parameters]
    if missing:
        raise ConfigError(f"the cell of parameters lacks {', '.join(missing)}: run it first")
    return Run(**{**{name: parameters[name] for name in PARAMETERS}, **changes})


def source(*things: Callable[..., Any] | type, holding: str = "") -> Text:
    """The source of functions or classes as it stands in the library, highlighted on the page.

    holding: only the statements of one line that hold these words, each under the name of its function.
    Raises ValueError where no line holds them.
    """
    parts = []
    for thing in things:
        text = textwrap.dedent(inspect.getsource(thing)).rstrip()
        if holding:
            lines = [line.strip() for line in text.splitlines() if re.search(rf"\b{re.escape(holding)}\b", line)]
            lines = [line for line in lines if not line.startswith(("#", '"'))]
            if not lines:
                raise ValueError(f"no line of {thing.__qualname__} holds '{holding}'")
            text = "\n".join([f"# {thing.__module__}.{thing.__qualname__}", *lines])
        parts.append(text)
    return Text("```python\n" + "\n\n\n".join(parts) + "\n```")


def one_patient(
    models: Sequence[nn.Module], inputs: Sequence[FoldInputs], row: int = 0
) -> tuple[nn.Module, dict[str, Tensor | None]]:
    """HC-MAE in evaluation mode, and the input of one patient (``row`` of the cohort) as a batch of one.

    The batch has thumbnails [1, M, T, T, 3], region_vectors [1, M, D], mask [1, M], omics [1, 3, K] and positions
    [1, M, 2]. A run without slides or omics has no HC-MAE: a small untrained one and an invented patient take their
    place, so that the equations can be followed all the same.
    """
    from hcmae.survival.fit import Feeder
    from hcmae.survival.methods import METHODS
    from hcmae_core.hcmae import HCMAE

    if isinstance(models[0], HCMAE):
        return models[0].eval(), Feeder(METHODS["hcmae"], inputs[0])(np.array([row]))
    return _invented_patient()


def _invented_patient() -> tuple[nn.Module, dict[str, Tensor | None]]:
    import torch

    from hcmae_core.hcmae import HCMAE
    from hcmae_core.transformer import Size

    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        model = HCMAE(omics_features=10, vector_dim=24, thumbnail=8, transformer=Size(24, 1, 4)).eval()
        return model, {
            "thumbnails": torch.randint(0, 256, (1, 5, 8, 8, 3), dtype=torch.uint8),
            "region_vectors": torch.randn(1, 5, 24),
            "mask": torch.ones(1, 5, dtype=torch.bool),
            "omics": torch.randn(1, 3, 10),
            "positions": torch.rand(1, 5, 2) * 9,
        }
