"""Damaged and hostile files end in the documented error: no abort, bounded memory, no other file touched."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from hcmae.config import Geometry, SlideSettings
from hcmae.slides import probe, tiff, tissue
from hcmae.slides.coords_files import import_coords
from hcmae.slides.process import process_slide
from hcmae.slides.reader import SlideError, TileError, open_slide
from hcmae.slides.store import SlideStore, verify_store, write_vectors
from hcmae.slides.tiff import TiffError, read_pages
from hcmae.slides.tiles import jpeg2000_size, unpack_tile
from tests.support.twin_slides import paint, write_twin

pytestmark = pytest.mark.filterwarnings("ignore:.*not say (its|their) resolution")
GEOMETRY = Geometry(region=128, patch=32, cell=8, thumbnail=16)
# What a reader may take for a file of a few hundred kilobytes.
BOUND = 64 << 20
EXAMPLES = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Small sound files: three kinds of TIFF and a store with vectors."""
    folder = tmp_path_factory.mktemp("sound")
    picture = paint(384, 384, seed=2)
    slide = write_twin(folder / "jpeg.svs", picture, tile=128, levels=(4,))
    write_twin(folder / "deflate.tif", picture, tile=128, levels=(2,), compression="deflate", description="")
    write_twin(folder / "big.svs", picture, tile=128, levels=(), compression="lzw", bigtiff=True)
    store = folder / "store.h5"
    outcome = process_slide(slide, store, GEOMETRY, SlideSettings(preset="synthetic"), geojson=False)
    write_vectors(store, "region_vectors", np.ones((outcome.regions, 4), np.float32), "w")
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def tag_places(data: bytes) -> list[int]:
    """Where the entries of the first directory of a classic TIFF begin."""
    start = struct.unpack_from("<I", data, 4)[0]
    return [start + 2 + 12 * i for i in range(struct.unpack_from("<H", data, start)[0])]


def with_tag(path: Path, tag: str, value: Any) -> Path:
    with tifffile.TiffFile(path, mode="r+b") as tif:
        page: Any = tif.pages[0]
        page.tags[tag].overwrite(value)
    return path


# --- tags -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tag", "value", "said"),
    [
        ("TileWidth", 1 << 20, "tiles of 1048576 x 128"),
        ("ImageWidth", (1 << 31) - 1, "an image of 2147483647 x 384"),
        ("ImageLength", 0, "an image of 384 x 0"),
        ("TileLength", 0, "tiles of 128 x 0"),
        ("SamplesPerPixel", 60000, "60000 samples"),
    ],
)
def test_tags_that_claim_what_no_slide_has_are_refused_before_a_decoder_sees_them(
    tag: str, value: int, said: str, files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSlide's allocator ends the whole program where a tile of 2^40 pixels is refused."""
    path = tmp_path / "a.svs"
    path.write_bytes(files["jpeg.svs"])
    with_tag(path, tag, value)
    monkeypatch.setattr("openslide.OpenSlide", lambda *_: pytest.fail("OpenSlide saw the file"))
    with pytest.raises(SlideError, match=said) as caught:
        open_slide(path)
    assert caught.value.code == "unreadable"


def test_one_tag_that_cannot_be_read_does_not_switch_the_checks_off(
    files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSlide would open the file and ask for the three gigabytes that a tile is said to have."""
    data = bytearray(files["jpeg.svs"])
    entries = {struct.unpack_from("<H", data, place)[0]: place for place in tag_places(files["jpeg.svs"])}
    struct.pack_into("<I", data, struct.unpack_from("<I", data, entries[325] + 8)[0], 3 << 30)  # length of a tile
    path = tmp_path / "a.svs"
    path.write_bytes(data)
    with pytest.raises(SlideError, match="a packed tile of 3221225472 bytes"):
        open_slide(path)
    struct.pack_into("<I", data, entries[282] + 8, len(data) + 100)  # the resolution lies beyond the end
    path.write_bytes(data)
    monkeypatch.setattr("hcmae.slides.handles.OpenSlideHandle.read", lambda *_: pytest.fail("OpenSlide read a tile"))
    monkeypatch.setattr("hcmae.slides.reader.dies_of", lambda _: "")
    with pytest.raises(SlideError, match="ends inside its directories") as caught:
        open_slide(path)
    assert caught.value.code == "truncated"


def test_no_more_is_read_than_the_file_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = struct.pack("<HHII", 324, 4, 0x3FFFFFFF, 8)  # four gigabytes of offsets
    path = tmp_path / "a.tif"
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, 1) + entry + b"\0\0\0\0")
    with pytest.raises(TiffError, match="ends inside"):
        read_pages(path)
    path.write_bytes(b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHII", 324, 4, 1000, 26) + b"\0" * 5000)
    monkeypatch.setattr(tiff, "_MAX_TAG_BYTES", 2000)
    with pytest.raises(TiffError, match="directories of more than"):
        read_pages(path)


def test_packed_tiles_do_not_unfold_beyond_their_tile() -> None:
    import zlib

    from hcmae.slides.tiles import Level, TileTable

    nothing = np.zeros(1, np.int64)
    for compression in (5, 8, 50000):
        table = TileTable(Level(64, 64, 1.0, 64, 64), 1, 1, nothing, nothing, compression, False)
        codecs = pytest.importorskip("imagecodecs")
        pack = {5: codecs.lzw_encode, 8: zlib.compress, 50000: codecs.zstd_encode}[compression]
        tile = np.arange(64 * 64 * 3, dtype=np.uint8)
        np.testing.assert_array_equal(unpack_tile(pack(tile.tobytes()), table).ravel(), tile)
        bomb = pack(bytes(32 << 20))
        tracemalloc.start()
        try:
            unpack_tile(bomb, table)
        except Exception:  # zstd refuses, the others stop at the end of the tile
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < 1 << 20


def test_a_jpeg2000_stream_says_its_size_first() -> None:
    head = b"\xff\x4f\xff\x51\x00\x2f\x00\x00" + struct.pack(">IIII", 65536, 300, 0, 44)
    assert jpeg2000_size(head) == (65536, 256)
    with pytest.raises(ValueError, match="does not start as"):
        jpeg2000_size(b"\xff\x4f")


def test_a_file_that_kills_its_reader_is_opened_in_a_process_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.mrxs"
    path.write_bytes(b"anything")
    monkeypatch.setattr(probe, "_CHILD", "import os, sys; sys.stderr.write('failed to allocate\\n'); os.abort()")
    with pytest.raises(SlideError, match=r"dies \(failed to allocate\)") as caught:
        open_slide(path)
    assert caught.value.code == "unreadable"
    # Asked once for a file, until it changes.
    monkeypatch.setattr(probe, "_try", lambda _: pytest.fail("tried again"))
    with pytest.raises(SlideError, match="dies"):
        open_slide(path)


# --- stores and coordinates -----------------------------------------------------------------------------------------


def hostile(path: Path, kind: str, secret: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["thumbnails"]
        if kind == "external link":
            file["thumbnails"] = h5py.ExternalLink(str(secret), "/secret")
        elif kind == "soft link":
            file["thumbnails"] = h5py.SoftLink("/coords")
        elif kind == "raw file":
            file.create_dataset("thumbnails", (10,), "u1", external=[(str(secret), 0, 10)])
        elif kind == "virtual":
            layout = h5py.VirtualLayout((10,), "u1")
            layout[:] = h5py.VirtualSource(str(secret), "secret", (10,))
            file.create_virtual_dataset("thumbnails", layout)
        elif kind == "group":
            file.create_group("thumbnails")
        else:
            file.create_dataset("thumbnails", (1 << 40,), "u1", chunks=(1 << 20,))


@pytest.mark.parametrize("kind", ["external link", "soft link", "raw file", "virtual", "group", "terabytes"])
def test_stores_that_lead_out_of_themselves_are_refused(kind: str, files: dict[str, bytes], tmp_path: Path) -> None:
    path, secret = tmp_path / "a.h5", tmp_path / "secret.h5"
    path.write_bytes(files["store.h5"])
    with h5py.File(secret, "w") as file:
        file["secret"] = np.arange(10, dtype=np.uint8)
    hostile(path, kind, secret)
    with pytest.raises(ValueError, match=r"a\.h5"):
        _ = SlideStore(path).thumbnails
    assert verify_store(path) != []
    with h5py.File(path, "r+") as file:
        del file["coords"]
        file.move("thumbnails", "coords")
    with pytest.raises(ValueError, match=r"a\.h5"):
        import_coords(path)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key_parts", 1.5), ("key_parts", "[1]"), ("key_parts", "[" * 10_000), ("slide_path", 3.0), ("slide_id", 7),
        ("slide_relative", np.zeros(2)), ("geometry", "{"), ("geometry", "[]"), ("side", "x"), ("side", 0),
        ("side", -4), ("width", np.zeros(3)), ("mpp", float("nan")), ("mpp", h5py.Empty("f4")), ("bad_regions", -1),
        ("side", None), ("slide_path", None), ("geometry", None),
    ],
)  # fmt: skip
def test_an_attribute_of_another_kind_or_none_is_a_fault_that_names_the_store(
    name: str, value: Any, files: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(files["store.h5"])
    with h5py.File(path, "r+") as file:
        del file.attrs[name]
        if value is not None:
            file.attrs[name] = value
    store = SlideStore(path)
    with pytest.raises(ValueError, match=rf"a\.h5: .*'{name}'|a\.h5: not a slide store"):
        _ = store.key_parts, store.slide_path, store.slide_id, store.geometry, store.side, store.attrs["mpp"]
    if name not in ("key_parts", "slide_path"):  # which nobody needs to read the regions
        assert verify_store(path) != []


def test_a_place_that_no_disk_takes_is_not_where_the_slide_lies(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(files["store.h5"])
    with h5py.File(path, "r+") as file:
        was, file.attrs["slide_relative"] = file.attrs["slide_path"], "[" * 5000
    assert SlideStore(path).slide_path == Path(was)


def test_coordinates_of_one_number_are_a_fault_that_names_the_store(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(files["store.h5"])
    with h5py.File(path, "r+") as file:
        del file["coords"]
        file["coords"] = np.int32(7)
    with pytest.raises(ValueError, match=r"a\.h5: 'coords' has 0 dimensions"):
        SlideStore(path)


def test_attributes_travel_with_the_store_to_another_process(files: dict[str, bytes], tmp_path: Path) -> None:
    import pickle

    path = tmp_path / "a.h5"
    path.write_bytes(files["store.h5"])
    store = SlideStore(path)
    attributes = store.attrs
    again = pickle.loads(pickle.dumps(store))
    assert again.attrs == attributes
    with pytest.raises(ValueError, match="has no attribute 'nothing'"):
        _ = again.attrs["nothing"]


def test_a_sound_store_has_its_one_link(files: dict[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(files["store.h5"])
    with h5py.File(path) as file:
        assert isinstance(file.get("features", getlink=True), h5py.SoftLink)
    assert verify_store(path) == []
    assert len(import_coords(path)) == len(SlideStore(path))


# --- masks ----------------------------------------------------------------------------------------------------------


def square(*corner: float) -> Any:
    x, y = corner
    return [[x, y], [x + 8, y], [x + 8, y + 8], [x, y + 8], [x, y]]


@pytest.mark.parametrize(
    ("geometry", "said"),
    [
        ({"type": "Polygon", "coordinates": [square(1e12, 0)]}, "feature 0 has a vertex beyond"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [float("nan"), 1], [1, 1]]]}, "feature 0 has a vertex beyond"),
        ({"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}, "feature 0 has a ring that is no list"),
        ({"type": "Polygon", "coordinates": 7}, "feature 0 is no polygon"),
        ({"type": "Polygon"}, "feature 0 is no polygon"),
        ({"type": "MultiPolygon", "coordinates": [[["a"]]]}, "feature 0"),
        (["Polygon"], "feature 0 is no polygon"),
    ],
)
def test_masks_of_other_programs_end_in_an_error_that_names_the_feature(
    geometry: Any, said: str, tmp_path: Path
) -> None:
    path = tmp_path / "m.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [{"geometry": geometry}]}))
    with pytest.raises(ValueError, match=said) as caught:
        tissue.read_geojson(path, (16, 16), 4)
    assert str(path) in str(caught.value)


def test_masks_have_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.geojson"
    features = [{"geometry": {"type": "Polygon", "coordinates": [square(x, 0)]}} for x in range(5)]
    path.write_text(json.dumps({"features": features}))
    monkeypatch.setattr(tissue, "MAX_VERTICES", 20)
    with pytest.raises(ValueError, match="feature 4 goes beyond 20 vertices"):
        tissue.read_geojson(path, (16, 16), 4)
    monkeypatch.setattr(tissue, "MAX_GEOJSON_BYTES", 10)
    with pytest.raises(ValueError, match="simplify"):
        tissue.read_geojson(path, (16, 16), 4)
    monkeypatch.undo()
    path.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="not valid GeoJSON"):
        tissue.read_geojson(path, (16, 16), 4)
    path.write_text('{"features": 3}')
    with pytest.raises(ValueError, match="no list of features"):
        tissue.read_geojson(path, (16, 16), 4)


@given(st.lists(st.tuples(*[st.integers(-40, 160)] * 4), min_size=2, max_size=5), st.sampled_from([1, 3, 8]))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_a_piece_with_holes_is_drawn_as_on_a_sheet_of_its_own(
    boxes: list[tuple[int, int, int, int]], downsample: int
) -> None:
    """Contours are drawn on pieces of their own size; the plain way is one whole sheet each."""
    contours = []
    for x, y, w, h in boxes:
        outer = np.array([[x, y], [x + abs(w), y], [x + abs(w), y + abs(h)], [x - 5, y + abs(h) // 2]])
        hole = outer.mean(0).astype(np.int64) + np.array([[-4, -4], [4, -4], [4, 4], [-4, 4]])
        contours.append(tissue.Contour(outer, (hole,)))
    plain = np.zeros((50, 60), bool)
    for contour in contours:
        plain |= tissue.rasterise([contour], plain.shape, downsample)
    np.testing.assert_array_equal(tissue.rasterise(contours, plain.shape, downsample), plain)


# --- mutated files --------------------------------------------------------------------------------------------------

# (place as a share of the file, bytes): anything anywhere.
_BYTES = st.tuples(st.just("bytes"), st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=12))
# (number of the tag, field of the entry, value): the directory, with what breaks arithmetic.
_EXTREMES = st.sampled_from([0, 1, 2, 255, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1])
_TAG = st.tuples(st.just("tag"), st.integers(0, 40), st.sampled_from([("<H", 2), ("<I", 4), ("<I", 8)]), _EXTREMES)
_CUT = st.tuples(st.just("cut"), st.floats(0.01, 1))
MUTATIONS = st.lists(st.one_of(_BYTES, _TAG, _CUT), min_size=1, max_size=4)


def mutated(data: bytes, changes: list[Any], tags: list[int]) -> bytes:
    out = bytearray(data)
    for kind, *what in changes:
        if kind == "bytes":
            place = int(what[0] * len(out))
            out[place : place + len(what[1])] = what[1]
        elif kind == "tag" and tags:
            number, (form, field), value = what
            place = tags[number % len(tags)] + field
            if place + 4 <= len(out):
                struct.pack_into(form, out, place, value & 0xFFFF if form == "<H" else value)
        elif kind == "cut":
            del out[max(1, int(what[0] * len(out))) :]
    return bytes(out)


def try_slide(path: Path) -> None:
    """Everything that is done with a slide: the tags, an overview, a region, a level."""
    try:
        with open_slide(path) as slide:
            if max(slide.size) > 1 << 14:
                return  # plausible, and an overview of that takes its time
            slide.survey(8)
            slide.thumbnail(64)
            for level in range(len(slide.levels)):
                slide.read(100, 60, (200, 150), level, on_error="white")
            slide.read(0, 0, (64, 64))
    except (SlideError, TileError):
        pass


def try_store(path: Path) -> None:
    verify_store(path)
    try:
        import_coords(path)
        store = SlideStore(path)
        _ = store.coords, store.thumbnails, store.tissue_fraction, store.content, store.vector_content
        _ = store.key_parts, store.slide_path, store.geometry, store.side
    except ValueError:
        pass


def traced(function: Any, path: Path) -> int:
    tracemalloc.start()
    try:
        function(path)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["jpeg.svs", "deflate.tif"])
@given(changes=MUTATIONS)
@example(changes=[("tag", 9, ("<I", 8), 1 << 20), ("tag", 10, ("<I", 8), 1 << 20)])
@EXAMPLES
def test_mutated_slides_end_in_a_value_or_the_documented_error(
    name: str, changes: list[Any], files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A process for each of a thousand files would take the time; what it keeps from us has a test of its own.
    with monkeypatch.context() as patch:
        patch.setattr("hcmae.slides.reader.dies_of", lambda _: "not tried here")
        path = tmp_path / name
        path.write_bytes(mutated(files[name], changes, tag_places(files[name])))
        assert traced(try_slide, path) < BOUND


@pytest.mark.slow
@given(changes=st.lists(_BYTES, min_size=1, max_size=3))
@EXAMPLES
def test_mutated_stores_end_in_a_value_or_the_documented_error(
    changes: list[Any], files: dict[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "a.h5"
    path.write_bytes(mutated(files["store.h5"], changes, []))
    before: set[Path] = set(tmp_path.iterdir())
    assert traced(try_store, path) < BOUND
    assert set(tmp_path.iterdir()) == before
