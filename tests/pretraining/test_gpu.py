"""On a GPU: what a CPU computes, resumed runs that do not differ, steps that never make the host wait; graphs."""

from __future__ import annotations

import functools
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hcmae.config import Compute, Optimisation
from hcmae.pretraining import augment
from hcmae.pretraining.checkpoint import Interrupted
from hcmae.pretraining.pretrain import pretrain_patch
from hcmae_core.hcmae import HCMAE
from hcmae_core.losses import cox_loss
from hcmae_core.mae_patch import MAEPatch
from hcmae_core.mae_region import MAERegion
from hcmae_core.transformer import Size
from tests.pretraining.test_pretrain import (
    MemoryStream,
    _terminate_after,
    fake_stores,
    same_weights,
    tiny_profile,
    train,
)

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
SMALL = Size(48, 2, 3)


def _images(side: int, batch: int = 6) -> Tensor:
    return torch.randint(0, 256, (batch, side, side, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def _patch() -> tuple[nn.Module, Callable[[nn.Module, torch.device], Tensor]]:
    order = torch.rand(6, 16, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    model = MAEPatch(32, 8, encoder=SMALL, decoder=SMALL)
    return model, lambda m, device: m(_images(32).to(device), order=order.to(device)).loss


def _region(reading: Any) -> tuple[nn.Module, Callable[[nn.Module, torch.device], Tensor]]:
    order = torch.rand(6, 16, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    vectors = torch.randn(6, 16, 48, generator=torch.Generator().manual_seed(3))
    model = MAERegion(64, 16, encoder=SMALL, decoder=SMALL, attention=reading)

    def loss(m: nn.Module, device: torch.device) -> Tensor:
        given = (vectors.to(device),) if model.needs_patch_vectors else ()
        return m(_images(64).to(device), *given, order=order.to(device)).loss

    return model, loss


def _survival() -> tuple[nn.Module, Callable[[nn.Module, torch.device], Tensor]]:
    generator = torch.Generator().manual_seed(4)
    bags = {
        "thumbnails": torch.randint(0, 256, (6, 5, 16, 16, 3), dtype=torch.uint8, generator=generator),
        "region_vectors": torch.randn(6, 5, 48, generator=generator),
        "mask": torch.arange(5)[None] < torch.tensor([5, 3, 1, 4, 2, 5])[:, None],
        "omics": torch.randn(6, 3, 20, generator=generator),
    }
    days, events = torch.arange(6.0) + 1, torch.tensor([1.0, 0, 1, 1, 0, 1])
    model = HCMAE(omics_features=20, vector_dim=48, thumbnail=16, transformer=SMALL)

    def loss(m: nn.Module, device: torch.device) -> Tensor:
        risks = m(**{name: item.to(device) for name, item in bags.items()})
        return cox_loss(risks.float(), days.to(device), events.to(device))

    return model, loss


NETWORKS = {
    "patch": _patch,
    **{f"region {r}": lambda r=r: _region(r) for r in ("q_enc_kv_patch", "eq4", "prose", "none")},  # type: ignore[misc]
    "survival": _survival,
}


def _loss_and_gradients(name: str, device: str, low: bool) -> tuple[float, dict[str, Tensor]]:
    torch.manual_seed(0)
    model, loss = NETWORKS[name]()
    with torch.no_grad():
        # Away from the symmetric start, so that every term matters.
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.to(device)
    with torch.autocast(device, torch.bfloat16, enabled=low):
        value = loss(model, torch.device(device))
    value.backward()
    return value.item(), {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_a_gpu_computes_what_a_cpu_does(name: str) -> None:
    """Loss and gradients: in fp32 to 1e-4, in bf16 to its own rounding."""
    expected, gradients = _loss_and_gradients(name, "cpu", False)
    exact, found = _loss_and_gradients(name, "cuda", False)
    assert exact == pytest.approx(expected, rel=1e-4)
    assert found.keys() == gradients.keys()
    for parameter, gradient in gradients.items():
        assert (found[parameter] - gradient).norm() <= 1e-4 * gradient.norm() + 1e-6, parameter
    rough, low = _loss_and_gradients(name, "cuda", True)
    assert rough == pytest.approx(expected, rel=2e-2)
    both = [torch.cat([g[n].flatten() for n in gradients]) for g in (low, gradients)]
    assert F.cosine_similarity(*both, dim=0) > 0.99


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", ["patch", "region"])
def test_a_run_resumed_on_a_gpu_ends_like_one_left_alone(kind: str, tmp_path: Path) -> None:
    whole = train(kind, tmp_path, tmp_path / "whole")
    with pytest.raises(Interrupted):
        train(kind, tmp_path, tmp_path / "cut", on_step=_terminate_after(5))
    assert same_weights(whole, train(kind, tmp_path, tmp_path / "cut"))


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("kind", ["patch", "region"])
def test_no_step_makes_the_host_wait(kind: str, tmp_path: Path) -> None:
    """Reading a number off the device, or copying in a way that waits, is an error in the sixth and seventh step."""

    def watch(step: int) -> None:
        # Four steps are an epoch, at whose end the losses are looked at.
        torch.cuda.set_sync_debug_mode("error" if step in (5, 6) else "default")

    try:
        train(kind, tmp_path, tmp_path / "out", on_step=watch, log_every=100)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@needs_gpu
def test_augmentation_on_a_gpu_is_that_of_the_host() -> None:
    images = _images(64, 16)
    generator = torch.Generator().manual_seed(7)
    symmetries, factors = augment.draw_symmetries(16, generator), augment.draw_stain(16, 0.2, generator)
    there = images.cuda()
    assert torch.equal(augment.apply_symmetries(there, symmetries).cpu(), augment.apply_symmetries(images, symmetries))
    assert torch.equal(augment.stain_jitter(there, factors).cpu(), augment.stain_jitter(images, factors))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["patch", "region q_enc_kv_patch"])
def test_a_training_step_is_one_graph(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixel functions and the decoder's short cuts included: whatever breaks the graph is an error here."""
    torch._dynamo.reset()
    # Blocks are all alike: one is traced as two are.
    monkeypatch.setattr("tests.pretraining.test_gpu.SMALL", Size(48, 1, 3))
    model, loss = NETWORKS[name]()
    whole: Any = torch.compile(model, dynamic=False, fullgraph=True, backend="aot_eager")
    value = loss(whole, torch.device("cpu"))
    value.backward()
    model.zero_grad()
    assert value.item() == pytest.approx(loss(model, torch.device("cpu")).item(), rel=1e-5)


@pytest.mark.slow
def test_a_compiled_run_is_resumed_and_its_weights_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler wraps the network in training only: checkpoints, hooks and weights are those of the plain one."""
    importlib.import_module("lightning_fabric")  # it wraps torch.compile once, which must be the real one
    if not torch.cuda.is_available():
        # The same graphs; code for a processor would take a minute to generate, and is tested on blocks (test_mae.py).
        monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    profile = tiny_profile()
    settings = Optimisation(optimizer="adamw", batch_size=4, epochs=2, samples_per_epoch=16)
    update = {"mae_patch": profile.mae_patch.model_copy(update={"optimisation": settings})}
    plain = profile.model_copy(update=update)
    compiled = plain.model_copy(update={"compute": Compute(precision="32", compile=True)})
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    kept_in: list[str | None] = []
    paths = [
        pretrain_patch(
            fake_stores(tmp_path), p, tmp_path / n, 1, progress=False, stream=MemoryStream("patch"),
            on_step=lambda _: kept_in.append(os.environ.get("TORCHINDUCTOR_CACHE_DIR")),
        )
        for n, p in (("plain", plain), ("compiled", compiled))
    ]  # fmt: skip
    losses = [
        [json.loads(line)["loss"] for line in path.with_suffix(".jsonl").read_text().splitlines()] for path in paths
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert kept_in[-1] == str(tmp_path / "compiled" / "compiled" / "torchinductor")
    assert torch.cuda.is_available() <= (tmp_path / "compiled" / "compiled").exists()
