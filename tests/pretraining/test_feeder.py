"""The feeder against the streams: the same batches, in order, from anywhere, on any device, by threads or processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hcmae.config import Geometry, Optimisation, SlideSettings
from hcmae.pretraining import feeder, loop
from hcmae.pretraining.feeder import Feeder, Raw
from hcmae.slides.process import process_slide
from hcmae.slides.reader import SlideError, TileError
from hcmae.slides.store import SlideStore, write_vectors
from hcmae.slides.stream import PatchStream, RegionStream
from hcmae_core.mae_patch import MAEPatch
from hcmae_core.mae_region import MAERegion
from hcmae_core.transformer import Size
from tests.support.twin_slides import paint, write_twin

GEOMETRY = Geometry(region=128, patch=32, cell=8, thumbnail=16)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three slides cut into regions, with patch vectors that name their region."""
    folder, picture, found = tmp_path_factory.mktemp("fed"), paint(600, 700, seed=5), []
    for i in range(3):
        slide = write_twin(folder / f"s{i}.svs", np.roll(picture, 50 * i, axis=0))
        path = folder / f"s{i}.h5"
        assert process_slide(slide, path, GEOMETRY, SlideSettings(preset="synthetic")).status == "ok"
        tags = np.arange(len(SlideStore(path)), dtype=np.float16)[:, None, None]
        vectors = tags + np.linspace(0, 1, 16 * 24, dtype=np.float16).reshape(1, 16, 24)
        write_vectors(path, "patch_vectors", vectors.astype(np.float16), "w")
        found.append(path)
    return found


def make_stream(kind: str, stores: list[Path], **options: Any) -> Any:
    if kind == "patch":
        return PatchStream(stores, 24, seed=3, buffer_regions=4, drop_last=True, **options)
    reduce = 4 if kind == "reduced" else 1
    return RegionStream(stores, 6, seed=3, drop_last=True, reduce=reduce, **options)


def make_stage(kind: str, stream: Any, batch: int) -> loop.Stage:
    size = Size(24, 1, 2)
    model: Any = (
        MAEPatch(32, 8, encoder=size, decoder=size)
        if kind == "patch"
        else MAERegion(*((128, 32) if kind == "region" else (32, 8)), encoder=size, decoder=size)
    )
    return loop.Stage(
        kind, model, stream, Optimisation(batch_size=batch), 100, "images" if kind == "patch" else "regions",
        stain=0.1, with_vectors=kind != "patch",
    )  # fmt: skip


def fed(stage: loop.Stage, device: torch.device = CPU, **options: Any) -> Feeder:
    shards = loop._planned(stage.stream)
    assert shards is not None
    count = stage.settings.batch_size

    def finish(raw: Raw, number: int) -> dict[str, torch.Tensor]:
        return stage.augmented(raw.images, raw.vectors if stage.with_vectors else None, 9, number, slice(0, count))

    patch = 32 if stage.image_key == "images" else None
    return Feeder(
        shards, device, finish, stage.stream.state_dict, name=stage.name, sizes=(count,), patch=patch, **options
    )


def of_stream(stage: loop.Stage, count: int) -> list[tuple[dict[str, torch.Tensor], dict[str, Any], Any]]:
    """The batches as they were before there was a feeder: from the stream, augmented on the host."""
    size, out = stage.settings.batch_size, []
    while True:
        for batch in stage.stream:
            if len(batch["slide"]) == size:
                out.append((stage.prepare(batch, 9, len(out), slice(0, size)), batch, stage.stream.state_dict()))
            if len(out) == count:
                return out


def compare(make: Callable[[], Any], kind: str, batch: int, device: torch.device = CPU, **options: Any) -> None:
    """Batches, origins and positions of two epochs and a half."""
    expected = of_stream(make_stage(kind, make(), batch), 12)
    source = fed(make_stage(kind, make(), batch), device, **options)
    try:
        for inputs, origin, state in expected:
            found = source.next()
            assert found.state == state
            assert found.inputs.keys() == inputs.keys()
            for name, tensor in found.take().items():
                assert tensor.device.type == device.type
                assert torch.equal(tensor.cpu(), inputs[name]), name
            for name, values in found.origin.items():
                np.testing.assert_array_equal(values, origin[name])
    finally:
        source.close()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["patch", "region", "reduced"])
def test_batches_are_those_of_the_stream(kind: str, stores: list[Path]) -> None:
    samples = 100 if kind == "patch" else 20
    compare(lambda: make_stream(kind, stores, workers=3, samples_per_epoch=samples), kind, 24 if kind == "patch" else 6)


@pytest.mark.slow
def test_worker_processes_give_the_same(stores: list[Path]) -> None:
    compare(lambda: make_stream("patch", stores, workers=1), "patch", 24, decoders="processes")


def test_shards_side_by_side(stores: list[Path]) -> None:
    """Two shards in one process, an epoch that no batch divides: none of them lags behind the other."""

    def make() -> loop.ShardedStream:
        first = make_stream("patch", stores, rank=0, world_size=2, samples_per_epoch=124)
        second = make_stream("patch", stores, rank=1, world_size=2, samples_per_epoch=124, source=first.source)
        return loop.ShardedStream([first, second])

    compare(make, "patch", 48)
    stream = make()
    for _ in range(2):
        assert len(list(stream)) == 2
        assert len({shard.position for shard in stream.shards}) == 1


def test_resume_in_the_middle_of_an_epoch(stores: list[Path]) -> None:
    def make() -> PatchStream:
        return make_stream("patch", stores, workers=2, samples_per_epoch=200)

    expected = of_stream(make_stage("patch", make(), 24), 12)
    for stop in (1, 7, 8):
        stage = make_stage("patch", make(), 24)
        stage.stream.load_state_dict(expected[stop - 1][2])
        source = fed(stage, first=stop)
        try:
            for inputs, _, state in expected[stop:]:
                found = source.next()
                assert found.state == state
                assert torch.equal(found.inputs["images"], inputs["images"])
        finally:
            source.close()


def test_memory_is_reused_and_bounded(stores: list[Path]) -> None:
    """Many passes over few slots; the buffer holds a batch, three blocks and what is being decoded."""
    stage = make_stage("patch", make_stream("patch", stores, workers=2), 24)
    source = fed(stage)
    try:
        assert source.slots == 2 + 3 * 4 + 2 * 2
        assert source.buffer_bytes == source.slots * 128 * 128 * 3
        for _ in range(60):
            source.next()
        assert len(source._blocks) <= source.slots // 4 + 64
        assert sorted(source._free) == sorted(set(source._free))
    finally:
        source.close()


@pytest.mark.slow
@pytest.mark.parametrize("decoders", ["threads", "processes"])
def test_damage_reaches_the_training_thread(decoders: str, stores: list[Path], tmp_path: Path) -> None:
    slide = write_twin(tmp_path / "a.svs", paint(600, 700, seed=6))
    path = tmp_path / "a.h5"
    process_slide(slide, path, GEOMETRY, SlideSettings(preset="synthetic"))
    stage = make_stage("patch", make_stream("patch", [path], workers=1), 24)
    slide.unlink()
    source = fed(stage, decoders=decoders)
    try:
        with pytest.raises(SlideError, match=r"a\.svs") as caught:
            source.next()
        assert caught.value.code == "missing"
    finally:
        source.close()


def test_errors_of_slides_travel_between_processes() -> None:
    import pickle

    for error in (TileError(Path("a.svs"), [(0, 1, 2)], "corrupt"), SlideError("missing", "a.svs", "no such file")):
        again = pickle.loads(pickle.dumps(error))
        assert str(again) == str(error)
        assert vars(again) == vars(error)


def test_too_few_samples_are_said(stores: list[Path]) -> None:
    stream = PatchStream(stores[:1], 10_000, seed=3, drop_last=True)
    source = fed(make_stage("patch", stream, 10_000))
    try:
        with pytest.raises(ValueError, match="fewer samples than one batch of 10000"):
            source.next()
    finally:
        source.close()


def test_decoders_are_chosen_by_device_and_number(stores: list[Path]) -> None:
    whole, reduced = make_stream("region", stores), make_stream("reduced", stores)
    cuda = torch.device("cuda")
    assert feeder.choose_decoders("auto", 12, [whole], cuda) == "processes"
    assert feeder.choose_decoders("auto", 12, [whole], CPU) == "threads"
    assert feeder.choose_decoders("auto", 2, [whole], cuda) == "threads"
    assert feeder.choose_decoders("auto", 12, [reduced], cuda) == "threads"
    with pytest.warns(UserWarning, match="not possible here"):
        assert feeder.choose_decoders("processes", 2, [reduced], CPU) == "threads"


def test_where_one_ends_all_are_run_to_their_end() -> None:
    ends: list[str] = []

    def count(name: str, to: int) -> Iterator[int]:
        yield from range(to)
        ends.append(name)

    assert list(feeder.together([count("a", 2), count("b", 4)])) == [(0, 0), (1, 1)]
    assert sorted(ends) == ["a", "b"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize("kind", ["patch", "region", "reduced"])
@pytest.mark.parametrize("decoders", ["threads", "processes"])
def test_batches_on_a_gpu_are_those_of_the_host(kind: str, decoders: str, stores: list[Path]) -> None:
    if kind == "reduced" and decoders == "processes":
        decoders = "auto"
    compare(
        lambda: make_stream(kind, stores, workers=2), kind, 24 if kind == "patch" else 6, torch.device("cuda"),
        decoders=decoders,
    )  # fmt: skip
