"""MIRAX, VMS and NDPI whose fields lie: refused before OpenSlide sees them, or read without harm.

The stand-ins are made by hand and opened by OpenSlide as what they stand for. What only a process of its own may be
asked stands in tests/benchmarks/test_fuzz.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from hcmae.slides import probe
from hcmae.slides.handles import seen_levels, seen_properties
from hcmae.slides.index import implausible_index
from hcmae.slides.reader import SlideError, open_slide
from hcmae.slides.tiles import Level, implausible_levels
from tests.support.hostile_slides import write_mrxs, write_ndpi
from tests.support.twin_slides import paint

MOST = (1 << 31) - 1


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return paint(256, 256, seed=2)


@pytest.fixture(autouse=True)
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the process that opens such files first keeps from us has tests of its own."""
    monkeypatch.setattr("hcmae.slides.reader.dies_of", lambda _: "")


def refused(path: Path, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("openslide.OpenSlide", lambda *_: pytest.fail("OpenSlide saw the file"))
    with pytest.raises(SlideError, match=said) as caught:
        open_slide(path)
    assert caught.value.code == "unreadable"


@pytest.mark.parametrize("kind", ["mrxs", "ndpi"])
def test_stand_ins_are_read_by_openslide_as_what_they_stand_for(
    kind: str, picture: NDArray[np.uint8], tmp_path: Path
) -> None:
    path = {"mrxs": write_mrxs, "ndpi": write_ndpi}[kind](tmp_path / f"a.{kind}", picture)
    with open_slide(path) as slide:
        assert slide.properties["openslide.vendor"] == {"mrxs": "mirax", "ndpi": "hamamatsu"}[kind]
        assert (slide.size, slide.mpp) == ((256, 256), 0.5)
        # JPEG, and one pixel to the next where a tile ends.
        assert np.abs(slide.read(60, 70, (150, 150)).astype(int) - picture[70:220, 60:210]).mean() < 6


@pytest.mark.parametrize("key", ["FILE_0", "INDEXFILE"])
@pytest.mark.parametrize("form", ["../b/{}", "{absolute}", "..\\b\\{}", ".."])
def test_a_mirax_index_that_names_files_elsewhere_is_refused(
    key: str, form: str, picture: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSlide would read the pixels of another slide, or of any file at all, as this one's."""
    write_mrxs(tmp_path / "b.mrxs", picture)
    name = {"FILE_0": "Data0000.dat", "INDEXFILE": "Index.dat"}[key]
    path = write_mrxs(
        tmp_path / "a.mrxs", picture, ini={key: form.format(name, absolute=(tmp_path / "b" / name).as_posix())}
    )
    refused(path, "its index names '.*', which is not in its own folder", monkeypatch)


@pytest.mark.parametrize("name", ["a.vms", "a.svs", "a.tif"])
@pytest.mark.parametrize("key", ["ImageFile", "ImageFile(1,0)", "MapFile", "OptimisationFile", "MacroImage"])
def test_a_vms_index_that_names_files_elsewhere_is_refused_whatever_its_suffix(
    name: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).write_text(f"[Virtual Microscope Specimen]\nNoJpegColumns=1\n {key} = ../other/b.jpg\r\n")
    refused(tmp_path / name, "its index names '../other/b.jpg'", monkeypatch)


@pytest.mark.parametrize(
    "ini",
    [
        {"IMAGENUMBER_X": MOST}, {"IMAGENUMBER_X": 20_000, "IMAGENUMBER_Y": 20_000}, {"HIER_0_COUNT": MOST},
        {"FILE_COUNT": MOST},
    ],
)  # fmt: skip
def test_an_index_that_counts_more_than_a_slide_has_is_refused(
    ini: Mapping[str, object], picture: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory for every image that is said to be there: three gigabytes for a file of kilobytes."""
    refused(write_mrxs(tmp_path / "a.mrxs", picture, ini=ini), "its index says", monkeypatch)


@pytest.mark.parametrize("overlap", ["nan", "1e308"])
def test_levels_without_a_size_are_refused(overlap: str, picture: NDArray[np.uint8], tmp_path: Path) -> None:
    path = write_mrxs(tmp_path / "a.mrxs", picture, ini={"OVERLAP_X": overlap})
    with pytest.raises(SlideError, match=r"levels of .* pixels; damaged or hostile") as caught:
        open_slide(path)
    assert caught.value.code == "unreadable"


def test_properties_that_have_a_name_and_no_value_are_left_out() -> None:
    """An index of VMS with an empty key gives OpenSlide such a one."""

    class Properties(dict[str, str]):
        def __getitem__(self, name: str) -> str:
            if not name:
                raise KeyError(name)
            return super().__getitem__(name)

    class Handle:
        properties = Properties({"": "", "openslide.level[0].tile-width": "64", "openslide.level[0].tile-height": "x"})
        level_dimensions, level_downsamples = ((9, 8),), (1.0,)

    assert set(seen_properties(Handle())) == {"openslide.level[0].tile-width", "openslide.level[0].tile-height"}
    assert seen_levels(Handle()) == (Level(9, 8, 1.0, 64, 0),)


def test_levels_that_can_be_true_are_not() -> None:
    assert implausible_levels((Level(200_000, 100_000, 1.0), Level(50, 25, 4000.0))) == ""
    assert implausible_levels(()) == "levels of no pixels"
    assert implausible_levels((Level(10, 10, float("nan")),)) != ""


def test_sound_indices_and_other_files_are_plausible(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    assert implausible_index(write_mrxs(tmp_path / "a.mrxs", picture)) == ""
    assert implausible_index(write_ndpi(tmp_path / "a.ndpi", picture)) == ""
    assert implausible_index(tmp_path / "none.mrxs") == ""
    (tmp_path / "a.vms").write_text("[Virtual Microscope Specimen]\nImageFile=a.jpg\nMapFile=a(1,0).jpg\nNoLayers=1\n")
    assert implausible_index(tmp_path / "a.vms") == ""


@pytest.mark.filterwarnings("ignore")
def test_tiles_larger_than_the_memory_kill_only_the_process_that_tries_first(
    picture: NDArray[np.uint8], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcmae.slides.reader.dies_of", probe.dies_of)
    path = write_mrxs(tmp_path / "a.mrxs", picture, ini={"DIGITIZER_WIDTH": MOST})
    with pytest.raises(SlideError, match="a program that opens it with OpenSlide dies") as caught:
        open_slide(path)
    assert caught.value.code == "unreadable"
