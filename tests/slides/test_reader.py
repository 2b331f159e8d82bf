"""Reader: the same pixels as OpenSlide for every flavour, and a documented end for every kind of damage."""

from __future__ import annotations

import builtins
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
import tifffile
from numpy.typing import NDArray

from hcmae.slides import reader as reader_module
from hcmae.slides import tiff
from hcmae.slides import tiles as tiles_module
from hcmae.slides.mpp import load_mpp_table
from hcmae.slides.reader import SlideError, TileError, open_slide
from tests.support.hostile_slides import write_ndpi
from tests.support.twin_slides import paint, write_twin

pytestmark = pytest.mark.filterwarnings("ignore:.*not say (its|their) resolution")

WIDTH, HEIGHT = 1100, 900  # no tile size divides these, so both edges are cut


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return paint(HEIGHT, WIDTH, seed=3)


@pytest.fixture(scope="module")
def twin(picture: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("twin") / "twin.svs", picture)


def by_openslide(path: Path, level: int = 0) -> NDArray[np.uint8]:
    with openslide.OpenSlide(path) as slide:
        image = slide.read_region((0, 0), level, slide.level_dimensions[level])
        white = np.asarray(image)[..., 3:] == 0
        return np.where(white, 255, np.asarray(image.convert("RGB"))).astype(np.uint8)


def copy_of(path: Path, folder: Path, name: str = "broken.svs") -> Path:
    target = folder / name
    target.write_bytes(path.read_bytes())
    return target


def tile_place(path: Path, index: int) -> tuple[int, int]:
    with tifffile.TiffFile(path) as tif:
        page: Any = tif.pages[0]
        return page.dataoffsets[index], page.databytecounts[index]


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with open(path, "r+b") as handle:
        handle.seek(offset)
        handle.write(data)


FLAVOURS: dict[str, dict[str, Any]] = {
    "ycbcr420": {"quality": 85},
    "rgb444": {"colour": "rgb", "quality": 70},
    "tile240": {"tile": 240},
    "tile512": {"tile": 512},
    "one_level": {"levels": ()},
    "jp2_rgb": {"compression": "aperio_jp2000_rgb"},
    "deflate": {"compression": "deflate", "description": ""},
    "deflate_predictor": {"compression": "deflate", "description": "", "predictor": True},
    "lzw": {"compression": "lzw", "description": ""},
    "bigtiff": {"bigtiff": True},
    "uncompressed": {"compression": "none", "description": ""},
}


@pytest.mark.slow
@pytest.mark.parametrize("flavour", FLAVOURS)
def test_pixels_equal_openslide(flavour: str, picture: NDArray[np.uint8], tmp_path: Path) -> None:
    path = write_twin(tmp_path / "a.svs", picture, **FLAVOURS[flavour])
    with open_slide(path) as slide:
        assert slide.reader == "direct", slide.note
        assert "largest difference 0" in slide.note
        assert slide.size == (WIDTH, HEIGHT)
        for number, level in enumerate(slide.levels):
            mine = slide.read(0, 0, (level.width, level.height), number)
            np.testing.assert_array_equal(mine, by_openslide(path, number))
        with open_slide(path, reader="openslide") as other:
            for x, y, w, h in ((0, 0, 300, 200), (250, 130, 700, 513), (900, 700, 400, 400), (-20, -30, 100, 100)):
                np.testing.assert_array_equal(slide.read(x, y, (w, h)), other.read(x, y, (w, h)))


def test_shared_jpeg_tables(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    pyvips = pytest.importorskip("pyvips")
    path = tmp_path / "tables.tif"
    pyvips.Image.new_from_array(picture).tiffsave(
        str(path), tile=True, tile_width=256, tile_height=256, compression="jpeg", Q=80, pyramid=True
    )
    with tifffile.TiffFile(path) as tif:
        page: Any = tif.pages[0]
        assert page.jpegtables, "the flavour this test is about"
    with open_slide(path) as slide:
        assert (slide.reader, len(slide.levels) > 1) == ("direct", True), slide.note
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), by_openslide(path))


@pytest.mark.parametrize("colour", ["ycbcr", "rgb"])
@pytest.mark.parametrize("marker", ["jfif", "adobe_wrong"])
def test_photometric_tag_beats_the_markers(
    colour: str, marker: str, picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    """Tiles whose JFIF or Adobe marker contradicts the TIFF tag: the tag decides, as in OpenSlide."""
    plain = write_twin(tmp_path / "plain.svs", picture, colour=colour, levels=())
    with tifffile.TiffFile(plain) as tif:
        page: Any = tif.pages[0]
        raw = plain.read_bytes()
        tiles = [raw[o : o + n] for o, n in zip(page.dataoffsets, page.databytecounts, strict=True)]
    segment = (
        b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
        if marker == "jfif"
        else b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + (b"\x00" if colour == "ycbcr" else b"\x01")
    )
    bare = [tiles_module.without_colour_markers(tile) for tile in tiles]
    path = tmp_path / "marked.svs"
    tifffile.imwrite(
        path,
        iter([b"\xff\xd8" + segment + tile for tile in bare]),
        shape=picture.shape,
        dtype=np.uint8,
        tile=(256, 256),
        photometric="ycbcr" if colour == "ycbcr" else "rgb",
        subsampling=(2, 2) if colour == "ycbcr" else None,
        compression="jpeg",
        compressionargs={"outcolorspace": colour},
        description=f"Aperio Image Library\r\n{WIDTH}x{HEIGHT}|AppMag = 20|MPP = 0.5",
        metadata=None,
    )
    with open_slide(path) as slide:
        assert slide.reader == "direct", slide.note
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), by_openslide(path))
    with open_slide(plain) as before, open_slide(path) as after:
        np.testing.assert_array_equal(before.read(0, 0, before.size), after.read(0, 0, after.size))


def test_jpeg2000_ycbcr(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    """Compression 33003 holds YCbCr; the self-check decides whether our conversion is OpenSlide's."""
    import cv2

    ycc = cv2.cvtColor(picture, cv2.COLOR_RGB2YCrCb)[..., [0, 2, 1]]
    path = write_twin(tmp_path / "ycc.svs", np.ascontiguousarray(ycc), compression="aperio_jp2000_ycbc", levels=())
    with open_slide(path) as slide:
        difference = np.abs(slide.read(0, 0, slide.size).astype(int) - by_openslide(path).astype(int))
        assert difference.max() <= (reader_module.TOLERANCE if slide.reader == "direct" else 0)
        assert np.abs(slide.read(300, 300, (400, 400)).astype(int) - picture[300:700, 300:700]).mean() < 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cmu-1-small-region.svs", "tcga-cr-7395-01a-01-ts1.svs"])
def test_real_slides_equal_openslide(name: str, shared_data: Path) -> None:
    path = shared_data / "slides" / name
    with open_slide(path) as slide:
        assert slide.reader == "direct", slide.note
        for number, level in enumerate(slide.levels):
            mine = slide.read(0, 0, (level.width, level.height), number)
            np.testing.assert_array_equal(mine, by_openslide(path, number))


def test_many_threads_one_slide(twin: Path) -> None:
    with open_slide(twin) as slide:
        whole = slide.read(0, 0, slide.size)
        corners = [(x, y) for x in range(0, 900, 111) for y in range(0, 700, 97)]
        with ThreadPoolExecutor(4) as pool:
            parts = list(pool.map(lambda c: slide.read(*c, (200, 200)), corners))
    for (x, y), part in zip(corners, parts, strict=True):
        np.testing.assert_array_equal(part, whole[y : y + 200, x : x + 200])


def test_outside_is_white_and_bad_arguments_are_named(twin: Path) -> None:
    with open_slide(twin) as slide:
        assert (slide.read(5000, 5000, (50, 50)) == 255).all()
        part = slide.read(WIDTH - 10, HEIGHT - 10, (30, 30))
        assert (part[10:] == 255).all()
        assert (part[:, 10:] == 255).all()
        with pytest.raises(ValueError, match="no level 9"):
            slide.read(0, 0, (5, 5), 9)
        with pytest.raises(ValueError, match="must be positive"):
            slide.read(0, 0, (0, 5))


def test_overview_is_the_area_mean(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    path = write_twin(tmp_path / "flat.tif", picture, compression="none", description="", levels=())
    with open_slide(path) as slide:
        view = slide.overview(4)
    exact = picture.reshape(HEIGHT // 4, 4, WIDTH // 4, 4, 3).mean(axis=(1, 3))
    assert view.shape == (225, 275, 3)
    assert np.abs(view - exact).max() <= 0.51
    with open_slide(path) as slide:
        assert max(slide.thumbnail(200).shape) == 200


def test_self_check_catches_wrong_pixels(twin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that is off by ten grey levels must not be trusted."""
    right = reader_module.Slide._tile

    def wrong(self: Any, *args: Any, **kwargs: Any) -> Any:
        tile = right(self, *args, **kwargs)
        return None if tile is None else tile ^ 10

    monkeypatch.setattr(reader_module.Slide, "_tile", wrong)
    with open_slide(twin) as slide:
        assert slide.reader == "openslide"
        assert "differs" in slide.note
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), by_openslide(twin))
    with pytest.raises(SlideError, match="differs"):
        open_slide(twin, reader="direct")


def test_without_openslide_the_direct_path_still_works(
    twin: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = by_openslide(twin)
    monkeypatch.setitem(sys.modules, "openslide", None)
    with open_slide(twin) as slide:
        assert slide.reader == "direct"
        assert slide.mpp == 0.5
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), expected)
    other = tmp_path / "slide.mrxs"
    other.write_bytes(b"not a tiff at all")
    with pytest.raises(SlideError, match="OpenSlide is not installed") as caught:
        open_slide(other)
    assert caught.value.code == "unsupported"


def test_without_openslide_a_scanner_dialect_is_refused(
    picture: NDArray[np.uint8], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Tiles of some scanners overlap; without OpenSlide nobody can check, so they are not guessed."""
    path = write_twin(tmp_path / "a.tif", picture, levels=(), description="<?xml version='1.0'?><scn/>")
    monkeypatch.setitem(sys.modules, "openslide", None)
    with pytest.raises(SlideError, match="dialect") as caught:
        open_slide(path)
    assert caught.value.code == "unsupported"


@pytest.mark.parametrize(("error", "code"), [("TiffEndsEarlyError", "truncated"), ("TiffError", "unreadable")])
def test_odd_tags_are_left_to_openslide_in_ndpi_alone(
    error: str, code: str, twin: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """NDPI of more than 4 GiB has directories of its own; of others OpenSlide would believe what nobody checked."""

    def fail(_: Path) -> Any:
        raise getattr(tiff, error)("directories that make no sense")

    monkeypatch.setattr(reader_module, "read_pages", fail)
    monkeypatch.setattr(reader_module, "dies_of", lambda _: "")
    ndpi = write_ndpi(tmp_path / "a.ndpi", paint(128, 128))
    with open_slide(ndpi) as slide:
        assert slide.reader == "openslide"
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), by_openslide(ndpi))
    with pytest.raises(SlideError, match="directories that make no sense") as caught:
        open_slide(twin)
    assert caught.value.code == code


# --- resolution -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("description", "resolution", "unit", "table", "mpp", "source"),
    [
        (None, None, None, {"*": 9.0}, 0.5, "property openslide.mpp-x"),
        ("", (20000.0, 20000.0), "CENTIMETER", {"*": 9.0}, 0.5, "property openslide.mpp-x"),
        ("Aperio x\r\n|AppMag = 40", (40000.0, 40000.0), "CENTIMETER", {"*": 9.0}, 0.25, "TIFF resolution"),
        ("Aperio x\r\n|AppMag = 40", (72.0, 72.0), "INCH", {"a.*": 0.31}, 0.31, "table entry a.*"),
        ("Aperio x\r\n|AppMag = 20", None, None, {"other": 0.31}, 0.5, "assumed from 20x objective"),
        ("Aperio x\r\n", None, None, None, 0.25, "assumed"),
    ],
)
def test_order_of_resolution_sources(
    description: str | None,
    resolution: tuple[float, float] | None,
    unit: str | None,
    table: dict[str, float] | None,
    mpp: float,
    source: str,
    picture: NDArray[np.uint8],
    tmp_path: Path,
) -> None:
    path = write_twin(
        tmp_path / "a.svs", picture[:300, :300], levels=(), description=description, resolution=resolution, unit=unit
    )
    with open_slide(path, mpp_table=table) as slide:
        assert slide.mpp == pytest.approx(mpp)
        assert slide.mpp_source == source


def test_assumed_resolution_warns(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    path = write_twin(tmp_path / "a.svs", picture[:300, :300], levels=(), description="Aperio x\r\n")
    with pytest.warns(UserWarning, match="does not say its resolution"), open_slide(path):
        pass


def test_resolution_table_from_csv(tmp_path: Path) -> None:
    table = tmp_path / "mpp.csv"
    table.write_text("slide,mpp\nTCGA-*,0.25\n")
    assert load_mpp_table(table) == {"TCGA-*": 0.25}
    table.write_text("slide,mpp\nTCGA-*,fine\n")
    with pytest.raises(ValueError, match=r"line 2, column mpp: 'fine'"):
        load_mpp_table(table)
    table.write_text("name,mpp\n")
    with pytest.raises(ValueError, match="column 'slide' is missing"):
        load_mpp_table(table)


# --- damage ---------------------------------------------------------------------------------------------------------


# OpenSlide returns a tile with garbage in its scan without a word, so that pair is not here.
@pytest.mark.parametrize(("damage", "reader"), [("garbage", "auto"), ("header", "auto"), ("header", "openslide")])
def test_a_damaged_tile_costs_only_its_area(damage: str, reader: str, twin: Path, tmp_path: Path) -> None:
    path = copy_of(twin, tmp_path)
    offset, count = tile_place(path, 6)  # row 1, column 1
    rng = np.random.default_rng(0)
    if damage == "garbage":
        overwrite(path, offset + count // 3, rng.integers(0, 255, count // 2, np.uint8).tobytes())
    else:
        overwrite(path, offset, b"\x00" * 64)
    sound = by_openslide(twin)
    with open_slide(path, reader=reader) as slide:
        with pytest.raises(TileError):
            slide.read(256, 256, (256, 256))
        # OpenSlide would now refuse everything; the reader opens it again.
        np.testing.assert_array_equal(slide.read(0, 0, (256, 256)), sound[:256, :256])
        with pytest.raises(TileError, match="tile"):
            slide.read(200, 200, (256, 256))
        np.testing.assert_array_equal(slide.read(512, 512, (256, 256)), sound[512:768, 512:768])
        white = slide.read(256, 256, (256, 256), on_error="white")
        assert (white == 255).all()


def test_an_empty_tile_is_white(twin: Path, tmp_path: Path) -> None:
    path = copy_of(twin, tmp_path)
    with tifffile.TiffFile(path, mode="r+") as tif:
        page: Any = tif.pages[0]
        counts = list(page.databytecounts)
        counts[6] = 0
        page.tags["TileByteCounts"].overwrite(counts)
    with open_slide(path) as slide:
        assert slide.reader == "direct"
        assert (slide.read(256, 256, (256, 256)) == 255).all()
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), by_openslide(path))
        small = slide.read(0, 0, (275, 225), 1)
        assert (small[64:128, 64:128] == 255).all()
        assert small[64:128, 140:200].min() < 200


@pytest.mark.parametrize("share", [0.5, 0.9, 0.99])
def test_a_truncated_file_is_found_before_reading(share: float, twin: Path, tmp_path: Path) -> None:
    data = twin.read_bytes()
    path = tmp_path / "half.svs"
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(SlideError, match="again") as caught:
        open_slide(path)
    assert caught.value.code == "truncated"


@pytest.mark.parametrize(
    ("content", "code"), [(b"", "truncated"), (b"just text", "unreadable"), (b"II*\x00\xff\xff\xff\x7f", "truncated")]
)
def test_files_that_are_no_slides(content: bytes, code: str, tmp_path: Path) -> None:
    path = tmp_path / "a.svs"
    path.write_bytes(content)
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    assert caught.value.code == code
    assert str(path) in str(caught.value)


def test_unreadable_every_tile_is_rubbish(twin: Path, tmp_path: Path) -> None:
    path = copy_of(twin, tmp_path)
    with tifffile.TiffFile(path) as tif:
        for page in tif.pages:
            for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
                overwrite(path, offset, b"\x55" * count)
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    assert caught.value.code == "unreadable"


def test_unopenable_unknown_compression(twin: Path, tmp_path: Path) -> None:
    path = copy_of(twin, tmp_path, "unopenable.tiff")
    with tifffile.TiffFile(path, mode="r+") as tif:
        for page in tif.pages:
            tags: Any = page
            tags.tags["Compression"].overwrite(52479)
    with pytest.raises(SlideError) as caught:
        open_slide(path)
    assert caught.value.code == "unreadable"


def test_missing_and_forbidden(twin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SlideError) as caught:
        open_slide(tmp_path / "nothing.svs")
    assert caught.value.code == "missing"
    real = builtins.open

    def refuse(file: Any, *args: Any, **kwargs: Any) -> Any:
        if str(file) == str(twin):
            raise PermissionError(13, "Permission denied", str(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", refuse)  # chmod would not stop an administrator
    with pytest.raises(SlideError, match="chmod") as caught:
        open_slide(twin)
    assert caught.value.code == "permission"


def test_a_file_replaced_while_open(twin: Path, picture: NDArray[np.uint8], tmp_path: Path) -> None:
    path = copy_of(twin, tmp_path)
    sound = by_openslide(twin)
    with open_slide(path) as slide:
        assert not slide.changed()
        other = write_twin(tmp_path / "other.svs", 255 - picture)
        os.replace(other, path)
        assert slide.changed()
        # The open descriptor still reads the old file, never a mixture.
        np.testing.assert_array_equal(slide.read(0, 0, slide.size), sound)
