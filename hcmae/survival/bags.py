"""Bags of vectors and thumbnails of a cohort: packed one after the other, padded when a group of patients is drawn."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol as Interface

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hcmae.config import MODALITIES
from hcmae.content import content_id

# What a store calls each kind of vectors.
STORE_FIELDS = {
    "region": "region_vectors",
    "region_reg": "region_vectors_reg",
    "region_hipt": "region_vectors_hipt",
    "patch": "patch_vectors",
    # Patch vectors of an ImageNet network, for methods that were published with them.
    "patch_features": "resnet_vectors",
    # One row per slide: hand-crafted features of its nuclei.
    "handcrafted": "handcrafted",
}
# Kinds that several networks can give: what a store calls each of them, the first that every store has is taken.
STORE_CHOICES = {"patch_features": ("encoder_vectors", "resnet_vectors")}
VARIANTS = tuple(STORE_FIELDS)
# Kinds with a vector for every patch of a region; the others have one per region (hand-crafted: per slide).
OF_PATCHES = ("patch", "patch_features")


def stored_names(kind: str) -> tuple[str, ...]:
    """What a store may call a kind of vectors, in order of preference; none for what is no vector."""
    return STORE_CHOICES.get(kind) or ((STORE_FIELDS[kind],) if kind in STORE_FIELDS else ())


class Bags(Interface):
    """Variable numbers of items per patient."""

    sizes: NDArray[np.int64]

    def packed(self, rows: NDArray[np.int64]) -> Tensor:
        """Items of the given patients one after the other, [sum of sizes, ...]."""
        ...

    def content(self) -> str:
        """Hash of all items and of whose they are."""
        ...


class PackedBags:
    """All items in memory: values [N, ...] and the number of items of each patient."""

    def __init__(
        self,
        values: NDArray | Tensor,
        sizes: Sequence[int] | NDArray[np.int64],
        content: Callable[[], str] | None = None,
    ):
        """``content``: says what these items are without looking at them (None: they are hashed)."""
        self.values = torch.as_tensor(values)
        self.sizes = np.asarray(sizes, dtype=np.int64)
        self.offsets = np.concatenate([[0], np.cumsum(self.sizes)])
        self._content: tuple[tuple[int, int], str] | None = None
        # Torch counts what is written into a tensor, and another tensor is another object.
        self._told = None if content is None else (self._state(), content)
        if self.offsets[-1] != len(self.values):
            raise ValueError(f"bag sizes sum to {self.offsets[-1]}, but there are {len(self.values)} items")

    @classmethod
    def from_list(cls, bags: Sequence[NDArray]) -> PackedBags:
        """Pack a list of arrays [M_i, ...]."""
        return cls(np.concatenate(bags), [len(bag) for bag in bags])

    def packed(self, rows: NDArray[np.int64]) -> Tensor:
        if len(rows) == len(self.sizes) and (rows == np.arange(len(rows))).all():
            return self.values
        return torch.cat([self.values[self.offsets[row] : self.offsets[row + 1]] for row in rows])

    def _state(self) -> tuple[int, int]:
        return id(self.values), self.values._version

    def content(self) -> str:
        state = self._state()
        if self._told is not None and self._told[0] == state:
            return self._told[1]()
        if self._content is None or self._content[0] != state:
            values = self.values.detach().cpu().contiguous()
            digest = hashlib.sha256(f"{values.dtype}|{list(values.shape)}|{self.sizes.tolist()}|".encode())
            digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
            self._content = (state, digest.hexdigest()[:20])
        return self._content[1]


class StoredBags:
    """Items left in the slide stores and read when they are asked for; for bags larger than memory.

    ``chosen``: per store the rows of the regions that are used (None: all).
    """

    def __init__(
        self,
        stores: Sequence[Path],
        field: str,
        sizes: Sequence[int],
        flatten: bool = False,
        chosen: Sequence[NDArray[np.int64] | None] | None = None,
    ):
        self.stores, self.field, self.flatten = list(stores), field, flatten
        self.chosen = list(chosen) if chosen is not None else [None] * len(self.stores)
        self.sizes = np.asarray(sizes, dtype=np.int64)

    def packed(self, rows: NDArray[np.int64]) -> Tensor:
        parts = [read_store(self.stores[row], self.field, self.flatten, self.chosen[row]) for row in rows]
        return torch.cat([torch.from_numpy(part) for part in parts])

    def content(self) -> str:
        rows = [None if rows is None else rows.tolist() for rows in self.chosen]
        return content_id([[stored_content(store, self.field) for store in self.stores], rows, self.sizes.tolist()])


def stored_content(path: Path, field: str) -> str:
    """Hash of one field of a slide store: the one that is kept beside vectors, or one taken now.

    Thumbnails have that of the store, which holds them.
    """
    from hcmae.slides.store import SlideStore

    store = SlideStore(path)
    kept = getattr(store, "vector_content", {})
    if field in kept:
        return str(kept[field])
    if field == "thumbnails":
        return str(store.content)
    values = read_store(path, field)
    digest = hashlib.sha256(f"{values.dtype}|{list(values.shape)}|".encode())
    digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()[:20]


def read_store(path: Path, field: str, flatten: bool = False, rows: NDArray[np.int64] | None = None) -> NDArray:
    """One field of a slide store, of all regions or of those in ``rows``.

    Patch vectors [M, P, D] become one bag [M * P, D] when ``flatten`` is set, without the patches that are not there.
    """
    from hcmae.slides.store import SlideStore

    store = SlideStore(path)
    values = np.asarray(store.thumbnails if field == "thumbnails" else store.vectors(field))
    # Features of a whole slide may be stored once instead of once a region.
    if rows is not None and len(values) == len(store):
        values = values[rows]
    mask = getattr(store, "patch_mask", None) if flatten else None
    if mask is not None:
        return values[mask if rows is None else mask[rows]]
    return values.reshape(-1, values.shape[-1]) if flatten else values


@dataclass
class Padded:
    """A padded group of patients: values [B, L, ...], zero where mask [B, L] is False."""

    values: Tensor
    mask: Tensor


def pad(packed: Tensor, sizes: NDArray[np.int64]) -> Padded:
    """Packed items [sum, ...] of patients with the given sizes -> padded [B, max size, ...] with its mask."""
    length = max(int(sizes.max()), 1)
    counts = torch.as_tensor(sizes, device=packed.device)
    mask = torch.arange(length, device=packed.device)[None, :] < counts[:, None]
    values = packed.new_zeros(len(sizes), length, *packed.shape[1:])
    values[mask] = packed
    return Padded(values, mask)


def thin(mask: Tensor, *, drop: float, limit: int | None, generator: torch.Generator) -> Tensor:
    """Drop items of each bag at random: at least a share ``drop``, at most ``limit`` left, never the last one.

    Raises ValueError for a share outside [0, 1).
    """
    if not 0 <= drop < 1:
        raise ValueError(f"the share of dropped items must lie in [0, 1), not {drop}")
    if drop == 0 and (limit is None or mask.shape[1] <= limit):
        return mask
    noise = torch.rand(mask.shape, generator=generator).to(mask.device)
    noise = noise.masked_fill(~mask, 2.0)
    kept = mask & (noise >= drop)
    # A bag that lost everything keeps the item with the largest number drawn.
    lost = ~kept.any(1) & mask.any(1)
    if lost.any():
        best = noise.masked_fill(~mask, -1.0).argmax(1)
        kept[lost, best[lost]] = True
    if limit is not None and mask.shape[1] > limit:
        rank = noise.masked_fill(~kept, 2.0).argsort(dim=1).argsort(dim=1)
        kept = kept & (rank < limit)
    return kept


def places_left(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Places of the items that are left under mask [B, L], in their order: [B, L'] and the mask [B, L'] of real ones.

    L' is the longest bag that is left, at least 1; places beyond a bag's own items point at items that are not left.
    """
    length = max(int(mask.sum(1).max()), 1)
    places = (~mask).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
    return places, torch.take_along_dim(mask, places, 1)


__all__ = ["MODALITIES", "STORE_FIELDS", "Bags", "PackedBags", "Padded", "StoredBags", "pad", "places_left", "thin"]
