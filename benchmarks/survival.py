"""Speed of the survival stage: one batch against one patient at a time, and the Cox loss on large cohorts.

Run as ``python -m benchmarks.survival``; the last line is one JSON object, also written to book/results/survival.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import numpy as np
import torch
from torch import nn

from hcmae import __version__
from hcmae.files import write_json
from hcmae_core.hcmae import HCMAE
from hcmae_core.losses import cox_loss
from hcmae_core.pixels import IMAGENET_MEAN, IMAGENET_STD, ThumbnailEmbedding
from hcmae_core.transformer import Size

GROUP = 60
RESULT = Path(__file__).resolve().parent.parent / "book" / "results" / "survival.json"


class ReleaseEmbedding(nn.Module):
    """The release's way: a Conv2d whose kernel is the whole thumbnail."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, side: int, dim: int):
        super().__init__()
        self.side, self.conv = side, nn.Conv2d(3, dim, side, side)
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN) * 255)
        self.register_buffer("std", torch.tensor(IMAGENET_STD) * 255)

    @classmethod
    def of(cls, product: ThumbnailEmbedding) -> ReleaseEmbedding:
        """The convolution that computes what HC-MAE's matrix product computes."""
        dim, side = len(product.bias), int((product.weight.numel() // (3 * len(product.bias))) ** 0.5)
        made = cls(side, dim)
        with torch.no_grad():
            made.conv.weight.copy_(product.weight.reshape(dim, side, side, 3).permute(0, 3, 1, 2))
            made.conv.bias.copy_(product.bias)  # type: ignore[union-attr]
        return made

    def forward(self, thumbnails: torch.Tensor) -> torch.Tensor:
        pixels = ((thumbnails.float() - self.mean) / self.std).permute(0, 3, 1, 2)
        return self.conv(pixels).flatten(1)


def make_group(patients: int, regions: int, side: int, features: int, dim: int) -> dict[str, torch.Tensor]:
    """Patients with bags of ``regions`` regions give or take a tenth."""
    rng = np.random.default_rng(0)
    sizes = np.maximum(1, rng.normal(regions, regions / 10, patients).astype(int))
    length = int(sizes.max())
    return {
        "thumbnails": torch.randint(0, 256, (patients, length, side, side, 3), dtype=torch.uint8),
        "region_vectors": torch.randn(patients, length, dim),
        "mask": torch.arange(length)[None] < torch.as_tensor(sizes)[:, None],
        "omics": torch.randn(patients, 3, features),
    }


def seconds(work: Callable[[], object], repeats: int = 1) -> float:
    """Shortest wall time of a few runs."""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best


def _patient(group: dict[str, torch.Tensor], row: int) -> dict[str, torch.Tensor]:
    """One patient without padding."""
    size = int(group["mask"][row].sum())
    return {k: v[row : row + 1] if k == "omics" else v[row : row + 1, :size] for k, v in group.items()}


def one_by_one(model: nn.Module, group: dict[str, torch.Tensor], rows: range, outcome: tuple) -> None:
    """Forward each patient without padding, one Cox loss, one backward."""
    risks = [model(**_patient(group, row)) for row in rows]
    cox_loss(torch.cat(risks), *(o[rows.start : rows.stop] for o in outcome)).backward()
    model.zero_grad(set_to_none=True)


def batched(model: nn.Module, group: dict[str, torch.Tensor], outcome: tuple, precision: str) -> None:
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        risk = model(**group)
    cox_loss(risk, *outcome).backward()
    model.zero_grad(set_to_none=True)


def bench_group(
    patients: int, regions: int, side: int, dim: int, depth: int, heads: int, sampled: int
) -> tuple[dict[str, float], float]:
    """Patients per second of the ways, at one size, and the largest difference of log hazards between them."""
    torch.manual_seed(0)
    model = HCMAE(omics_features=300, vector_dim=dim, thumbnail=side, transformer=Size(dim, depth, heads))
    group = make_group(patients, regions, side, 300, dim)
    outcome = (torch.rand(patients), (torch.rand(patients) < 0.5).int())
    outcome[1][:2] = 1
    # One small pass first, so that lazy set-up is nobody's cost.
    one_by_one(model, group, range(1), outcome)
    times = {
        "batched_fp32": seconds(lambda: batched(model, group, outcome, "fp32")) / patients,
        "batched_bf16": seconds(lambda: batched(model, group, outcome, "bf16")) / patients,
        "one_by_one_product": seconds(lambda: one_by_one(model, group, range(min(4, patients)), outcome))
        / min(4, patients),
    }
    # The release's convolution gets the product's very weights, so that both ways compute the same risks.
    some = {name: value[:sampled] for name, value in group.items()}
    with torch.no_grad():
        together = model.eval()(**some)
        model.slide.embed = ReleaseEmbedding.of(model.slide.embed)  # type: ignore[assignment]
        alone = torch.cat([model(**_patient(group, row)) for row in range(sampled)])
    model.train()
    times["one_by_one_conv"] = seconds(lambda: one_by_one(model, group, range(sampled), outcome)) / sampled
    rates = {name: 1 / value for name, value in times.items()}
    return rates, float((together - alone).abs().max())


def bench_cox(sizes: tuple[int, ...] = (60, 1000, 20000)) -> dict[str, float]:
    """Milliseconds of loss and gradient."""
    out = {}
    for n in sizes:
        risk = torch.randn(n, requires_grad=True)
        days, dead = torch.rand(n), torch.rand(n) < 0.3

        def work(risk: torch.Tensor = risk, days: torch.Tensor = days, dead: torch.Tensor = dead) -> None:
            cox_loss(risk, days, dead).backward()
            risk.grad = None

        work()
        out[f"cox_{n}_ms"] = seconds(work, 20) * 1000
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--patients", type=int, default=20, help="patients in the batch (the paper's group is 60)")
    parser.add_argument("--regions", type=int, default=200, help="regions per patient")
    parser.add_argument("--side", type=int, default=256, help="thumbnail side in pixels")
    parser.add_argument("--dim", type=int, default=384)
    parser.add_argument("--depth", type=int, default=12)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--sampled", type=int, default=1, help="patients of the release's way that are really run")
    parser.add_argument("--result", type=Path, default=RESULT, help="where the JSON object is written")
    arguments = parser.parse_args()
    cox = bench_cox()
    result: dict[str, object] = {"benchmark": "survival", **cox}
    rates, difference = bench_group(
        arguments.patients,
        arguments.regions,
        arguments.side,
        arguments.dim,
        arguments.depth,
        arguments.heads,
        arguments.sampled,
    )
    best = max(rates["batched_fp32"], rates["batched_bf16"])
    result |= {f"patients_per_s_{name}": value for name, value in rates.items()}
    result |= {
        "batch_speedup": best / rates["one_by_one_conv"],
        "batch_speedup_fp32": rates["batched_fp32"] / rates["one_by_one_conv"],
        "batch_speedup_over_product": best / rates["one_by_one_product"],
        "largest_difference_of_log_hazards": difference,
        "release_patients_run": arguments.sampled,
        "batch_patients": arguments.patients,
        "regions": arguments.regions,
        "thumbnail": arguments.side,
        "dim": arguments.dim,
        "depth": arguments.depth,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, torch threads {torch.get_num_threads()}",
        "versions": {"hcmae_core": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }
    print(f"Cox loss and gradient: {', '.join(f'{k[4:-3]} patients {v:.2f} ms' for k, v in cox.items())}")
    print(f"A batch of {arguments.patients} patients, {arguments.regions} regions each, patients per second:")
    for name, value in rates.items():
        print(f"  {name:22s} {value:8.3f}")
    print(
        f"The release's way (Conv2d, one patient at a time) was run for {arguments.sampled} patient(s) of a group of "
        f"{GROUP} and extrapolated; the batch was run with {arguments.patients}."
    )
    print(f"Largest difference of log hazards between batch (product) and one by one (Conv2d): {difference:.1e}")
    write_json(arguments.result, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
