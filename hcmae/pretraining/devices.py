"""Which device and precision a network runs with, in one process or in many."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch

from hcmae.config import Compute

if TYPE_CHECKING:
    from lightning_fabric import Fabric


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX), where autocast to bf16 pays."""
    test = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(test()) if test is not None else False


def choose_precision(compute: Compute, device: torch.device | str = "cpu") -> str:
    """Fabric's name of the precision: ``bf16-mixed`` where the device has bf16, else ``32-true``."""
    if compute.precision == "auto":
        on_gpu = torch.device(device).type == "cuda"
        has_bf16 = torch.cuda.is_bf16_supported() if on_gpu else cpu_has_bf16()
        return "bf16-mixed" if has_bf16 else "32-true"
    return {"32": "32-true", "bf16": "bf16-mixed"}[compute.precision]


def make_fabric(compute: Compute, *, find_unused: bool = False) -> Fabric:
    """One device, or every process that torchrun started (CPU or GPU, one or several nodes).

    Several GPUs are used through ``torchrun --nproc-per-node N -m hcmae ...`` only: a notebook stays one process.
    """
    # Imported late: where torchmetrics is installed, Fabric's import pulls in half of the environment.
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    gpu = torch.cuda.is_available()
    precision: Any = choose_precision(compute, "cuda" if gpu else "cpu")
    accelerator = "cuda" if gpu else "cpu"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        fabric = Fabric(
            accelerator=accelerator,
            devices=int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")),
            strategy=DDPStrategy(find_unused_parameters=find_unused),
            precision=precision,
        )
    else:
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    fabric.launch()
    return fabric
