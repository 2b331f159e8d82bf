"""Features that others have made: one file per slide, as TRIDENT, CLAM and their relatives write them.

| made by | read here |
|---|---|
| TRIDENT | `features` [N, D], `coords` [N, 2] at level 0, attributes patch_size_level0, level0_magnification ... |
| TRIDENT, `.pt` | a tensor; its coordinates from `../patches/<slide>_patches.h5` |
| CLAM | the same names, patch_size at patch_level; `.pt` with `h5_files/<slide>.h5` or `patches/<slide>.h5` beside it |
| others | a group `features` with one encoder in it, `coords` [N, 5] (x, y, width, height, level) |

Only numbers that lie in the file itself are read, and tensors with torch's ``weights_only``.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray

from hcmae.encoders.registry import encoder_label, known_encoder
from hcmae.slides.coords_files import UNREADABLE, level0_side, plain
from hcmae.slides.hdf5 import numbers

# Reasons for which a file of features is not used.
FEATURE_REASONS = {
    "unreadable": "not a file of features, or damaged",
    "no_features": "a file without a patch, as a slide without tissue gives",
    "wrong_slide": "the file says that it is of another slide",
    "no_side": "nothing says how large a patch is",
    "off_grid": "the patches lie on no grid",
    "overlap": "the patches lie on each other",
    "not_finite": "features that are not finite, or too large for float16",
}


class FeatureError(ValueError):
    """A file of features that cannot be used; ``code`` is a key of FEATURE_REASONS."""

    def __init__(self, code: str, path: Path, message: str) -> None:
        super().__init__(f"{path}: {message}")
        self.code = code


@dataclass(frozen=True)
class FeatureHead:
    """What a file of features says of itself, its numbers left alone.

    Attributes:
        count, width: patches, numbers per patch. side: of a patch in level-0 pixels.
        mpp: micrometres per pixel at level 0, NaN where nothing says it. size: width and height at level 0, or None.
        encoder: printed name of what made them, '' where nothing says it. coords: the file with the coordinates.
    """

    path: Path
    count: int
    width: int
    side: int
    mpp: float
    size: tuple[int, int] | None
    encoder: str
    coords: Path

    @property
    def micrometres(self) -> float:
        """Side of a patch in micrometres, NaN where nothing says the magnification."""
        return self.side * self.mpp


def read_head(path: str | Path, slide_id: str | None = None) -> FeatureHead:
    """What a file of features says of itself. Raises FeatureError for one that cannot be used."""
    return _read(Path(path), slide_id, whole=False)[0]


def read_features(
    path: str | Path, slide_id: str | None = None
) -> tuple[FeatureHead, NDArray[np.float16], NDArray[np.int64]]:
    """Head, features [N, D] float16 and corners [N, 2] at level 0 of a file of features.

    slide_id: whose they must be (None: the file's name). Raises FeatureError for a file that is damaged, empty, of
    another slide, with features that are not finite, or that does not say how large a patch is.
    """
    head, features, coords = _read(Path(path), slide_id, whole=True)
    assert features is not None
    assert coords is not None
    with np.errstate(over="ignore"):
        small = features.astype(np.float16)
    bad = int((~np.isfinite(small)).any(1).sum())
    if bad:
        raise FeatureError(
            "not_finite", head.path, f"{bad} of {head.count} patches have features that are not finite in float16"
        )
    return head, small, coords


def _read(path: Path, slide_id: str | None, *, whole: bool) -> tuple[FeatureHead, Any, Any]:
    try:
        return _parts(path, slide_id or path.stem, whole)
    except FeatureError:
        raise
    except (*UNREADABLE, pickle.UnpicklingError, EOFError) as error:
        message = str(error).removeprefix(f"{path}: ").splitlines()
        raise FeatureError("unreadable", path, message[0] if message else type(error).__name__) from error


def _parts(path: Path, slide_id: str, whole: bool) -> tuple[FeatureHead, Any, Any]:
    place = path if path.suffix.lower() == ".h5" else _coords_beside(path)
    with h5py.File(place, "r") as file:
        dataset = numbers(file, "coords")
        attrs = {key: plain(value) for key, value in dataset.attrs.items()}
        shape, inside = dataset.shape, ""
        made: dict[str, Any] = {}
        coords = np.asarray(dataset)
        features: Any = None
        if place == path:
            stored, inside = _features_in(file)
            made = {key: plain(value) for key, value in stored.attrs.items()}
            features = np.asarray(stored) if whole else None
            shape = stored.shape
    if place != path:
        tensor = torch.load(path, map_location="cpu", weights_only=True, mmap=not whole)
        if not isinstance(tensor, torch.Tensor):
            raise ValueError("a .pt must hold a tensor alone")
        shape = tuple(tensor.shape)
        features = tensor.float().numpy() if whole else None
    squeeze = len(shape) == 3 and shape[0] == 1  # TRIDENT's first versions wrote a batch of one
    shape = shape[1:] if squeeze else shape
    features = features[0] if squeeze and whole else features
    coords = coords[0] if coords.ndim == 3 and len(coords) == 1 else coords
    if len(shape) != 2 or coords.ndim != 2 or coords.shape[1] not in (2, 5) or len(coords) != shape[0]:
        raise ValueError(f"features {tuple(shape)} and coords {coords.shape} are no [N, D] and [N, 2]")
    if shape[0] == 0:
        raise FeatureError("no_features", path, "holds no patch")
    _check_name(path, slide_id, attrs, made)
    if not np.isfinite(coords).all():
        raise FeatureError("off_grid", path, "coordinates that are not finite")
    head = FeatureHead(
        path, int(shape[0]), int(shape[1]), _side(place, attrs, coords), _mpp(attrs), _size(attrs),
        _encoder(path, made, inside), place,
    )  # fmt: skip
    return head, features, coords[:, :2].astype(np.int64)


def _features_in(file: h5py.File) -> tuple[h5py.Dataset, str]:
    """The features of a file, and the encoder's name where they lie in a group under it."""
    if isinstance(file.get("features", getlink=True), h5py.HardLink) and isinstance(file["features"], h5py.Group):
        names = list(file["features"])
        if len(names) != 1:
            raise ValueError(f"holds features of {len(names)} encoders ({', '.join(names[:4])}); keep one of them")
        return numbers(file, f"features/{names[0]}"), names[0]
    return numbers(file, "features"), ""


def _coords_beside(path: Path) -> Path:
    """Where the coordinates of a ``.pt`` are, by the layouts of CLAM and TRIDENT."""
    folder, stem = path.parent.parent, path.stem
    places = [path.with_suffix(".h5"), folder / "h5_files" / f"{stem}.h5", folder / "patches" / f"{stem}.h5",
              folder / "patches" / f"{stem}_patches.h5"]  # fmt: skip
    for place in places:
        if place.is_file():
            return place
    raise FeatureError("unreadable", path, f"a .pt has no coordinates; none of {', '.join(map(str, places))} is there")


def _check_name(path: Path, slide_id: str, attrs: Mapping[str, Any], made: Mapping[str, Any]) -> None:
    """Both writers say whose patches they are; a renamed file says so itself."""
    for said in (attrs.get("name"), made.get("name")):
        name = str(said or "")
        if name and _bare(name) not in (_bare(slide_id), _bare(path.stem)):
            raise FeatureError("wrong_slide", path, f"says that it is of slide '{name}'")


def _bare(name: str) -> str:
    """A slide's name without folders, suffix and TRIDENT's ending, in one case."""
    last = re.split(r"[/\\]", name)[-1].casefold()
    last = re.sub(r"\.(svs|tiff?|ndpi|mrxs|scn|vms|bif|svslide|dcm|h5|pt)$", "", last)
    return last.removesuffix("_patches")


def _side(path: Path, attrs: Mapping[str, Any], coords: NDArray[Any]) -> int:
    side = level0_side(attrs)
    if side is None and coords.shape[1] == 5:
        sizes = np.unique(coords[:, 2:], axis=0)
        if len(sizes) != 1 or sizes[0][0] != sizes[0][1] or sizes[0][2] != 0:
            raise FeatureError("no_side", path, "coords [N, 5] must all be squares of one side at level 0")
        side = int(sizes[0][0])
    if side is None:
        raise FeatureError(
            "no_side", path, "the attributes of coords say neither patch_size_level0 nor patch_size with patch_level"
        )
    if float(attrs.get("overlap", 0) or 0) > 0:
        raise FeatureError(
            "overlap", path, f"patches overlap by {attrs['overlap']} pixels: make features without overlap"
        )
    return side


def _mpp(attrs: Mapping[str, Any]) -> float:
    power = float(attrs.get("level0_magnification", 0) or 0)
    return 10 / power if power > 0 else float("nan")


def _size(attrs: Mapping[str, Any]) -> tuple[int, int] | None:
    if "level0_width" in attrs and "level0_height" in attrs:
        return int(attrs["level0_width"]), int(attrs["level0_height"])
    sizes = np.ravel(attrs.get("level_dim", []))
    return (int(sizes[0]), int(sizes[1])) if len(sizes) == 2 and not int(attrs.get("patch_level", 0)) else None


def _encoder(path: Path, made: Mapping[str, Any], inside: str) -> str:
    """Whose features they are: said in the file, or by a folder ``features_<encoder>`` as TRIDENT names it."""
    if made.get("made_by"):
        return encoder_label(str(made["made_by"])) or "MAE-Patch"
    named = inside or next((part.name[9:] for part in path.parents if part.name.startswith("features_")), "")
    known = known_encoder(named) if named else None
    return known.label if known is not None else named
