"""What a study costs beyond this machine: hours, disk, transfers and money, from rates that were measured.

Run as ``python -m benchmarks.scale`` (``--gpu-hour 2.5`` and its like for your own prices); writes
book/results/scale.json.
Nothing is run: rates come from the result files of ``benchmarks.slides``, ``benchmarks.gpu`` and ``benchmarks.omics``,
numbers of slides and regions from the manifests (Table I of the paper), and what no file says is an option with its
assumption in its help.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from hcmae import __version__
from hcmae.config import CANCERS, load_profile
from hcmae.files import read_json, write_json
from hcmae.manifest import load_manifest

RESULTS = Path(__file__).resolve().parent.parent / "book" / "results"
# Diagnostic and other slides of TCGA's 33 projects.
TCGA_SLIDES = 30_072
# Of a region's vectors: 256 patches in half precision, one region vector of each of three networks.
VECTOR_BYTES = 384 * (256 * 2 + 3 * 4)
THUMBNAIL_BYTES = 256 * 256 * 3


@dataclass(frozen=True)
class Rates:
    """Measured: regions cut per core and second; patches trained on and embedded, regions trained on, per GPU and
    second; minutes of one processor for the selection of omics of one cancer."""

    cut: float
    train_patches: float
    embed_patches: float
    train_regions: float
    omics_minutes: float
    card: str


def measured() -> Rates:
    """Rates from the result files. Embedding is taken to reach the same share of the card as training: all tokens go
    through the encoder once, forwards."""
    slides, gpu, region = (read_json(RESULTS / f"{name}.json") for name in ("slides", "gpu", "gpu_region"))
    profile = load_profile("paper")
    region_mpix = profile.geometry.region**2 / 1e6
    size, tokens = profile.network, profile.geometry.cells_per_patch
    forward = 2 * 12 * size.depth * size.dim**2 * tokens + 4 * size.depth * size.dim * tokens**2
    flops = gpu["gpu_patch_images_s"] * gpu["gflop_per_image"] * 1e9
    rows = [row for row in region["table"] if row["unit"] == "regions/s"]
    step = next(row for row in rows if row["implementation"].startswith("hcmae"))
    return Rates(
        slides["mpix_per_cpu_s"] / region_mpix,
        gpu["gpu_fed_images_s"],
        flops / forward,
        step["rate"],
        read_json(RESULTS / "omics.json")["nested_five_folds_cpu_minutes"],
        gpu["title"],
    )


def studies() -> dict[str, tuple[float, float, int]]:
    """Study -> (slides, regions, cancers); beyond the six cancers with their mean of regions per slide."""
    six = [load_manifest(cancer).table1 for cancer in CANCERS]
    slides, regions = sum(t.patients for t in six), sum(t.regions for t in six)
    one = load_manifest("LIHC").table1
    return {
        "one cancer (LIHC)": (one.patients, one.regions, 1),
        "six cancers": (slides, regions, 6),
        "33 cancers of TCGA": (TCGA_SLIDES, TCGA_SLIDES * regions / slides, 33),
        "a million slides": (1e6, 1e6 * regions / slides, 33),
    }


def cost(slides: float, regions: float, cancers: int, rates: Rates, prices: argparse.Namespace) -> dict[str, Any]:
    """One row: what every step takes. Pre-training is that of the profile ``paper``: ten epochs over everything."""
    profile = load_profile("paper")
    patches = regions * profile.geometry.patches_per_region
    epochs = profile.mae_patch.optimisation.epochs, profile.mae_region.optimisation.epochs
    core_hours = regions / rates.cut / 3600 + cancers * rates.omics_minutes / 60
    train = patches * epochs[0] / rates.train_patches + 2 * regions * epochs[1] / rates.train_regions
    embed = patches / rates.embed_patches
    gpu_hours = (train + embed) / 3600
    terabytes = slides * prices.slide_gb / 1000
    kept = regions * (VECTOR_BYTES + THUMBNAIL_BYTES) / 1e12
    return {
        "slides": round(slides),
        "regions, million": round(regions / 1e6, 2),
        "slides on disk, TB": round(terabytes, 2),
        "stores and vectors, TB": round(kept, 3),
        "fetching, days": round(terabytes * 1e6 / prices.mb_per_second / 86400, 2),
        "cutting, core hours": round(core_hours, 1),
        "pre-training, GPU hours": round(train / 3600, 1),
        "embedding, GPU hours": round(embed / 3600, 1),
        "money, all slides kept a month": round(
            gpu_hours * prices.gpu_hour + core_hours * prices.core_hour + (terabytes + kept) * prices.tb_month
        ),
        "money, streamed": round(
            gpu_hours * prices.gpu_hour + core_hours * prices.core_hour + kept * prices.tb_month
        ),
    }  # fmt: skip


def options(given: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slide-gb", type=float, default=1.0, help="GB of a slide (assumed: 2.4 TB for six cancers)")
    parser.add_argument("--mb-per-second", type=float, default=100.0, help="of the connection (assumed)")
    parser.add_argument("--gpu-hour", type=float, default=3.0, help="price of a GPU hour (assumed)")
    parser.add_argument("--core-hour", type=float, default=0.04, help="price of a core hour (assumed)")
    parser.add_argument("--tb-month", type=float, default=20.0, help="price of a terabyte for a month (assumed)")
    return parser.parse_args(given)


def main() -> None:
    prices, rates = options(), measured()
    rows = [{"study": name, **cost(*study, rates, prices)} for name, study in studies().items()]
    for row in rows:
        print("  ".join(f"{key} {value}" for key, value in row.items()))
    result = {
        "benchmark": "scale",
        "date": date.today().isoformat(),
        "version": __version__,
        "machine": f"computed from rates measured on {rates.card} and on one processor core",
        "assumed": {name.replace("_", " "): value for name, value in vars(prices).items()},
        "table": rows,
    }
    write_json(RESULTS / "scale.json", result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
