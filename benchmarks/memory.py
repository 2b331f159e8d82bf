"""Memory of survival training at the paper's size: measured on short bags, carried on to the longest.

Run as ``python -m benchmarks.memory`` (``--profile paper``, ``--method mcat`` for some only); the last line is one JSON
object, also written to book/results/memory.json. What autograd keeps for the backward pass grows by the same number of
bytes with every item of a bag, so two short bags give that number, two sides of thumbnails give what a thumbnail adds,
and a product gives the peak. Beside it: parameters with gradients and both moments of Adam, and what lies on the device
for a whole fold. Host memory is what the profile's ``compute.memory_gib`` keeps and what one part of a group takes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.methods import make_data
from hcmae import __version__
from hcmae.config import Profile, Protocol, load_profile
from hcmae.files import write_json
from hcmae.survival import cross_validate as survival
from hcmae.survival import fit as fitting
from hcmae.survival.methods import METHODS

RESULT = Path(__file__).resolve().parent.parent / "book" / "results" / "memory.json"
GIB = 2**30
# The paper's largest bags; patches of a slide are drawn from no further.
REGIONS, PATCHES = 500, 128_000
THUMBNAIL = 256
# Bags and thumbnails that are measured.
ITEMS, SIDES = (32, 64), (16, 32)
PATIENTS = 6
OF_PATCHES = {"patch", "patch_features"}


class Kept:
    """What autograd keeps while a block runs: ``peak`` bytes, each storage counted once."""

    def __init__(self) -> None:
        self.peak = self._now = 0
        self._held: Counter[tuple[int, int]] = Counter()

    def pack(self, tensor: torch.Tensor) -> _Held:
        storage = tensor.untyped_storage()
        place = (storage.data_ptr(), storage.nbytes())
        if not self._held[place]:
            self._now += place[1]
            self.peak = max(self.peak, self._now)
        self._held[place] += 1
        return _Held(tensor, self, place)

    def release(self, place: tuple[int, int]) -> None:
        """Forget one holder of a storage."""
        self._held[place] -= 1
        if not self._held[place]:
            self._now -= place[1]


class _Held:
    """A kept tensor, and the word to ``Kept`` that it is kept no longer."""

    def __init__(self, tensor: torch.Tensor, kept: Kept, place: tuple[int, int]) -> None:
        self.tensor, self._kept, self._place = tensor, kept, place

    def __del__(self) -> None:
        self._kept.release(self._place)


def methods_with_bags() -> list[str]:
    """Methods whose memory grows with the slides."""
    bagged = {"region", "region_reg", "region_hipt", "thumbnail", *OF_PATCHES}
    return [name for name, method in METHODS.items() if set(method.kinds) & bagged]


def small(profile: Profile, name: str, micro_batch: int) -> Profile:
    """The profile for one epoch of a few patients, its sizes untouched."""
    settings = profile.survival.model_copy(
        update={"epochs": 1, "ensemble": 1, "micro_batch": micro_batch, "group": PATIENTS, "patience": None}
    )
    comparisons = profile.comparisons.model_copy(update={"correlation_epochs": 1})
    if hasattr(comparisons, name):
        own = getattr(comparisons, name).model_copy(update={"epochs": 1, "group": PATIENTS})
        comparisons = comparisons.model_copy(update={name: own})
    return profile.model_copy(update={"survival": settings, "comparisons": comparisons})


def kept_bytes(name: str, profile: Profile, items: int, side: int, together: int) -> tuple[int, int]:
    """(bytes that autograd keeps at most, parameters) of ``together`` patients with ``items`` each."""
    data = make_data(name, PATIENTS + 2, items, items, side)
    data.event[:] = 1
    rows = np.arange(PATIENTS + 2)
    own = small(profile, name, together)
    inputs = survival.fold_inputs(
        METHODS[name], data, rows[:PATIENTS], rows[PATIENTS:], own, Protocol(name="benchmark", epoch="last"), 0
    )
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda held: held.tensor):
        output = survival.fit_fold(METHODS[name], inputs)
    return kept.peak, sum(p.numel() for model in output.models for p in model.parameters())


def estimate(name: str, profile: Profile) -> dict[str, Any]:
    """Computed peak of one method at the paper's bag sizes: what a step keeps, parameters, resident bags, host."""
    method = METHODS[name]
    of_patches = bool(set(method.kinds) & OF_PATCHES)
    longest = PATCHES if of_patches else REGIONS
    adapted = method.adapt(profile) if method.adapt is not None else profile
    limit = adapted.survival.bag_limit
    group = adapted.survival.group or PATIENTS * longest
    together = min(group, adapted.survival.micro_batch or group)
    # Side of a thumbnail -> (bytes that an item of a patient keeps, parameters).
    found = {}
    for side in SIDES if "thumbnail" in method.needs else SIDES[:1]:
        (short, parameters), (long, _) = (kept_bytes(name, profile, items, side, 2) for items in ITEMS)
        found[side] = np.array([(long - short) / (ITEMS[1] - ITEMS[0]) / 2, parameters])
    per_item, parameters = found[SIDES[0]]
    if len(found) > 1:
        # Linear in the pixels of a thumbnail.
        slope = (found[SIDES[1]] - found[SIDES[0]]) / (SIDES[1] ** 2 - SIDES[0] ** 2)
        per_item, parameters = found[SIDES[0]] + slope * (THUMBNAIL**2 - SIDES[0] ** 2)
    drawn = min(longest, limit or longest)
    vectors = 384 * 2 + (THUMBNAIL**2 * 3 if "thumbnail" in method.needs else 0)
    step = together * drawn * per_item
    # Padded bags of a part, and the copy that is fed to the network.
    fed = 2 * together * longest * vectors
    adam = float(parameters) * 4 * 4
    resident = fitting.RESIDENT_BYTES
    predicted = max(fitting.PADDED_BYTES, longest * vectors) * (1 + per_item / max(vectors, 1))
    return {
        "method": name,
        "patients together": together,
        "items": drawn,
        "bytes kept per item": round(per_item),
        "a step, GiB": round(step / GIB, 2),
        "parameters and Adam, GiB": round(adam / GIB, 2),
        "device at most, GiB": round((max(step + fed, predicted) + adam + resident) / GIB, 2),
        "host at most, GiB": round(
            profile.compute.memory_gib + (2 * together * longest * vectors + 1.5 * GIB) / GIB, 2
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="workstation", help="whose settings")
    parser.add_argument("--method", help="these only, comma-separated")
    args = parser.parse_args()
    names = args.method.split(",") if args.method else methods_with_bags()
    profile = load_profile(args.profile)
    rows = []
    for name in names:
        rows.append(estimate(name, profile))
        print(rows[-1], file=sys.stderr)
    result = {
        "benchmark": "memory",
        "date": date.today().isoformat(),
        "version": __version__,
        "machine": f"{platform.machine()}, {len(os.sched_getaffinity(0))} CPU cores",
        "profile": args.profile,
        "methods": rows,
    }
    if not args.method:
        write_json(RESULT, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
