"""Which device and precision a network runs with, in one process or in many."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from hcmae.config import Compute
from hcmae.pretraining.launched import LaunchError, tell_torch, world

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
    """One device, or every process that a launcher started (CPU or GPU, one or several hosts).

    Launchers are torchrun, srun, mpirun and mpiexec (``launched``): a notebook stays one process, and so does a program
    alone in a larger allocation. Raises LaunchError where there are fewer GPUs in sight than processes on this host.
    """
    # Imported late: where torchmetrics is installed, Fabric's import pulls in half of the environment.
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments import LightningEnvironment, TorchElasticEnvironment
    from lightning_fabric.strategies import DDPStrategy

    gpu = torch.cuda.is_available()
    precision: Any = choose_precision(compute, "cuda" if gpu else "cpu")
    accelerator = "cuda" if gpu else "cpu"
    here = world()
    if here.size > 1:
        if gpu and (seen := torch.cuda.device_count()) < here.local_size:
            raise LaunchError(
                f"{here.launcher} has started {here.local_size} processes on this host and each sees {seen} GPU(s): "
                "start one process per GPU, and let each see all of them (srun: --gpus-per-node, not --gpus-per-task)"
            )
        tell_torch(here)
        strategy = DDPStrategy(find_unused_parameters=find_unused, cluster_environment=TorchElasticEnvironment())
        fabric = Fabric(
            accelerator=accelerator,
            devices=here.local_size,
            num_nodes=here.hosts,
            strategy=strategy,
            precision=precision,
        )
    else:
        # Named, so that a scheduler's variables around a single process are not taken for a launcher's.
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision, plugins=[LightningEnvironment()])
    fabric.launch()
    return fabric


def wait_for_others() -> None:
    """Return when all processes that a launcher started have come here; at once where there is one."""
    if world().size == 1:
        return
    if not torch.distributed.is_initialized():
        make_fabric(Compute())
    torch.distributed.barrier()
