"""Damage and resolution are never swallowed: what is lost is counted and said, what is assumed stands in the table."""

from __future__ import annotations

import os
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
import pytest
import tifffile
from numpy.typing import NDArray

from hcmae.config import Geometry, SlideSettings
from hcmae.content import Contents
from hcmae.slides import regions
from hcmae.slides.batch import notes, process_slides, refused_by_strict, summary
from hcmae.slides.overview import FAILED_READS, overview_of, read_parts
from hcmae.slides.process import process_slide
from hcmae.slides.reader import SlideError, open_slide, slide_identity
from hcmae.slides.store import SlideStore
from hcmae.slides.tiles import Level
from hcmae.slides.tissue import Tissue
from hcmae.survival.data import load_inputs
from tests.support.twin_slides import paint, write_twin

pytestmark = pytest.mark.filterwarnings("ignore:.*not say (its|their) resolution")
GEOMETRY = Geometry(region=256, patch=64, cell=16, thumbnail=16)
SETTINGS = SlideSettings(preset="synthetic")
NO_RESOLUTION = "Aperio x\r\n"


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return paint(1024, 1024, seed=5)


def pyramid(path: Path, image: NDArray[np.uint8], *, alpha: bool, levels: int = 4) -> Path:
    """A plain pyramid of tiles of 64; with an alpha channel it is one that OpenSlide must read."""
    options: dict[str, Any] = {"tile": (64, 64), "photometric": "rgb", "compression": "deflate", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        for number in range(levels):
            side = len(image) >> number
            small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
            if alpha:
                small = np.dstack([small, np.full(small.shape[:2], 255, np.uint8)])
            writer.write(small, subfiletype=int(number > 0), extrasamples=["unassalpha"] if alpha else None, **options)
    return path


def spoil(path: Path, level: int, *tiles: int) -> None:
    with tifffile.TiffFile(path) as tif:
        page: Any = tif.pages[level]
        places = [(page.dataoffsets[i], page.databytecounts[i]) for i in tiles]
    with open(path, "r+b") as handle:
        for offset, count in places:
            handle.seek(offset)
            handle.write(b"\xff" * count)


@pytest.mark.parametrize("alpha", [False, True], ids=["direct", "openslide"])
def test_an_overview_with_a_damaged_tile_comes_from_the_next_sound_level(
    alpha: bool, picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Masks of regions of 256 have a downsample of 8: level 3, here 128 pixels in four tiles."""
    path = pyramid(tmp_path / "a.tif", picture, alpha=alpha)
    sound = process_slide(path, tmp_path / "sound.h5", GEOMETRY, SETTINGS)
    assert (sound.status, sound.reason, sound.damaged_tiles) == ("ok", "", 0)
    assert sound.reader == ("openslide" if alpha else "direct")
    spoil(path, 3, 0)
    hurt = process_slide(path, tmp_path / "hurt.h5", GEOMETRY, SETTINGS)
    assert (hurt.status, hurt.reason, hurt.damaged_tiles, hurt.bad_regions) == ("ok", "damaged", 1, 0)
    assert "1 damaged tile" in hurt.detail
    np.testing.assert_array_equal(SlideStore(tmp_path / "hurt.h5").coords, SlideStore(tmp_path / "sound.h5").coords)
    again = process_slide(path, tmp_path / "hurt.h5", GEOMETRY, SETTINGS)
    assert (again.status, again.damaged_tiles) == ("skipped", 1)


@pytest.mark.parametrize("alpha", [False, True], ids=["direct", "openslide"])
def test_one_bad_tile_of_the_only_level_costs_its_region_and_is_counted(
    alpha: bool, picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = pyramid(tmp_path / "a.tif", picture, alpha=alpha, levels=1)
    sound = process_slide(path, tmp_path / "a.h5", GEOMETRY, SETTINGS)
    spoil(path, 0, 16 * 8 + 8)
    hurt = process_slide(path, tmp_path / "a.h5", GEOMETRY, replace_bad(0.5))
    assert (hurt.status, hurt.reason) == ("ok", "damaged")
    assert (hurt.regions, hurt.bad_regions) == (sound.regions - 1, 1)


def replace_bad(share: float) -> SlideSettings:
    return SlideSettings(preset="synthetic", max_bad_regions=share)


def test_what_cannot_be_read_is_never_without_tissue(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    """All tiles that hold tissue are gone at every level: the slide failed, it is not empty."""
    image = np.full((512, 512, 3), 244, np.uint8)
    image[:256, :256] = picture[384:640, 384:640]
    path = pyramid(tmp_path / "a.tif", image, alpha=False, levels=1)
    assert process_slide(path, tmp_path / "a.h5", GEOMETRY, SETTINGS).regions == 1
    spoil(path, 0, *(8 * row + column for row in range(4) for column in range(4)))
    outcome = process_slide(path, tmp_path / "b.h5", GEOMETRY, replace_bad(1.0))
    assert (outcome.status, outcome.reason, outcome.bad_regions) == ("failed", "too_many_bad_regions", 1), outcome
    assert outcome.damaged_tiles == 16


def test_squares_that_nobody_can_judge_are_counted_as_bad() -> None:
    mask, unread = np.zeros((8, 8), bool), np.zeros((8, 8), bool)
    mask[:4, :4] = True
    unread[:4, 4:] = True  # all of one square
    unread[4, 0] = True  # too little of another to matter
    tissue = Tissue(mask, 4, (), unread=unread, damaged=2)
    geometry = Geometry(region=16, patch=8, cell=4, thumbnail=8)
    plan = regions.plan_regions((32, 32), tissue, geometry, SlideSettings(min_tissue=0.5), 0.5)
    assert plan.kept.tolist() == [True, False, False, False]
    assert plan.undecided == 1
    assert regions.plan_regions((32, 32), replace(tissue, unread=None), geometry, SlideSettings(), 0.5).undecided == 0


def test_an_overview_is_mended_in_its_damaged_place_alone() -> None:
    """Level 1 is black and damaged in its first tile, level 0 is grey: only that tile is grey in the result."""
    levels = (Level(64, 64, 1.0, 8, 8), Level(16, 16, 4.0, 4, 4))

    def read(level: int, x: int, y: int, out: NDArray[np.uint8]) -> list[tuple[int, int, int, int]]:
        out[...] = 0 if level else 128
        return [(0, 0, 4, 4)] if level and (x, y) == (0, 0) else []

    found = overview_of(levels, (64, 64), read, 16, 16, 4)
    assert (found.damaged, found.unread) == (1, None)
    assert (found.pixels[:4, :4] == 128).all()
    assert found.pixels[4:].max() == found.pixels[:, 4:].max() == 0


def test_a_failing_box_is_split_down_to_the_tile_and_not_for_ever() -> None:
    out = np.zeros((64, 64, 3), np.uint8)
    calls = []

    def read(x: int, y: int, part: NDArray[np.uint8]) -> None:
        calls.append(1)
        if x <= 20 < x + part.shape[1] and y <= 41 < y + part.shape[0]:
            raise ValueError("bad tile")
        part[...] = 7

    assert read_parts(read, (16, 16), 0, 0, out, [FAILED_READS]) == [(16, 32, 32, 48)]
    assert (out[32:48, 16:32] == 255).all()
    assert (out == 7).sum() == 3 * (64 * 64 - 256)

    def never(x: int, y: int, part: NDArray[np.uint8]) -> None:
        calls.append(1)
        raise ValueError

    calls.clear()
    boxes = read_parts(never, (1, 1), 0, 0, out, [10])
    assert len(calls) < 30
    assert sum((right - left) * (lower - upper) for left, upper, right, lower in boxes) == 64 * 64


def test_twelve_bit_jpeg_is_unreadable_and_not_empty(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    part = picture[:256, :256].astype(np.uint16) * 16
    tile = imagecodecs.jpeg8_encode(part, level=95, bitspersample=12)
    path = tmp_path / "twelve.tif"
    tifffile.imwrite(
        path,
        iter([tile] * 4),
        shape=(512, 512, 3),
        dtype=np.uint16,
        bitspersample=12,
        photometric="ycbcr",
        compression="jpeg",
        subsampling=(1, 1),
        tile=(256, 256),
        metadata=None,
    )
    outcome = process_slide(path, tmp_path / "a.h5", GEOMETRY, SETTINGS)
    assert (outcome.status, outcome.reason) == ("failed", "unreadable")


# --- resolution -----------------------------------------------------------------------------------------------------


def test_assumed_resolutions_are_a_column_a_warning_and_refused_by_strict(
    picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    flat = write_twin(tmp_path / "flat.svs", picture[:600, :600], levels=(), description=NO_RESOLUTION)
    says = write_twin(tmp_path / "says.svs", picture[:600, :600], levels=())
    settings = SlideSettings(preset="synthetic", target_mpp=0.5)
    jobs = [(flat, tmp_path / "flat.h5"), (says, tmp_path / "says.h5")]
    with pytest.warns(UserWarning, match=r"1 of 2 slides do not say their resolution: flat \(0.25 um/px assumed\)"):
        frame = process_slides(jobs, GEOMETRY, settings, workers=1, progress=False)
    assert frame["mpp_source"].tolist() == ["assumed", "property openslide.mpp-x"]
    assert summary(frame)["assumed_mpp"].sum() == 1
    assert notes(frame) == "1 slide(s) with an assumed resolution"
    refused = refused_by_strict(frame)
    assert refused is not None
    assert refused.code == "assumed_resolution"
    # With the store in place as well as without.
    for number in range(2):
        with pytest.raises(SlideError, match=r"flat\.svs: the file does not say its resolution") as caught:
            process_slides(jobs[:1], GEOMETRY, settings, workers=1, progress=False, strict=True)
        assert caught.value.code == "assumed_resolution"
        if not number:
            (tmp_path / "flat.h5").unlink()
    table = tmp_path / "mpp.csv"
    table.write_text("slide,mpp\nflat.svs,0.5\n")
    told = settings.model_copy(update={"mpp_table": str(table)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frame = process_slides(jobs, GEOMETRY, told, workers=1, progress=False, strict=True)
    assert refused_by_strict(frame) is None
    assert notes(frame) == ""


def test_tables_written_before_there_was_damage_are_still_summed() -> None:
    old = pd.DataFrame(
        {"slide": ["a"], "status": ["ok"], "reason": [""], "regions": [3], "bad_regions": [0], "mpix": [1.0]}
    ).assign(seconds=1.0)
    assert summary(old)[["damaged_tiles", "assumed_mpp"]].iloc[0].tolist() == [0, 0]
    assert notes(old) == ""
    assert refused_by_strict(old) is None


def test_pixels_that_are_not_square_are_refused_unless_a_table_says_better(
    picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    long = {"description": "", "unit": "CENTIMETER", "levels": ()}
    path = write_twin(tmp_path / "long.tif", picture[:300, :300], resolution=(40000.0, 20000.0), **long)
    with pytest.raises(SlideError, match=r"0\.25 x 0\.5 um, not square") as caught:
        open_slide(path)
    assert caught.value.code == "not_square"
    outcome = process_slide(path, tmp_path / "a.h5", GEOMETRY, SETTINGS)
    assert (outcome.status, outcome.reason) == ("failed", "not_square")
    with open_slide(path, mpp_table={"long.tif": 0.25}) as slide:
        assert slide.mpp == 0.25
        assert slide.mpp_source == "table entry long.tif (the file says pixels of 0.25 x 0.5 um)"
    nearly = write_twin(tmp_path / "nearly.tif", picture[:300, :300], resolution=(40000.0, 40400.0), **long)
    with open_slide(nearly) as slide:
        assert slide.mpp == pytest.approx(0.25)


def test_positions_count_regions_whatever_the_magnification(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    """The same tissue as a 20x and as a 40x slide, cut at 0.5 um: the same places in units of a region."""
    note = "Aperio Image Library v12\r\n{0}x{0} (256x256)|AppMag = {1}|MPP = {2}"
    low = write_twin(tmp_path / "low.svs", picture, description=note.format(1024, 20, 0.5))
    large = cv2.resize(picture, (2048, 2048), interpolation=cv2.INTER_LINEAR)
    high = write_twin(tmp_path / "high.svs", large, description=note.format(2048, 40, 0.25))
    settings = SlideSettings(preset="synthetic", target_mpp=0.5)
    for path in (low, high):
        assert process_slide(path, path.with_suffix(".h5"), GEOMETRY, settings).status == "ok"
    assert [SlideStore(p.with_suffix(".h5")).side for p in (low, high)] == [256, 512]
    table = pd.DataFrame({"time": [1.0, 2.0], "event": [1, 0], "slide": ["low", "high"]}, index=["A", "B"])
    bags = load_inputs(table, tmp_path, kinds=("thumbnail",)).bags["positions"]
    first, second = (bags.packed(np.array([row])).numpy() for row in range(2))
    np.testing.assert_array_equal(first, np.rint(first))
    assert first.max() > 1
    np.testing.assert_array_equal(first, second)


# --- between pixels, parts ------------------------------------------------------------------------------------------


def test_reads_between_pixels_of_a_level_are_openslides(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    """Level 1 has a downsample of 2.001: OpenSlide interpolates there, and the self-check looks at those places."""
    image = picture[:801, :1001]
    path = tmp_path / "a.tif"
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "deflate", "metadata": None}
    with tifffile.TiffWriter(path) as writer:
        writer.write(image, **options)
        writer.write(cv2.resize(image, (500, 400), interpolation=cv2.INTER_AREA), subfiletype=1, **options)
    with open_slide(path) as mine, open_slide(path, reader="openslide") as theirs:
        assert mine.reader == "direct"
        assert "5 tiles compared" in mine.note
        for x, y in ((0, 0), (3, 5), (512, 512), (701, 77)):
            np.testing.assert_array_equal(mine.read(x, y, (120, 90), 1), theirs.read(x, y, (120, 90), 1))


@pytest.mark.parametrize("kind", ["mirax", "vms", "dicom"])
def test_a_slide_in_several_files_is_all_of_them(kind: str, tmp_path: Path) -> None:
    """Size, identity and hash of MIRAX, VMS and DICOM: a part that changes, or comes, changes the slide."""
    parts = {
        "mirax": {"s.mrxs": b"index", "s/Data0000.dat": b"x" * 100, "s/Index.dat": b"i"},
        "vms": {
            "s.vms": b"[Virtual Microscope Specimen]\nImageFile=s.jpg\nMapFile=s_map.jpg\nImageFile(1,0)=s_1.jpg\n",
            "s.jpg": b"x" * 100, "s_map.jpg": b"m", "s_1.jpg": b"y" * 50,
        },
        "dicom": {
            f"{level}.dcm": bytes(128) + b"DICM\x20\x00\x0e\x00UI\x04\x001.2\x00" + b"x" * level for level in range(3)
        },
    }[kind]  # fmt: skip
    for name, content in {**parts, "neighbour.jpg": b"of nobody", "neighbour.txt": b""}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(content)
    path = tmp_path / next(iter(parts))
    before, content = slide_identity(path), Contents().slide(path)
    assert {name for name, *_ in before} == {Path(name).name for name in parts}
    assert sum(size for _, size, _, _ in before) == sum(map(len, parts.values()))
    (tmp_path / "neighbour.jpg").write_bytes(b"changed")
    assert slide_identity(path) == before
    last = tmp_path / list(parts)[-1]
    stat = last.stat()
    last.write_bytes(last.read_bytes()[:-1] + b"#")
    os.utime(last, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1_000_000))
    assert slide_identity(path) != before
    assert Contents().slide(path) != content
    last.unlink()
    assert slide_identity(path) != before
