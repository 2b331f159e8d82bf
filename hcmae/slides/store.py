"""One HDF5 file per slide: where its regions are, their thumbnails, and later the vectors computed from them.

Layout: ``coords`` [M, 2] int32 (level-0 x, y), ``thumbnails`` [M, T, T, 3] uint8, ``tissue_fraction`` [M] float32, then
``patch_vectors`` [M, P, D] float16 and ``region_vectors*`` [M, D] float32, each with the hash of the weights that made
it. A store of features without pixels has thumbnails of side 0 and ``patch_mask`` [M, P], true where a patch is there.
The file is written whole under another name and renamed; nothing in it depends on the time of day, so equal input
gives equal bytes. ``coords`` carries the attributes CLAM and TRIDENT look for, and ``features`` points to the region
vectors, so that their users can open a store as it is.

Two attributes say what a store is: ``key`` how it was asked for (settings, slide, mask, code), with its parts in
``key_parts``; ``content`` what it holds. What is computed from a store depends on the second only.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from hcmae.config import Geometry
from hcmae.content import RACY_NS
from hcmae.files import atomic_path, one_writer
from hcmae.packed import parse_json
from hcmae.slides.coords_files import UNREADABLE, plain
from hcmae.slides.errors import SlideError
from hcmae.slides.hdf5 import numbers, refuse_links
from hcmae.slides.locations import located_slide
from hcmae.slides.reader import Slide, open_slide

__all__ = [
    "SlideStore",
    "export_features",
    "opened_stores",
    "verify_store",
    "write_store",
    "write_vectors",
]

FORMAT = 1
HEADS_NAME = ".heads.json"
_BASE = ("coords", "thumbnails", "tissue_fraction")
# What a store has in place of pixels: which patches of its regions are there.
_MASK = "patch_mask"
# The reader of a store whose vectors others have made.
FEATURES = "features"
_AGAIN = "delete it and cut the slide again"
# The one link of the format: what CLAM and TRIDENT call features.
_LINKS = {"features": "/region_vectors"}
# What kind an attribute has, where there is one of that name.
_TEXT = (
    "geometry",
    "slide_id",
    "slide_path",
    "slide_relative",
    "slide_content",
    "key",
    "key_parts",
    "reader",
    "mpp_source",
)
_POSITIVE = ("side", "width", "height", "mpp")
_NUMBERS = (*_POSITIVE, "slide_bytes", "region_pixels", "objective_power", "tissue_share", "grid", "four_point",
            "bad_regions", "damaged_tiles")  # fmt: skip


class SlideStore:
    """Read-only view of a slide's store. Opens the file for each access, so it can be pickled and shared freely.

    Raises FileNotFoundError where there is no store, ValueError where the file is not one, or leads out of itself.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._stat = _stat(self.path)
        except (FileNotFoundError, NotADirectoryError):
            raise FileNotFoundError(f"{self.path}: no such store; cut the slide into regions first") from None
        self.regions, self._content = _once(_head, self.path, self._stat)

    @functools.cached_property
    def attrs(self) -> dict[str, Any]:
        """All attributes of the store. Raises ValueError for one that is not of its kind, and where one is missing."""
        return _Attributes(self.path, _once(_attributes, self.path, self._stat))

    @functools.cached_property
    def vector_weights(self) -> dict[str, str]:
        """Vector dataset -> hash of the weights that made it."""
        return {name: made["weights"] for name, made in _once(_vectors, self.path, self._stat).items()}

    @functools.cached_property
    def vector_keys(self) -> dict[str, str]:
        """Vector dataset -> key that it is kept under: the network that made it, where it was written before keys."""
        return {name: made.get("key", made["weights"]) for name, made in _once(_vectors, self.path, self._stat).items()}

    def __len__(self) -> int:
        return self.regions

    def __repr__(self) -> str:
        return f"SlideStore({self.path.name}, {self.regions} regions, vectors: {sorted(self.vector_weights) or 'none'})"

    @property
    def geometry(self) -> Geometry:
        return Geometry.model_validate(self._json("geometry"))

    @property
    def slide_id(self) -> str:
        return str(self.attrs["slide_id"])

    @property
    def side(self) -> int:
        """Side of a region in level-0 pixels."""
        return int(self.attrs["side"])

    @property
    def key(self) -> str:
        """Digest of what the store was made from and how; '' for one whose key cannot be compared any more."""
        return str(self.attrs.get("key", ""))

    @property
    def key_parts(self) -> dict[str, Any]:
        """The parts of the key by kind (settings, inputs, code); empty for stores written before there was a key."""
        return self._json("key_parts") if "key_parts" in self.attrs else {}

    def _json(self, name: str) -> dict[str, Any]:
        try:
            found = parse_json(self.attrs[name])
        except ValueError as error:
            raise ValueError(f"{self.path}: attribute '{name}' is no JSON ({error}); {_AGAIN}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{self.path}: attribute '{name}' holds no object; {_AGAIN}")
        return found

    @property
    def content(self) -> str:
        """Hash of what is computed from: coords, thumbnails, side, geometry and the slide's bytes.

        Not of how it was asked for: settings that lead to the same regions give the same content.
        """
        if self._content is not None:
            return self._content
        return _store_content(self.attrs, self.coords, [self.thumbnails], self.patch_mask)

    @functools.cached_property
    def vector_content(self) -> dict[str, str]:
        """Vector dataset -> hash of its numbers (bytes, shape, type); of a store written before, computed now."""
        found = _once(_vectors, self.path, self._stat)
        return {name: made.get("content") or array_content(self._read(name)) for name, made in found.items()}

    @property
    def slide_path(self) -> Path:
        """The slide itself: where the pipeline's ``where.json`` beside the store says, for the data folder in use; else
        at its place relative to the store, else where it was, be it there or not.
        """
        named = located_slide(self.path.parent, self.slide_id)
        if named is not None:
            return named
        first = Path(self.attrs["slide_path"])
        # Without following links: that is how the relative path was made.
        beside = Path(os.path.normpath(self.path.absolute().parent / self.attrs["slide_relative"]))
        # A name that no file system takes (too long, with a zero byte) is one of nothing that is there.
        return beside if os.path.exists(beside) else first

    @property
    def coords(self) -> NDArray[np.int32]:
        """[M, 2] int32: level-0 x, y of the top-left corners."""
        return self._read("coords")

    @property
    def thumbnails(self) -> NDArray[np.uint8]:
        """[M, T, T, 3] uint8."""
        return self._read("thumbnails")

    @property
    def tissue_fraction(self) -> NDArray[np.float32]:
        """[M] float32."""
        return self._read("tissue_fraction")

    @property
    def has_pixels(self) -> bool:
        """Whether there is a slide behind the regions, and not features alone."""
        return self.attrs.get("reader") != FEATURES

    @functools.cached_property
    def patch_mask(self) -> NDArray[np.bool_] | None:
        """[M, P] bool: which patches of each region are there; None where all are, as in regions cut from pixels."""
        return None if self.has_pixels else self._read(_MASK).astype(bool)

    def vectors(self, name: str, indices: Any = slice(None)) -> NDArray[Any]:
        """A vector dataset, or some rows of it. Raises KeyError saying which ones the store has."""
        if name not in self.vector_weights:
            raise KeyError(f"{self.path}: no '{name}'; it has {sorted(self.vector_weights) or 'no vectors'}")
        return self._read(name, indices)

    def has_vectors(self, name: str, key: str) -> bool:
        """True where the vectors exist and are kept under this key."""
        return self.vector_keys.get(name) == key

    def open_slide(self) -> Slide:
        """The slide this store was cut from. Not self-checked again. Raises SlideError where it is gone or changed."""
        path = self.slide_path
        if not self.has_pixels:
            raise SlideError("unsupported", path, "holds features and no pixels: what looks at pixels needs the slide")
        slide = open_slide(path, check=False, reader="auto" if self.attrs["reader"] == "direct" else "openslide",
                           mpp_table={path.name: float(self.attrs["mpp"])})  # fmt: skip
        if slide.file_bytes != int(self.attrs["slide_bytes"]):
            slide.close()
            raise SlideError(
                "changed", path, f"is not the file that {self.path.name} was cut from; cut the slide again"
            )
        return slide

    def _read(self, name: str, indices: Any = slice(None)) -> NDArray[Any]:
        try:
            with h5py.File(self.path, "r") as file:
                return np.asarray(numbers(file, name)[indices])
        except FileNotFoundError:
            raise
        except (OSError, KeyError, RuntimeError) as error:
            raise ValueError(f"{self.path}: not a slide store ({error}); {_AGAIN}") from error


class _Attributes(dict[str, Any]):
    """The attributes of a store; asking for one that a damaged or foreign store lacks is a ValueError that names it."""

    def __init__(self, path: Path, found: Mapping[str, Any]) -> None:
        super().__init__(found)
        self.path = path

    def __missing__(self, name: str) -> Any:
        raise ValueError(f"{self.path}: has no attribute '{name}'; {_AGAIN}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, dict(self))


# What is read of a store beside its arrays is read once as long as the file is the same: every step asks all stores of
# a pool what they hold, and most of them for very little. Each reader opens the file only for what it gives.
Stat = tuple[int, int, int]
_remembered: dict[tuple[str, Path], tuple[Stat, Any]] = {}


def _stat(path: Path) -> Stat:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _once(read: Callable[[Path], Any], path: Path, stat: Stat) -> Any:
    found = _remembered.get((read.__name__, path))
    if found is None or found[0] != stat:
        found = _remembered[read.__name__, path] = (stat, read(path))
    return found[1]


def _head(path: Path) -> tuple[int, str | None]:
    """Number of regions and content of a sound store. Raises ValueError for a file that is none."""
    with _opened(path) as file:
        refuse_links(file, _LINKS)
        shape, found = numbers(file, "coords").shape, plain(file.attrs.get("hcmae_format"))
        content = plain(file.attrs.get("content"))
    if found != FORMAT:
        raise ValueError(f"{path}: format {found} is not {FORMAT}; cut the slide again")
    if len(shape) != 2:
        raise ValueError(f"{path}: 'coords' has {len(shape)} dimensions where it has two; {_AGAIN}")
    return int(shape[0]), None if content is None else str(content)


def _attributes(path: Path) -> dict[str, Any]:
    with _opened(path) as file:
        found = {key: plain(value) for key, value in file.attrs.items()}
    for name, value in found.items():
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if (name in _TEXT and not isinstance(value, str)) or (name in _NUMBERS and not number):
            raise ValueError(f"{path}: attribute '{name}' is {value!r:.40}; {_AGAIN}")
        if (name in _POSITIVE and value <= 0) or (name in _NUMBERS and value < 0):
            raise ValueError(f"{path}: attribute '{name}' is {value}; {_AGAIN}")
    return found


def _vectors(path: Path) -> dict[str, dict[str, str]]:
    """The attributes of each vector dataset: weights, key, content."""
    found = {}
    with _opened(path) as file:
        for name in file:
            item = file[name] if name not in (*_BASE, _MASK, "features") else None
            if isinstance(item, h5py.Dataset) and "weights" in item.attrs:
                found[name] = {key: str(value) for key, value in item.attrs.items()}
    return found


def opened_stores(folder: str | Path, paths: Iterable[Path]) -> Iterator[tuple[Path, SlideStore]]:
    """Views of stores in a folder; what they hold is remembered there (``.heads.json``) for the next program.

    A store's stat stands for its content, as in ``hcmae.content``. The memory is a help and never a truth: where it is
    missing or cannot be read, or for a store younger than two seconds, the store itself is opened.
    """
    memory = Path(folder) / HEADS_NAME
    kept = _read_heads(memory)
    news = False
    for path in paths:
        stat = _stat(path)
        known = kept.get(path.name)
        if known is not None and tuple(known[1]) == stat:
            _remembered.setdefault((_head.__name__, path), (stat, tuple(known[2])))
            _remembered.setdefault((_vectors.__name__, path), (stat, known[3]))
        elif time.time_ns() - stat[1] > RACY_NS:
            kept[path.name] = [FORMAT, stat, _once(_head, path, stat), _once(_vectors, path, stat)]
            news = True
        yield path, SlideStore(path)
    if news:
        # A folder of somebody else, which cannot be written to, does without.
        with contextlib.suppress(OSError), atomic_path(memory) as temporary:
            temporary.write_text(json.dumps(kept), encoding="utf-8")


def _read_heads(memory: Path) -> dict[str, Any]:
    """The memory of a folder; empty where it is missing, damaged or of another format."""
    try:
        kept = json.loads(memory.read_text(encoding="utf-8"))
        return {name: item for name, item in kept.items() if _is_head(item)}
    except (OSError, ValueError, AttributeError, RecursionError):
        return {}


def _is_head(item: Any) -> bool:
    if not isinstance(item, list) or len(item) != 4 or item[0] != FORMAT:
        return False
    _, stat, head, vectors = item
    return (
        isinstance(stat, list)
        and isinstance(head, list)
        and len(head) == 2
        and isinstance(head[0], int)
        and isinstance(head[1], str | None)
        and isinstance(vectors, dict)
        and all(isinstance(made, dict) and "weights" in made for made in vectors.values())
    )


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[h5py.File]:
    """The open file. Raises ValueError where it, or what is read of it, is damaged."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UNREADABLE as error:
        raise ValueError(f"{path}: not a slide store ({error}); {_AGAIN}") from error


@dataclass(frozen=True)
class StoreContents:
    """What goes into a new store; ``thumbnails`` may be a memory map, ``patch_mask`` belongs to features alone."""

    coords: NDArray[np.int32]
    thumbnails: Any
    tissue_fraction: NDArray[np.float32]
    attrs: Mapping[str, Any]
    patch_mask: NDArray[np.bool_] | None = None


def write_store(path: str | Path, contents: StoreContents) -> None:
    """Write a store without vectors, atomically; equal contents give equal bytes.

    Vectors of an older store at ``path`` that holds the same content are kept: they would come out the same.
    """
    attrs = dict(contents.attrs)
    coords, thumbs = np.asarray(contents.coords, np.int32), contents.thumbnails
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        _create(file, "coords", coords, _coords_attrs(attrs))
        dataset = file.create_dataset("thumbnails", shape=thumbs.shape, dtype=np.uint8, track_times=False)

        def blocks() -> Iterator[NDArray[np.uint8]]:
            for start in range(0, len(thumbs), 64):
                block = np.asarray(thumbs[start : start + 64], np.uint8)
                dataset[start : start + 64] = block
                yield block

        attrs["content"] = _store_content(attrs, coords, blocks(), contents.patch_mask)
        if contents.patch_mask is not None:
            _create(file, _MASK, np.asarray(contents.patch_mask, np.uint8), {})
        _create(file, "tissue_fraction", np.asarray(contents.tissue_fraction, np.float32), {})
        _keep_vectors(Path(path), file, attrs["content"])
        for key in sorted(attrs):
            file.attrs[key] = attrs[key]
        file.attrs["hcmae_format"] = FORMAT


def write_vectors(path: str | Path, name: str, array: NDArray[Any], weights: str, key: str | None = None) -> None:
    """Add or replace a vector dataset [M, ...] and note the network that made it and the key it is kept under; atomic.

    key: of all that the vectors depend on (None: the network alone).

    The file is copied and renamed: a crash leaves the store as it was. Raises ValueError for a wrong number of rows.
    """
    path = Path(path)
    if name in (*_BASE, _MASK, "features"):
        raise ValueError(f"'{name}' is part of the store and cannot be replaced by vectors")
    if len(array) != len(SlideStore(path)):
        raise ValueError(f"{path}: {len(array)} rows of '{name}' for {len(SlideStore(path))} regions")
    array = np.ascontiguousarray(array)
    made = {"weights": weights, "key": key or weights, "content": array_content(array)}
    # Two networks may be embedding at once.
    with one_writer(path.parent):
        store = SlideStore(path)
        with atomic_path(path) as temporary, h5py.File(temporary, "w") as target:
            with h5py.File(path, "r") as source:
                for attribute in sorted(source.attrs):
                    target.attrs[attribute] = source.attrs[attribute]
                base = [*_BASE, *([] if store.has_pixels else [_MASK])]
                for item in [*base, *sorted(set(store.vector_weights) - {name, "features"})]:
                    source.copy(source[item], target, item)
            _create(target, name, array, made)
            _link_features(target)


def store_key(path: str | Path) -> str | None:
    """The key that a store carries, read alone, without its other attributes; None where there is no such store."""
    try:
        with h5py.File(path, "r") as file:
            return str(file.attrs["key"]) if int(file.attrs.get("hcmae_format", 0)) == FORMAT else None
    except UNREADABLE:
        return None


def verify_store(path: str | Path) -> list[str]:
    """Problems of a store, empty where it is sound: opens, shapes agree, numbers finite, squares on the slide."""
    try:
        store = SlideStore(path)
        geometry, coords = store.geometry, store.coords
        thumbs, fraction = store.thumbnails, store.tissue_fraction
        places, _ = [int(store.attrs["width"]), int(store.attrs["height"])], store.side
        vectors = {name: store.vectors(name) for name in store.vector_weights}
    except UNREADABLE as error:
        return [f"{path}: {str(error).removeprefix(f'{path}: ')}"]
    problems = []
    side = geometry.thumbnail if store.has_pixels else 0
    if coords.shape != (len(store), 2) or fraction.shape != (len(store),):
        problems.append(f"{path}: coords {coords.shape} and tissue_fraction {fraction.shape} disagree")
    if thumbs.shape != (len(store), side, side, 3):
        problems.append(f"{path}: thumbnails {thumbs.shape}, expected {(len(store), side, side, 3)}")
    if coords.shape[1:] == (2,) and ((coords < 0).any() or (coords >= places).any()):
        problems.append(f"{path}: regions outside the slide")
    for name, values in vectors.items():
        if len(values) != len(store):
            problems.append(f"{path}: {len(values)} rows of {name} for {len(store)} regions")
        if not np.isfinite(values).all():
            problems.append(f"{path}: {name} holds values that are not finite")
    return problems


def export_features(store_path: str | Path, path: str | Path, name: str = "region_vectors") -> None:
    """Write ``features`` [N, D] float32 and ``coords`` [N, 2] as CLAM's and TRIDENT's readers expect them.

    Patch vectors [M, P, D] become one row per patch that is there, with the patch's own level-0 corner.
    """
    store = SlideStore(store_path)
    features, coords, geometry = store.vectors(name), store.coords, store.geometry
    attrs = dict(store.attrs)
    if features.ndim == 3:
        n, step = geometry.patches_per_side, store.side / geometry.patches_per_side
        offsets = np.array([(c * step, r * step) for r in range(n) for c in range(n)])
        coords = np.rint(coords[:, None] + offsets[None]).astype(np.int32).reshape(-1, 2)
        features = features.reshape(-1, features.shape[-1])
        if store.patch_mask is not None:
            there = store.patch_mask.reshape(-1)
            coords, features = coords[there], features[there]
        attrs["side"] = round(step)
        attrs["region_pixels"] = geometry.patch
    with atomic_path(path) as temporary, h5py.File(temporary, "w") as file:
        made = {"name": store.slide_id, "encoder": name, "made_by": store.vector_weights[name]}
        _create(file, "features", features.astype(np.float32), made)
        _create(file, "coords", coords.astype(np.int32), _coords_attrs(attrs))


def _coords_attrs(attrs: Mapping[str, Any]) -> dict[str, Any]:
    """What CLAM (first group) and TRIDENT (second group) read from the attributes of ``coords``."""
    size = [int(attrs["width"]), int(attrs["height"])]
    side = int(attrs["side"])
    pixels = int(attrs.get("region_pixels", side))
    power = attrs.get("objective_power") or round(10 / float(attrs["mpp"]), 2)
    return {
        "patch_size": side,
        "patch_level": 0,
        "downsample": np.array([1.0, 1.0]),
        "downsampled_level_dim": np.array(size),
        "level_dim": np.array(size),
        "name": str(attrs["slide_id"]),
        "save_path": "",
        "patch_size_level0": side,
        "level0_magnification": float(power),
        "target_magnification": float(power) * pixels / side,
        "overlap": 0,
        "level0_width": size[0],
        "level0_height": size[1],
        "savetodir": "",
    }


def array_content(array: NDArray[Any]) -> str:
    """Hash of an array: type, shape and bytes."""
    array = np.ascontiguousarray(array)
    digest = hashlib.blake2b(f"{array.dtype.str} {array.shape}\n".encode(), digest_size=16)
    digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _store_content(
    attrs: Mapping[str, Any],
    coords: NDArray[np.int32],
    thumbnails: Iterable[NDArray[np.uint8]],
    mask: NDArray[np.bool_] | None = None,
) -> str:
    # Stores written before kept the size of their slide and no hash of it.
    slide = str(attrs.get("slide_content") or f"{int(attrs['slide_bytes'])} bytes")
    # How a region is split into patches and cells is not the store's business.
    head = json.dumps([json.loads(attrs["geometry"])["region"], int(attrs["side"]), slide])
    digest = hashlib.blake2b(head.encode(), digest_size=16)
    digest.update(np.ascontiguousarray(coords, dtype="<i4").data)
    for block in thumbnails:
        if block.size:
            digest.update(np.ascontiguousarray(block).data)
    if mask is not None:
        digest.update(np.packbits(mask).data)
    return digest.hexdigest()


def _keep_vectors(path: Path, target: h5py.File, content: str) -> None:
    try:
        before = SlideStore(path)
    except (FileNotFoundError, ValueError):
        return
    if before.vector_weights and before.content == content:
        with h5py.File(path, "r") as source:
            for name in sorted(before.vector_weights):
                source.copy(source[name], target, name)
        _link_features(target)


def _link_features(file: h5py.File) -> None:
    # A link is asked for as a link: as an object it does not exist while its target is missing.
    if "region_vectors" in file and file.get("features", getlink=True) is None:
        file["features"] = h5py.SoftLink("/region_vectors")


def _create(file: h5py.File, name: str, array: NDArray[Any], attrs: Mapping[str, Any]) -> None:
    dataset = file.create_dataset(name, data=array, track_times=False)
    for key, value in attrs.items():
        dataset.attrs[key] = value


def total_regions(paths: Iterable[str | Path]) -> int:
    """Number of regions in several stores."""
    return sum(len(SlideStore(path)) for path in paths)
