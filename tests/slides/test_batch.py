"""From slides to stores and streams: outcomes with reasons, resume, kill -9, other tools' files, exact streams."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from hcmae.config import Geometry, SlideSettings
from hcmae.slides import batch, journal, process, reader
from hcmae.slides.batch import process_slides, summary
from hcmae.slides.coords_files import import_coords
from hcmae.slides.process import REASONS, process_slide
from hcmae.slides.reader import SlideError
from hcmae.slides.regions import split_patches, thumbnail
from hcmae.slides.store import SlideStore, export_features, verify_store, write_vectors
from hcmae.slides.store_reading import iter_regions
from hcmae.slides.stream import PatchStream, RegionCache, RegionSource, RegionStream
from tests.support.twin_slides import paint, write_twin

pytestmark = pytest.mark.filterwarnings("ignore:.*not say (its|their) resolution")
GEOMETRY = Geometry(region=128, patch=32, cell=8, thumbnail=16)
SETTINGS = SlideSettings(preset="synthetic")


@pytest.fixture(scope="module")
def picture() -> NDArray[np.uint8]:
    return paint(900, 1100, seed=5)


@pytest.fixture(scope="module")
def slide(picture: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_twin(tmp_path_factory.mktemp("slides") / "TCGA-XX-0001.svs", picture)


@pytest.fixture(scope="module")
def store(slide: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stores") / "one.h5"
    outcome = process_slide(slide, path, GEOMETRY, SETTINGS, slide_id="one")
    assert (outcome.status, outcome.reader) == ("ok", "direct"), outcome
    return path


def broken_tile(slide: Path, target: Path, *indices: int) -> Path:
    target.write_bytes(slide.read_bytes())
    with tifffile.TiffFile(target) as tif:
        page: Any = tif.pages[0]
        places = [page.dataoffsets[i] for i in indices]
    with open(target, "r+b") as handle:
        for place in places:
            handle.seek(place)
            handle.write(b"\x00" * 64)
    return target


def test_store_holds_what_the_slide_shows(slide: Path, store: Path, picture: NDArray[np.uint8]) -> None:
    opened = SlideStore(store)
    assert verify_store(store) == []
    assert opened.geometry == GEOMETRY
    assert opened.slide_path == slide
    assert len(opened) == len(opened.coords) > 20
    assert (opened.tissue_fraction >= SETTINGS.min_tissue).all()
    seen = list(iter_regions(store, workers=3))
    assert [index for index, _ in seen] == list(range(len(opened)))
    for index, region in seen:
        np.testing.assert_array_equal(opened.thumbnails[index], thumbnail(region, 16))
        x, y = opened.coords[index]
        assert np.abs(region.astype(int) - picture[y : y + 128, x : x + 128]).mean() < 12
    assert [index for index, _ in iter_regions(store, indices=[4, 2])] == [4, 2]
    attrs = opened.attrs
    assert attrs["mpp"] == 0.5
    assert attrs["reader"] == "direct"
    assert json.loads(attrs["versions"])["hcmae_core"]


def test_a_second_run_skips_and_new_settings_do_not(slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    first = process_slide(slide, path, GEOMETRY, SETTINGS)
    before = path.read_bytes()
    second = process_slide(slide, path, GEOMETRY, SETTINGS)
    assert (second.status, second.reason, second.regions) == ("skipped", "up_to_date", first.regions)
    assert path.read_bytes() == before
    third = process_slide(slide, path, GEOMETRY, SlideSettings(preset="synthetic", min_tissue=0.99))
    assert third.status == "ok"
    assert third.regions < first.regions
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.h5", "a.regions.geojson", "a.tissue.geojson"]


def test_a_half_written_store_is_made_again(slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    process_slide(slide, path, GEOMETRY, SETTINGS)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert verify_store(path) != []
    assert process_slide(slide, path, GEOMETRY, SETTINGS).status == "ok"
    assert path.read_bytes() == whole


def test_resume_inside_a_slide(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop after ten regions, damage the last record, go on: nine are kept and the store has the same bytes."""
    reference, path = tmp_path / "ref" / "a.h5", tmp_path / "new" / "a.h5"
    total = process_slide(slide, reference, GEOMETRY, SETTINGS).regions
    real, calls = process.one_region, []

    def stop(*args: Any) -> Any:
        calls.append(1)
        if len(calls) > 10:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(process, "one_region", stop)
    with pytest.raises(KeyboardInterrupt):
        process_slide(slide, path, GEOMETRY, SETTINGS)
    monkeypatch.setattr(process, "one_region", real)
    journal = path.parent / ".a.journal"
    with open(journal, "r+b") as handle:
        handle.seek(-5, os.SEEK_END)
        handle.write(b"xxxxx")
    assert not path.exists()
    outcome = process_slide(slide, path, GEOMETRY, SETTINGS)
    assert (outcome.status, outcome.resumed, outcome.regions) == ("ok", 9, total)
    assert not journal.exists()
    with h5py.File(reference) as a, h5py.File(path) as b:
        for name in a:
            np.testing.assert_array_equal(a[name][:], b[name][:])


@pytest.mark.parametrize("place", ["before the store", "after the store"])
def test_killed_around_the_store(place: str, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The two moments at the end of a slide: nothing is missing and nothing is left over after the next run."""
    path = tmp_path / "a.h5"
    process_slide(slide, path, GEOMETRY, SETTINGS)
    reference = {item.name: item.read_bytes() for item in tmp_path.iterdir()}
    for name in reference:
        (tmp_path / name).unlink()

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    target = (process, "write_store") if place == "before the store" else (journal.Journal, "remove")
    monkeypatch.setattr(*target, stop)
    with pytest.raises(KeyboardInterrupt):
        process_slide(slide, path, GEOMETRY, SETTINGS)
    monkeypatch.undo()
    assert (tmp_path / ".a.journal").exists()
    assert path.exists() == (place == "after the store")
    process_slide(slide, path, GEOMETRY, SETTINGS)
    assert {item.name: item.read_bytes() for item in tmp_path.iterdir()} == reference


def test_threads_give_the_same_bytes(slide: Path, tmp_path: Path) -> None:
    one, many = tmp_path / "a.h5", tmp_path / "b" / "a.h5"
    process_slide(slide, one, GEOMETRY, SETTINGS)
    (tmp_path / "b").mkdir()
    process_slide(slide, many, GEOMETRY, SETTINGS, workers=4)
    a, b = SlideStore(one), SlideStore(many)
    np.testing.assert_array_equal(a.coords, b.coords)
    np.testing.assert_array_equal(a.thumbnails, b.thumbnails)


# --- outcomes -------------------------------------------------------------------------------------------------------


def test_a_bad_tile_costs_its_regions(slide: Path, tmp_path: Path) -> None:
    path = broken_tile(slide, tmp_path / "bad.svs", 6)
    strict = process_slide(path, tmp_path / "a.h5", GEOMETRY, SlideSettings(preset="synthetic", max_bad_regions=0.01))
    assert (strict.status, strict.reason) == ("failed", "too_many_bad_regions")
    assert "max_bad_regions allows 1%" in strict.detail
    assert not (tmp_path / "a.h5").exists()
    outcome = process_slide(path, tmp_path / "a.h5", GEOMETRY, SlideSettings(preset="synthetic", max_bad_regions=0.2))
    whole = process_slide(slide, tmp_path / "b.h5", GEOMETRY, SETTINGS)
    assert outcome.status == "ok"
    assert outcome.bad_regions == 4  # a tile of 256 holds four regions of 128
    assert outcome.regions == whole.regions - 4
    coords = SlideStore(tmp_path / "a.h5").coords
    assert not ((coords[:, 0] // 256 == 1) & (coords[:, 1] // 256 == 1)).any()


def test_every_empty_or_failed_slide_has_a_reason(slide: Path, picture: NDArray[np.uint8], tmp_path: Path) -> None:
    white = write_twin(tmp_path / "white.svs", np.full((400, 400, 3), 244, np.uint8))
    tiny = write_twin(tmp_path / "tiny.svs", picture[:100, :100], levels=())
    half = tmp_path / "half.svs"
    half.write_bytes(slide.read_bytes()[:200_000])
    text = tmp_path / "text.svs"
    text.write_text("hello")
    cases = {
        "no_tissue": (white, SETTINGS),
        "too_small": (tiny, SETTINGS),
        "no_region_passes": (slide, SlideSettings(preset="synthetic", min_tissue=1.0, pad_edges=True)),
        "truncated": (half, SETTINGS),
        "unreadable": (text, SETTINGS),
        "missing": (tmp_path / "gone.svs", SETTINGS),
    }
    big = Geometry(region=1024, patch=256, cell=16, thumbnail=64)
    for reason, (path, settings) in cases.items():
        geometry = big if reason == "no_region_passes" else GEOMETRY
        outcome = process_slide(path, tmp_path / f"{reason}.h5", geometry, settings)
        assert outcome.reason == reason, outcome
        assert outcome.reason in REASONS
        assert outcome.status == ("empty" if reason.startswith("no_") or reason == "too_small" else "failed")
        assert path.name in outcome.detail
        assert not (tmp_path / f"{reason}.h5").exists()


def test_disk_full(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(process, "write_store", full)
    outcome = process_slide(slide, tmp_path / "a.h5", GEOMETRY, SETTINGS)
    assert (outcome.status, outcome.reason) == ("failed", "disk_full")
    monkeypatch.undo()
    outcome = process_slide(slide, tmp_path / "a.h5", GEOMETRY, SETTINGS)
    assert (outcome.status, outcome.resumed) == ("ok", outcome.regions)


@pytest.mark.slow
def test_disk_full_for_real(slide: Path, tmp_path: Path) -> None:
    """A file system of 96 KiB: the outcome says so, nothing half-written stays, and with room it goes through."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        geometry = Geometry(region=128, patch=32, cell=8, thumbnail=64)
        outcome = process_slide(slide, small / "a.h5", geometry, SETTINGS)
        assert (outcome.status, outcome.reason) == ("failed", "disk_full"), outcome
        assert not (small / "a.h5").exists()
        subprocess.run(["mount", "-o", "remount,size=8m", str(small)], check=True)
        outcome = process_slide(slide, small / "a.h5", geometry, SETTINGS)
        assert outcome.status == "ok"
        assert verify_store(small / "a.h5") == []
    finally:
        subprocess.run(["umount", str(small)], check=True)


def test_disk_full_inside_a_quota(slide: Path, tmp_path: Path) -> None:
    """Needs no rights: the kernel's own limit on the size of a file stops the journal, then it is lifted."""
    resource = pytest.importorskip("resource")
    geometry = Geometry(region=128, patch=32, cell=8, thumbnail=64)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (96 << 10, hard))
    try:
        outcome = process_slide(slide, tmp_path / "a.h5", geometry, SETTINGS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)
    assert (outcome.status, outcome.reason) == ("failed", "disk_full"), outcome
    assert not (tmp_path / "a.h5").exists()
    outcome = process_slide(slide, tmp_path / "a.h5", geometry, SETTINGS)
    assert outcome.status == "ok"
    assert outcome.resumed > 0
    assert verify_store(tmp_path / "a.h5") == []


def test_permission_denied_by_the_kernel(slide: Path, tmp_path: Path) -> None:
    """An administrator may read everything, so the slide is opened as nobody by a child that gave its rights up."""
    path = tmp_path / "closed.svs"
    path.write_bytes(slide.read_bytes())
    path.chmod(0)
    if os.access(path, os.R_OK) and not hasattr(os, "setresuid"):
        pytest.skip("needs a user who may not read everything")
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if os.access(path, os.R_OK) and not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o001)  # nobody must get as far as the file
    read, write = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            try:
                reader.open_slide(path)
            except SlideError as error:
                os.write(write, f"{error.code} {error}".encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    assert answer.startswith("permission "), answer
    assert "closed.svs: permission denied" in answer


def test_odd_slides_go_through(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    """One level only, no resolution anywhere, and a region larger than the slide with and without padding."""
    odd = write_twin(tmp_path / "odd.svs", picture, levels=(), description="Aperio x\r\n")
    outcome = process_slide(odd, tmp_path / "a.h5", GEOMETRY, SETTINGS)
    assert (outcome.status, outcome.mpp) == ("ok", 0.25)
    assert SlideStore(tmp_path / "a.h5").attrs["mpp_source"] == "assumed"
    large = Geometry(region=2048, patch=256, cell=16, thumbnail=64)
    assert process_slide(odd, tmp_path / "b.h5", large, SETTINGS).reason == "too_small"
    padded = SlideSettings(preset="synthetic", pad_edges=True, min_tissue=0.1)
    assert process_slide(odd, tmp_path / "b.h5", large, padded).regions == 1
    _, region = next(iter_regions(tmp_path / "b.h5"))
    assert (region[900:] == 255).all()
    assert (region[:, 1100:] == 255).all()
    assert region[:900, :1100].min() < 150


def test_a_store_of_other_settings_does_not_outlive_them(slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    assert process_slide(slide, path, GEOMETRY, SETTINGS).status == "ok"
    big = Geometry(region=1024, patch=256, cell=16, thumbnail=64)
    assert process_slide(slide, path, big, SETTINGS).status == "empty"
    assert not path.exists()
    # A slide that was deleted after it had been cut keeps its store.
    moved = tmp_path / "s.svs"
    moved.write_bytes(slide.read_bytes())
    process_slide(moved, path, GEOMETRY, SETTINGS)
    moved.unlink()
    assert process_slide(moved, path, GEOMETRY, SETTINGS).reason == "missing"
    assert verify_store(path) == []


def test_temporary_files_of_the_dead_are_removed(slide: Path, tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead = [f".a.{gone.pid}-0123abcd.h5", f".a.tissue.{gone.pid}-0123abcd.geojson"]
    others = [f".a.{os.getpid()}-0123abcd.h5", f".ab.{gone.pid}-0123abcd.h5", ".a.notes.h5"]
    for name in dead + others:
        (tmp_path / name).touch()
    process_slide(slide, tmp_path / "a.h5", GEOMETRY, SETTINGS)
    left = {item.name for item in tmp_path.iterdir()}
    assert not left & set(dead)
    assert set(others) <= left


def test_a_slide_replaced_while_it_is_cut(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.svs"
    path.write_bytes(slide.read_bytes())
    real = process.one_region

    def swap(*args: Any) -> Any:
        other = tmp_path / "other.svs"
        other.write_bytes(slide.read_bytes())
        os.replace(other, path)
        return real(*args)

    monkeypatch.setattr(process, "one_region", swap)
    outcome = process_slide(path, tmp_path / "a.h5", GEOMETRY, SETTINGS)
    assert (outcome.status, outcome.reason) == ("failed", "changed")
    assert not (tmp_path / "a.h5").exists()


def test_two_processes_do_not_share_a_slide(slide: Path, tmp_path: Path) -> None:
    pytest.importorskip("fcntl")
    with journal.slide_lock(tmp_path / "a.h5"):
        outcome = process_slide(slide, tmp_path / "a.h5", GEOMETRY, SETTINGS)
    assert (outcome.status, outcome.reason) == ("skipped", "locked")
    assert process_slide(slide, tmp_path / "a.h5", GEOMETRY, SETTINGS).status == "ok"


def test_an_edited_mask_is_used(slide: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    whole = process_slide(slide, path, GEOMETRY, SETTINGS).regions
    ring = [[0, 0], [512, 0], [512, 900], [0, 900], [0, 0]]
    edited = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [ring]}, "properties": {}}
    (tmp_path / "a.tissue.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": [edited]}))
    outcome = process_slide(slide, path, GEOMETRY, SETTINGS)
    assert outcome.status == "ok"
    assert outcome.regions != whole
    store = SlideStore(path)
    assert store.attrs["tissue_source"] == "edited"
    assert (store.coords[:, 0] < 512).all()
    assert process_slide(slide, path, GEOMETRY, SETTINGS).status == "skipped"
    (tmp_path / "a.tissue.geojson").write_text("broken")
    outcome = process_slide(slide, path, GEOMETRY, SETTINGS)
    assert (outcome.status, outcome.reason) == ("failed", "bad_mask")


def test_fixed_resolution(slide: Path, tmp_path: Path) -> None:
    """At 1 um/px a region covers twice the level-0 pixels of a 0.5 um/px slide and is averaged down."""
    settings = SlideSettings(preset="synthetic", target_mpp=1.0)
    assert process_slide(slide, tmp_path / "a.h5", GEOMETRY, settings).status == "ok"
    store = SlideStore(tmp_path / "a.h5")
    assert store.side == 256
    _, region = next(iter_regions(tmp_path / "a.h5"))
    with store.open_slide() as opened:
        x, y = (int(v) for v in store.coords[0])
        full = opened.read(x, y, (256, 256))
    exact = full.reshape(128, 2, 128, 2, 3).mean(axis=(1, 3))
    assert np.abs(region - exact).max() <= 0.51


# --- many slides ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_batch_reports_every_slide_and_strict_stops(slide: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.svs"
    bad.write_text("no slide")
    jobs = [
        (slide, tmp_path / "s" / "a.h5", "a"),
        (bad, tmp_path / "s" / "b.h5", "b"),
        (slide, tmp_path / "s" / "c.h5"),
    ]
    frame = process_slides(jobs, GEOMETRY, SETTINGS, workers=2, progress=False)
    assert frame["slide"].tolist() == ["a", "b", "TCGA-XX-0001"]
    assert frame["status"].tolist() == ["ok", "failed", "ok"]
    assert frame["reason"].tolist() == ["", "unreadable", ""]
    table = summary(frame)
    assert table["status"].tolist() == ["failed", "ok"]
    assert table["slides"].tolist() == [1, 2]
    assert table["meaning"][0] == REASONS["unreadable"]
    assert table["regions"].sum() == frame["regions"].sum()
    with pytest.raises(SlideError, match=r"bad\.svs") as caught:
        process_slides(jobs, GEOMETRY, SETTINGS, workers=1, progress=False, strict=True)
    assert str(caught.value).count("bad.svs") == 1


def test_slow_formats_go_first(picture: NDArray[np.uint8], tmp_path: Path) -> None:
    """A byte of JPEG 2000 costs ten of JPEG."""
    jpeg = write_twin(tmp_path / "jpeg.svs", picture)
    wavelet = write_twin(tmp_path / "wavelet.svs", picture[:512, :512], compression="aperio_jp2000_rgb", levels=())
    assert wavelet.stat().st_size < jpeg.stat().st_size < batch.decoding_cost(wavelet)
    assert batch.decoding_cost(jpeg) == jpeg.stat().st_size
    assert batch.decoding_cost(tmp_path / "none.svs") == 0
    (tmp_path / "text.svs").write_text("hello")
    assert batch.decoding_cost(tmp_path / "text.svs") == 5


@pytest.mark.slow
def test_a_crashing_process_costs_one_slide(slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    killer = tmp_path / "sitecustomize.py"
    killer.write_text(
        "import sys, os\n"
        "if 'popen_loky' in ' '.join(sys.orig_argv):\n"
        "    import hcmae.slides.batch as b\n"
        "    real = b.process_slide\n"
        "    def die(path, *a, **k):\n"
        "        if 'crash' in str(path): os._exit(139)\n"
        "        return real(path, *a, **k)\n"
        "    b.process_slide = die\n"
    )
    crash = tmp_path / "crash.svs"
    crash.write_bytes(slide.read_bytes() + b"\0" * 10)  # the largest file is taken first
    repo = str(Path(__file__).resolve().parents[2])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), repo]))
    jobs = [(slide, tmp_path / "a.h5", "a"), (crash, tmp_path / "b.h5", "b"), (slide, tmp_path / "c.h5", "c")]
    frame = process_slides(jobs, GEOMETRY, SETTINGS, workers=2, progress=False)
    assert frame["status"].tolist() == ["ok", "failed", "ok"], frame[["status", "reason", "detail"]].to_dict()
    assert frame["reason"].tolist()[1] == "crashed"
    assert frame["final"].tolist() == [True, False, True]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_kill_at_random_moments_gives_the_same_bytes(workers: int, picture: NDArray[np.uint8], tmp_path: Path) -> None:
    """With two workers the parent alone is killed: its workers must go too, or the rerun would find locked slides."""
    for i in range(3):
        write_twin(tmp_path / f"s{i}.svs", np.roll(picture, 37 * i, axis=1))
    script = tmp_path / "go.py"
    script.write_text(
        "import sys, time\n"
        "from pathlib import Path\n"
        "from hcmae.config import Geometry, SlideSettings\n"
        "from hcmae.slides import batch, process\n"
        "real = process.one_region\n"
        "process.one_region = lambda *a: (time.sleep(0.004), real(*a))[1]\n"
        "if __name__ == '__main__':\n"
        "    print('go', flush=True)\n"
        f"    jobs = [(p, Path({str(tmp_path)!r}) / 'stores' / (p.stem + '.h5'), p.stem)"
        f" for p in sorted(Path({str(tmp_path)!r}).glob('*.svs'))]\n"
        "    g = Geometry(region=64, patch=32, cell=8, thumbnail=16)\n"
        "    s = SlideSettings(preset='synthetic')\n"
        f"    frame = batch.process_slides(jobs, g, s, workers={workers}, progress=False)\n"
        "    assert set(frame.reason) <= {'', 'up_to_date'}, frame\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[2])}

    def start() -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, str(script)], env=env, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "go\n"
        return process

    def digests() -> dict[str, bytes]:
        return {item.name: item.read_bytes() for item in sorted((tmp_path / "stores").iterdir())}

    begun = time.perf_counter()
    assert start().wait() == 0
    duration = time.perf_counter() - begun
    reference = digests()
    assert len(reference) == 9  # three stores, three masks, three region files; no journal, no lock
    for name in reference:
        (tmp_path / "stores" / name).unlink()
    dice, killed = random.Random(7), 0
    # Two workers spend most of the time on starting: kill later, and less often. One moment in each part of the time.
    moments, latest = (6, 0.25) if workers == 1 else (3, 0.8)
    for part in range(moments):
        process = start()
        time.sleep((part + dice.random()) / moments * latest * duration)
        killed += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert killed >= moments / 2
    assert start().wait() == 0
    assert digests() == reference  # and nothing else: no journal, no lock, no temporary file


# --- vectors and other tools ----------------------------------------------------------------------------------------


def test_vectors_are_added_atomically(
    store: Path, slide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.h5"
    process_slide(slide, path, GEOMETRY, SETTINGS)
    n = len(SlideStore(path))
    rng = np.random.default_rng(0)
    patches = rng.standard_normal((n, 16, 24)).astype(np.float16)
    vectors = rng.standard_normal((n, 24)).astype(np.float32)
    write_vectors(path, "patch_vectors", patches, "w1")
    write_vectors(path, "region_vectors", vectors, "w2")
    opened = SlideStore(path)
    assert opened.has_vectors("patch_vectors", "w1")
    assert not opened.has_vectors("patch_vectors", "w2")
    assert not opened.has_vectors("region_vectors_reg", "w1")
    np.testing.assert_array_equal(opened.vectors("patch_vectors"), patches)
    assert opened.vectors("patch_vectors").dtype == np.float16
    np.testing.assert_array_equal(opened.vectors("region_vectors", 3), vectors[3])
    with h5py.File(path) as file:
        np.testing.assert_array_equal(file["features"][:], vectors)
    with pytest.raises(ValueError, match="rows of 'region_vectors'"):
        write_vectors(path, "region_vectors", vectors[1:], "w3")
    with pytest.raises(KeyError, match="region_vectors_reg"):
        opened.vectors("region_vectors_reg")
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("killed here")))
    with pytest.raises(OSError, match="killed here"):
        write_vectors(path, "region_vectors", vectors * 2, "w3")
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert process_slide(slide, path, GEOMETRY, SETTINGS).status == "skipped"  # vectors do not make it stale
    write_vectors(path, "region_vectors", vectors * np.nan, "w4")
    assert any("not finite" in problem for problem in verify_store(path))


def test_several_networks_may_embed_at_once(store: Path, tmp_path: Path) -> None:
    """Each reads the store and writes it anew: nobody's vectors are lost."""
    path = tmp_path / "shared.h5"
    shutil.copyfile(store, path)
    rows = np.arange(len(SlideStore(path)) * 3, dtype=np.float32).reshape(-1, 3)
    names = [f"vectors_{number}" for number in range(8)]
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: write_vectors(path, name, rows + int(name[-1]), name), names))
    opened = SlideStore(path)
    for name in names:
        np.testing.assert_array_equal(opened.vectors(name), rows + int(name[-1]))


def test_clam_and_trident_files_in_and_out(store: Path, slide: Path, tmp_path: Path) -> None:
    opened = SlideStore(store)
    with h5py.File(store) as file:
        attrs = dict(file["coords"].attrs)
    assert (attrs["patch_size"], attrs["patch_level"]) == (128, 0)
    assert attrs["patch_size_level0"] == 128
    assert attrs["level0_magnification"] == 20
    np.testing.assert_array_equal(import_coords(store, side=128), opened.coords)
    theirs = tmp_path / "clam.h5"
    with h5py.File(theirs, "w") as file:
        dataset = file.create_dataset("coords", data=np.array([[128, 256], [300, 310]], np.int64))
        dataset.attrs["patch_size"] = 128
        dataset.attrs["patch_level"] = 0
    outcome = process_slide(slide, tmp_path / "a.h5", GEOMETRY, SETTINGS, coords_file=theirs)
    assert (outcome.status, outcome.regions) == ("ok", 2)
    assert SlideStore(tmp_path / "a.h5").coords.tolist() == [[128, 256], [300, 310]]
    with pytest.raises(ValueError, match="squares of 128 level-0 pixels, but the geometry wants 4096"):
        import_coords(theirs, side=4096)
    with pytest.raises(ValueError, match="not a coordinate file"):
        import_coords(slide)
    # TRIDENT's own attributes, and a square that lies on no part of this slide.
    trident = tmp_path / "trident.h5"
    with h5py.File(trident, "w") as file:
        dataset = file.create_dataset("coords", data=np.array([[0, 128], [99_999, 0]], np.int64))
        dataset.attrs["patch_size"] = 64
        dataset.attrs["patch_size_level0"] = 128
    assert import_coords(trident, side=128).tolist() == [[0, 128], [99_999, 0]]
    wrong = process_slide(slide, tmp_path / "t.h5", GEOMETRY, SETTINGS, coords_file=trident)
    assert (wrong.status, wrong.reason) == ("failed", "bad_mask")
    assert "1 of 2 squares lie outside" in wrong.detail
    vectors = np.arange(2 * 16 * 3, dtype=np.float16).reshape(2, 16, 3)
    write_vectors(tmp_path / "a.h5", "patch_vectors", vectors, "w")
    export_features(tmp_path / "a.h5", tmp_path / "out.h5", "patch_vectors")
    with h5py.File(tmp_path / "out.h5") as file:
        assert file["features"].shape == (32, 3)
        assert file["coords"][5].tolist() == [128 + 32, 256 + 32]
        assert file["coords"].attrs["patch_size_level0"] == 32


# --- streams --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stores(slide: Path, picture: NDArray[np.uint8], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("several")
    found = []
    for i in range(3):
        path = write_twin(folder / f"s{i}.svs", np.roll(picture, 50 * i, axis=0))
        outcome = process_slide(path, folder / f"s{i}.h5", GEOMETRY, SETTINGS)
        assert outcome.status == "ok"
        found.append(folder / f"s{i}.h5")
    return found


def keys(batches: list[dict[str, Any]]) -> list[tuple[int, int, int, int]]:
    return [
        (int(s), int(r), int(x), int(y))
        for b in batches
        for s, r, (x, y) in zip(b["slide"], b["region"], b["coords"], strict=True)
    ]


def test_patch_stream_shows_every_patch_once(stores: list[Path]) -> None:
    stream = PatchStream(stores, 100, seed=1, buffer_regions=5, workers=3)
    batches = list(stream)
    seen = keys(batches)
    total = sum(len(SlideStore(path)) for path in stores) * 16
    assert len(seen) == len(set(seen)) == total
    assert len(batches) == len(stream)
    assert seen != sorted(seen)
    patches = {}
    for path_index, path in enumerate(stores):
        for index, region in iter_regions(path):
            corner = SlideStore(path).coords[index]
            for k, patch in enumerate(split_patches(region, 32)):
                patches[path_index, index, corner[0] + k % 4 * 32, corner[1] + k // 4 * 32] = patch
    for b in batches:
        for key, image in zip(keys([b]), b["images"], strict=True):
            np.testing.assert_array_equal(image, patches[key])
    second = keys(list(stream))
    assert sorted(second) == sorted(seen)
    assert second != seen


@pytest.mark.parametrize("stop", [0, 1, 7, 12])
def test_streams_resume_exactly(stop: int, stores: list[Path]) -> None:
    def make(workers: int) -> PatchStream:
        return PatchStream(stores, 64, seed=3, buffer_regions=4, workers=workers, samples_per_epoch=700)

    reference = make(1)
    expected = [keys([b]) for _ in range(2) for b in reference]
    stream, got = make(3), []
    for b in stream:
        if len(got) == stop:
            break
        got.append(keys([b]))
    fresh = make(2)
    if stop:
        # The state of the moment after the last batch that was used.
        again = make(2)
        for count, _ in enumerate(again, start=1):
            if count == stop:
                break
        fresh.load_state_dict(json.loads(json.dumps(again.state_dict())))
    if fresh.position < 700:
        got += [keys([b]) for b in fresh]
    got += [keys([b]) for b in fresh]
    assert got == expected
    other = PatchStream(stores, 64, seed=4, buffer_regions=4, samples_per_epoch=700)
    with pytest.raises(ValueError, match="must be the same to resume"):
        other.load_state_dict(fresh.state_dict())


def test_ranks_share_the_regions(stores: list[Path]) -> None:
    parts = [
        keys(list(PatchStream(stores, 50, seed=2, buffer_regions=6, rank=rank, world_size=2))) for rank in range(2)
    ]
    assert len(parts[0]) == len(parts[1])
    assert not set(parts[0]) & set(parts[1])


def test_region_stream_brings_patch_vectors(stores: list[Path]) -> None:
    plain = next(iter(RegionStream(stores, 8, seed=0)))
    assert "patch_vectors" not in plain
    for path in stores:
        n = len(SlideStore(path))
        tags = np.arange(n, dtype=np.float16)[:, None, None] * np.ones((1, 16, 2), np.float16)
        write_vectors(path, "patch_vectors", tags, "w")
    stream = RegionStream(stores, 8, seed=0)
    count = 0
    for b in stream:
        assert b["regions"].shape[1:] == (128, 128, 3)
        np.testing.assert_array_equal(b["patch_vectors"][:, 0, 0], b["row"].astype(np.float16))
        count += len(b["index"])
    assert count == len(stream.source)
    ordered = RegionStream(stores, 8, seed=0, shuffle=False)
    assert np.concatenate([b["index"] for b in ordered]).tolist() == list(range(count))


def test_cache_keeps_pixels_and_its_limit(stores: list[Path], tmp_path: Path) -> None:
    size = 128 * 128 * 3
    cache = RegionCache(tmp_path / "cache", max_bytes=10 * size)
    source, plain = RegionSource(stores, cache=cache), RegionSource(stores)
    for number in range(15):
        np.testing.assert_array_equal(source.read(number), plain.read(number))
        time.sleep(0.002)  # distinct times of use
    files = list((tmp_path / "cache").glob("*.raw"))
    assert sum(item.stat().st_size for item in files) <= 10 * size
    assert len(files) == 10
    np.testing.assert_array_equal(source.read(14), plain.read(14))
    assert cache.hits == 1
    source.read(0)
    assert cache.misses == 16  # the first one had to make room


def test_cache_limit_holds_for_two_processes(tmp_path: Path) -> None:
    """Two caches on one folder, as two processes have them: each counts what the other wrote."""
    tile = np.zeros((64, 64, 3), np.uint8)
    caches = [RegionCache(tmp_path, max_bytes=6 * tile.nbytes) for _ in range(2)]
    for number in range(12):
        caches[number % 2].put((number,), tile)
        assert sum(item.stat().st_size for item in tmp_path.glob("*.raw")) <= 6 * tile.nbytes
        time.sleep(0.002)
    assert caches[0].get((11,), 64) is not None
    assert caches[0].get((0,), 64) is None


def test_streams_name_what_is_wrong(stores: list[Path], slide: Path, tmp_path: Path) -> None:
    other = Geometry(region=64, patch=32, cell=8, thumbnail=16)
    process_slide(slide, tmp_path / "o.h5", other, SETTINGS)
    with pytest.raises(ValueError, match="cut all slides with one geometry"):
        RegionSource([stores[0], tmp_path / "o.h5"])
    with pytest.raises(FileNotFoundError, match="cut the slide"):
        RegionSource([tmp_path / "none.h5"])
    moved = tmp_path / "moved.svs"
    moved.write_bytes(slide.read_bytes())
    process_slide(moved, tmp_path / "m.h5", GEOMETRY, SETTINGS)
    moved.unlink()
    with pytest.raises(SlideError, match="no such file"):
        next(iter_regions(tmp_path / "m.h5"))
