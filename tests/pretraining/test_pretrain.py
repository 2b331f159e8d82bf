"""The training loop: augmentation, schedule, resume, signals, several processes, failures."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.run as torchrun
from safetensors.torch import load_file

from hcmae.config import Compute, Fidelity, Optimisation, Profile, load_profile
from hcmae.optimiser import parameter_groups
from hcmae.pretraining import augment, loop
from hcmae.pretraining.checkpoint import EXIT_INTERRUPTED, CheckpointError, Interrupted, read_metadata
from hcmae.pretraining.networks import build_mae_patch, build_mae_region, load_mae_patch, load_mae_region
from hcmae.pretraining.pretrain import pretrain_patch, pretrain_region, reconstruct, record_reconstructions
from hcmae.slides.store import StoreContents, write_store, write_vectors


def tiny_profile(**fidelity: Any) -> Profile:
    """Two updates of 8 images are an epoch; two epochs."""
    training = {"optimizer": "adamw", "batch_size": 4, "accumulation": 2, "epochs": 3, "samples_per_epoch": 32}
    base = load_profile("smoke")
    data = base.model_dump()
    data["geometry"] = {"region": 64, "patch": 16, "cell": 4, "thumbnail": 16}
    data["network"] = {"dim": 16, "depth": 1, "heads": 2}
    for name in ("mae_patch", "mae_region"):
        data[name] |= {
            "decoder_dim": 8,
            "decoder_depth": 1,
            "decoder_heads": 2,
            "class_token": False,
            "optimisation": training,
        }
    # The stand-in streams hand out whole regions.
    data["mae_region"] |= {"reduce": 1, "warm_epochs": None}
    data["fidelity"] = Fidelity(**fidelity).model_dump()
    data["compute"] = Compute(precision="32").model_dump()
    return Profile.model_validate(data)


class MemoryStream:
    """Stand-in for the slide streams: same protocol, images from a seed."""

    def __init__(self, kind: str, batch: int = 4, epoch: int = 32, bad_from: int = 10**9) -> None:
        self.kind, self.batch, self.epoch, self.position, self.bad_from = kind, batch, epoch, 0, bad_from

    def __iter__(self) -> Iterator[dict[str, Any]]:
        end = (self.position // self.epoch + 1) * self.epoch
        while self.position < end:
            numbers = np.arange(self.position, self.position + self.batch)
            self.position += self.batch
            rng = [np.random.default_rng([7, int(n)]) for n in numbers]
            side = 16 if self.kind == "patch" else 64
            images = np.stack([g.integers(0, 256, (side, side, 3), dtype=np.uint8) for g in rng])
            if self.kind == "patch":
                yield {"images": images, "slide": numbers % 2, "coords": np.stack([numbers, numbers * 2], 1)}
            else:
                vectors = np.stack([g.standard_normal((16, 16)).astype(np.float16) for g in rng])
                vectors[numbers >= self.bad_from] = np.inf
                yield {"regions": images, "patch_vectors": vectors, "slide": numbers % 2, "row": numbers}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.position = state["position"]


def fake_stores(folder: Path) -> list[Path]:
    """Two stores of 8 regions: coordinates and patch vectors are all that is read."""
    paths = [folder / "A.h5", folder / "B.h5"]
    for path in paths:
        if not path.exists():
            write_fake_store(path, np.zeros((8, 2), np.int32))
    return paths


def write_fake_store(path: Path, coords: np.ndarray) -> None:
    """A store of no slide, with patch vectors."""
    attrs = {
        "slide_id": path.stem,
        "slide_content": path.stem,
        "geometry": json.dumps(tiny_profile().geometry.model_dump()),
        "side": 64,
        "width": 640,
        "height": 640,
        "mpp": 0.5,
    }
    thumbnails = np.zeros((len(coords), 4, 4, 3), np.uint8)
    write_store(path, StoreContents(coords, thumbnails, np.ones(len(coords), np.float32), attrs))
    write_vectors(path, "patch_vectors", np.zeros((len(coords), 16, 16), np.float16), weights="abc")


def train(kind: str, folder: Path, out: Path, **options: Any) -> Path:
    if kind == "patch":
        return pretrain_patch(
            fake_stores(folder), tiny_profile(), out, 1, progress=False, stream=MemoryStream("patch"), **options
        )
    return pretrain_region(
        fake_stores(folder), tiny_profile(), out, 1, progress=False, stream=MemoryStream("region"), **options
    )


def same_weights(a: Path, b: Path) -> bool:
    left, right = load_file(a), load_file(b)
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["patch", "region"])
def test_stop_anywhere_and_resume_is_bit_identical(kind: str, tmp_path: Path) -> None:
    whole = train(kind, tmp_path, tmp_path / "whole")
    steps = 12
    for number, stop in enumerate(random.Random(3).sample(range(1, steps), 2)):
        out = tmp_path / f"cut{number}"
        with pytest.raises(Interrupted) as caught:
            train(kind, tmp_path, out, on_step=_terminate_after(stop))
        assert caught.value.code == EXIT_INTERRUPTED
        assert caught.value.path.exists()
        assert f"step-{stop:08d}" in caught.value.path.name
        assert not (out / whole.name).exists()
        resumed = train(kind, tmp_path, out)
        assert same_weights(whole, resumed)
        losses = [
            [json.loads(line)["loss"] for line in (folder / f"{whole.stem}.jsonl").read_text().splitlines()]
            for folder in (tmp_path / "whole", out)
        ]
        assert losses[0][-1] == losses[1][-1]


def _terminate_after(stop: int) -> Any:
    def hook(step: int) -> None:
        if step == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    return hook


def test_finished_work_is_kept_and_other_settings_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = train("patch", tmp_path, tmp_path / "out")
    stamp = path.stat().st_mtime_ns
    train("patch", tmp_path, tmp_path / "out")
    assert path.stat().st_mtime_ns == stamp
    assert "up to date" in capsys.readouterr().err
    other = tiny_profile(augment="none")
    pretrain_patch(fake_stores(tmp_path), other, tmp_path / "out", 1, progress=False, stream=MemoryStream("patch"))
    assert path.stat().st_mtime_ns != stamp
    assert not list((tmp_path / "out" / "checkpoints").glob("*/step-*"))
    assert list((tmp_path / "out" / "checkpoints").glob("*/best.safetensors"))


def test_truncated_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted) as caught:
        train("patch", tmp_path, tmp_path / "out", on_step=_terminate_after(3))
    data = caught.value.path.read_bytes()
    caught.value.path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match=r"step-00000003.*truncated"):
        train("patch", tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_loss_falls_and_log_is_complete(tmp_path: Path) -> None:
    settings = Optimisation(optimizer="adamw", learning_rate=3e-3, batch_size=4, epochs=10, samples_per_epoch=32)
    profile = tiny_profile()
    profile = profile.model_copy(update={"mae_patch": profile.mae_patch.model_copy(update={"optimisation": settings})})
    pretrain_patch(
        fake_stores(tmp_path), profile, tmp_path / "out", 0, progress=False, stream=MemoryStream("patch"), log_every=5
    )
    records = [json.loads(line) for line in (tmp_path / "out" / "mae_patch.jsonl").read_text().splitlines()]
    assert records[-1]["step"] == 80
    assert records[-1]["epoch"] == 10
    assert records[-1]["loss"] < 0.9 * records[0]["loss"]
    assert all({"learning_rate", "images_per_second", "data_wait"} <= record.keys() for record in records)


def test_tensorboard_and_reconstruction_records(tmp_path: Path) -> None:
    images = next(iter(MemoryStream("patch")))["images"]
    hook = record_reconstructions(tmp_path / "seen.npz", images)
    train("patch", tmp_path, tmp_path / "out", tensorboard=True, on_epoch=hook)
    assert list((tmp_path / "out" / "tensorboard").rglob("events*"))
    content = np.load(tmp_path / "seen.npz")
    assert {"images", "masked", "epoch_000", "epoch_001", "epoch_003"} <= set(content.files)
    visible = (content["masked"] == images).all(axis=-1)
    assert 0.2 < visible.mean() < 0.3
    assert (content["epoch_003"][visible] == images[visible]).all()
    assert (content["epoch_000"] != content["epoch_003"]).any()


def test_non_finite_loss_names_the_batch(tmp_path: Path) -> None:
    with pytest.raises(loop.NonFiniteLossError, match=r"mae_region_patreg.*B at region 21") as caught:
        pretrain_region(
            fake_stores(tmp_path), tiny_profile(), tmp_path / "out", 1, progress=False,
            stream=MemoryStream("region", bad_from=21), log_every=1,
        )  # fmt: skip
    assert "region 4;" not in str(caught.value)
    assert not list(tmp_path.glob("out/*.safetensors"))


@pytest.mark.slow
def test_release_and_other_readings_train(tmp_path: Path) -> None:
    profile = tiny_profile(augment="release")
    for reading in ("eq4", "prose", "none"):
        path = pretrain_region(
            fake_stores(tmp_path), profile, tmp_path, 1, attention=reading, name=f"r_{reading}", progress=False,
            stream=MemoryStream("region"),
        )  # fmt: skip
        model = load_mae_region(path)
        assert model.reading == reading
    with pytest.raises(CheckpointError, match="expected 'mae_patch'"):
        load_mae_patch(path)


def test_prose_without_residual_leaves_the_encoder_untrained() -> None:
    torch.manual_seed(0)
    model = build_mae_region(tiny_profile(), "prose")
    batch = next(iter(MemoryStream("region")))
    model(torch.as_tensor(batch["regions"]), torch.as_tensor(batch["patch_vectors"])).loss.backward()
    grads = [p.grad for p in model.encoder.blocks.parameters()]
    assert all(g is None or float(g.abs().max()) == 0 for g in grads)
    with_residual = build_mae_region(tiny_profile(region_residual=True), "prose")
    with_residual(torch.as_tensor(batch["regions"]), torch.as_tensor(batch["patch_vectors"])).loss.backward()
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in with_residual.encoder.blocks.parameters())


@pytest.mark.parametrize("code", range(8))
def test_vectors_follow_flips_and_turns(code: int) -> None:
    """A patch's mean colour plays its vector: after turning the region it must still lie on its patch."""
    regions = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
    means = regions.view(2, 4, 8, 4, 8, 3).float().mean(dim=(2, 4)).reshape(2, 16, 3)
    symmetry = torch.full((2,), code)
    turned = augment.apply_symmetries(regions, symmetry)
    expected = turned.view(2, 4, 8, 4, 8, 3).float().mean(dim=(2, 4)).reshape(2, 16, 3)
    torch.testing.assert_close(augment.apply_symmetries_to_vectors(means, symmetry), expected)


def test_patch_vectors_follow_flips_and_half_turns_only() -> None:
    kept = augment.without_quarter_turns(torch.arange(8))
    assert set(kept.tolist()) == {0, 2, 4, 6}
    rows = torch.arange(4.0)[:, None].expand(4, 4).reshape(1, 4, 4, 1).expand(8, 4, 4, 1)
    turned = augment.apply_symmetries(rows, kept)
    # What was the same along a row still is: no row became a column.
    assert bool((turned == turned[:, :, :1]).all())


def test_eight_symmetries_are_all_different() -> None:
    image = torch.arange(9, dtype=torch.uint8).view(1, 3, 3, 1).expand(8, 3, 3, 3).contiguous()
    turned = augment.apply_symmetries(image, torch.arange(8))
    assert len({tuple(t[..., 0].reshape(-1).tolist()) for t in turned}) == 8
    assert set(augment.draw_symmetries(500, torch.Generator().manual_seed(0)).tolist()) == set(range(8))


def test_release_crop_and_stain() -> None:
    images = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8)
    draws = augment.draw_crops(4, torch.Generator().manual_seed(0))
    cropped = augment.random_resized_crop(images, draws)
    assert cropped.shape == images.shape
    assert not torch.equal(cropped, images)
    draws[:, 0], draws[:, 1], draws[:, 4] = 1.0, 0.5, 1.0
    assert torch.equal(augment.random_resized_crop(images, draws), images)
    assert torch.equal(augment.stain_jitter(images, torch.ones(4, 3)), images)
    darker = augment.stain_jitter(images, torch.full((4, 3), 1.5))
    assert (darker <= images).all()
    assert (darker < images).any()


def test_learning_rate_and_decay_groups() -> None:
    settings = Optimisation(learning_rate=1.0, warmup_epochs=1, epochs=5)
    rates = [loop.learning_rate(settings, step, 10) for step in range(50)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1.0
    assert rates[30] == pytest.approx(0.5)
    assert rates == sorted(rates[:10]) + sorted(rates[10:], reverse=True)
    model = build_mae_patch(tiny_profile())
    decayed, free = parameter_groups(model, 0.05)
    assert free["weight_decay"] == 0
    names = {id(p): n for n, p in model.named_parameters()}
    assert all(
        names[id(p)].endswith(("bias", "norm.weight", "norm1.weight", "norm2.weight", "token")) for p in free["params"]
    )
    assert all(names[id(p)].endswith("weight") for p in decayed["params"])
    assert len(decayed["params"]) + len(free["params"]) == len(names)


def test_reconstruct_copies_visible_tokens() -> None:
    torch.manual_seed(0)
    model = build_mae_patch(tiny_profile()).eval()
    images = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    hidden, shown = reconstruct(model, images)
    masked = (hidden != images.numpy()).any(-1)
    assert masked.mean() == pytest.approx(0.75, abs=0.02)
    assert (shown[~masked] == images.numpy()[~masked]).all()


def test_processes_must_divide_the_batch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"WORLD_SIZE": "3", "RANK": "0", "LOCAL_WORLD_SIZE": "3", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="processes must divide shards"):
        pretrain_patch(fake_stores(tmp_path), tiny_profile(), tmp_path, 0, progress=False)


# --- processes that are struck --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forked() -> multiprocessing.context.ForkServerContext:
    """Processes of a server that has imported everything once: each starts in a moment."""
    context = multiprocessing.get_context("forkserver")
    # Lightning and the compiler are otherwise imported by the first training of every process.
    context.set_forkserver_preload([__name__, "lightning_fabric", "torch._dynamo", "tests.support.imported"])
    return context


def _train_one(kind: str, folder: str, out: str, checkpoint_steps: int, pause: float, struck_at: int) -> None:
    """Body of one process: one thread, a mark after every update; at ``struck_at`` it waits until it was struck."""
    torch.set_num_threads(1)
    marks = Path(out)
    marks.mkdir(parents=True, exist_ok=True)
    (marks / f"pid{os.environ.get('RANK', 0)}").write_text(str(os.getpid()))

    def mark(step: int) -> None:
        (marks / "now").write_text(str(step))
        time.sleep(pause)
        limit = time.monotonic() + 60
        while step == struck_at and time.monotonic() < limit and not (marks / "struck").exists():
            time.sleep(0.02)

    train(kind, Path(folder), marks, checkpoint_steps=checkpoint_steps, on_step=mark)


def _train_two(*arguments: Any) -> None:
    """Body of a process that is torchrun itself; its two workers are forked, which ``--start-method`` asks for."""
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = ["--nproc-per-node=2", "--master-addr=127.0.0.1", f"--master-port={port}", "--start-method=fork", "none"]
    config, _, _ = torchrun.config_from_args(torchrun.parse_args(told))
    torchrun.elastic_launch(config, _train_one)(*arguments)


def _start(
    forked: Any, kind: str, folder: Path, out: Path, *, processes: int = 1, checkpoint_steps: int = 100,
    pause: float = 0.0, struck_at: int = 0,
) -> Any:  # fmt: skip
    for name in ("now", "struck"):
        (out / name).unlink(missing_ok=True)
    fake_stores(folder)
    arguments = (kind, str(folder), str(out), checkpoint_steps, pause, struck_at)
    process = forked.Process(target=_train_one if processes == 1 else _train_two, args=arguments)
    process.start()
    return process


def _finish(forked: Any, kind: str, folder: Path, out: Path, processes: int = 1) -> dict[str, torch.Tensor]:
    """Run to the end, in processes like those that are interrupted: rounding depends on the number of threads."""
    process = _start(forked, kind, folder, out, processes=processes)
    process.join(180)
    assert process.exitcode == 0
    (weights,) = out.glob("*.safetensors")
    return load_file(weights)


def _strike(process: Any, out: Path, step: int, number: int, *, one_worker: bool = False) -> None:
    """Send a signal as soon as the run has made so many updates: to the process, or to one that torchrun started."""
    limit = time.monotonic() + 120
    while time.monotonic() < limit and process.is_alive():
        marker = out / "now"
        if marker.exists() and int(marker.read_text() or 0) >= step:
            os.kill(int((out / "pid0").read_text()) if one_worker else process.pid, number)
            return
        time.sleep(0.005)


@pytest.mark.slow
def test_kills_and_terms_at_random_steps(tmp_path: Path, forked: Any) -> None:
    """Killed outright three times and asked to stop three times, each pair early, midway or late: the same weights."""
    whole = _finish(forked, "patch", tmp_path, tmp_path / "whole")
    seed = random.SystemRandom().randrange(2**32)
    draw = random.Random(seed)
    early, midway, late = range(2, 5), range(5, 8), range(8, 11)
    for number, parts in enumerate(((early, midway), (early, late), (midway, late))):
        out = tmp_path / f"cut{number}"
        for part, kind in zip(parts, draw.sample([signal.SIGKILL, signal.SIGTERM], 2), strict=True):
            step = draw.choice(part)
            # Checkpoints every other update, so that a kill loses work that has to be done again.
            process = _start(forked, "patch", tmp_path, out, checkpoint_steps=2, pause=0.1)
            _strike(process, out, step, kind)
            process.join(90)
            assert process.exitcode == (EXIT_INTERRUPTED if kind == signal.SIGTERM else -signal.SIGKILL), (seed, step)
            assert not list(out.glob("*.safetensors")), (seed, step)
        again = _finish(forked, "patch", tmp_path, out)
        assert all(torch.equal(whole[name], again[name]) for name in whole), seed


@pytest.mark.slow
def test_two_processes_alone_and_interrupted(tmp_path: Path, forked: Any) -> None:
    """Two processes do what one does; killed or stopped and run again, they end like two that were left alone."""
    one = _finish(forked, "region", tmp_path, tmp_path / "one")
    whole = _finish(forked, "region", tmp_path, tmp_path / "whole", 2)
    out = tmp_path / "cut"
    draw = random.SystemRandom()
    for step, kind in ((draw.randrange(3, 7), signal.SIGKILL), (draw.randrange(7, 11), signal.SIGTERM)):
        process = _start(forked, "region", tmp_path, out, processes=2, checkpoint_steps=2, struck_at=step)
        _strike(process, out, step, kind, one_worker=kind == signal.SIGKILL)
        # torchrun passes the signal on; there is no sign of its arrival.
        time.sleep(3)
        (out / "struck").touch()
        process.join(120)
        assert process.exitcode not in (0, None), (step, kind)
        assert not list(out.glob("*.safetensors"))
        assert list(out.glob("checkpoints/*/step-*"))
    cut = _finish(forked, "region", tmp_path, out, 2)
    assert max(float((whole[k] - cut[k]).abs().max()) for k in whole) <= 1e-6
    # The optimiser divides by the gradient's size, so rounding in the order of sums shows more than in the gradient.
    assert max(float((whole[k] - one[k]).abs().max()) for k in whole) <= 5e-5
    logs = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "mae_region_patreg.jsonl").read_text().splitlines()]
        for name in ("one", "whole")
    ]
    # The log is that of the whole batch, not of the first process's half.
    assert logs[0] == pytest.approx(logs[1], rel=1e-5)


def test_progress_shows_speed_wait_and_time_left(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pretrain_patch(
        fake_stores(tmp_path), tiny_profile(), tmp_path / "out", 1, stream=MemoryStream("patch"),
        log_every=1, on_step=lambda step: time.sleep(0.15),
    )  # fmt: skip
    err = capfd.readouterr().err
    assert re.search(r"mae_patch:.*\[\d\d:\d\d<\d\d:\d\d, .*img/s, loss=\d\.\d+, wait=\d+%\]", err), err[-500:]


def test_checkpoint_of_another_run_is_refused(tmp_path: Path) -> None:
    """Same shapes, another seed: moved into this run's folder it would be taken for its own."""
    with pytest.raises(Interrupted) as caught:
        train("patch", tmp_path, tmp_path / "out", on_step=_terminate_after(3))
    with pytest.raises(Interrupted) as other:
        pretrain_patch(
            fake_stores(tmp_path), tiny_profile(), tmp_path / "other", 2, progress=False,
            stream=MemoryStream("patch"), on_step=_terminate_after(5),
        )  # fmt: skip
    other.value.path.rename(caught.value.path.parent / other.value.path.name)
    with pytest.raises(CheckpointError, match=r"step-00000005.*other settings, seed or slides"):
        train("patch", tmp_path, tmp_path / "out")


def test_regions_cut_anew_are_trained_anew(tmp_path: Path) -> None:
    path = train("patch", tmp_path, tmp_path / "out")
    stamp = path.stat().st_mtime_ns
    write_fake_store(tmp_path / "A.h5", np.array([[64, 64], *[[0, 0]] * 7], np.int32))
    train("patch", tmp_path, tmp_path / "out")
    assert path.stat().st_mtime_ns != stamp


def test_best_checkpoint_is_that_of_the_lowest_epoch(tmp_path: Path) -> None:
    path = train("patch", tmp_path, tmp_path / "out", log_every=4)
    records = [json.loads(line) for line in (tmp_path / "out" / "mae_patch.jsonl").read_text().splitlines()]
    lowest = min(records, key=lambda record: record["loss"])
    (best,) = path.parent.glob("checkpoints/*/best.safetensors")
    assert read_metadata(best)["step"] == lowest["step"]


@pytest.mark.parametrize("world", [1, 2])
def test_prepared_batches_stay_aligned(world: int) -> None:
    """Joint symmetries move pixels and vectors together; stain jitter touches pixels alone; shares add up."""
    batch = next(iter(MemoryStream("region")))
    means = batch["regions"].reshape(4, 4, 16, 4, 16, 3).mean(axis=(2, 4)).reshape(4, 16, 3)
    batch["patch_vectors"] = means.astype(np.float32)
    parts = {}
    for stain in (0.0, 0.2):
        stage = loop.Stage(
            "x", build_mae_region(tiny_profile()), MemoryStream("region"), Optimisation(batch_size=4), 32, "regions",
            stain=stain, with_vectors=True,
        )  # fmt: skip
        shares = [stage.prepare(batch, 3, 5, slice(r * 4 // world, (r + 1) * 4 // world)) for r in range(world)]
        parts[stain] = {name: torch.cat([share[name] for share in shares]) for name in shares[0]}
    plain, stained = parts[0.0], parts[0.2]
    turned = plain["images"].view(4, 4, 16, 4, 16, 3).double().mean(dim=(2, 4)).reshape(4, 16, 3)
    torch.testing.assert_close(turned.float(), plain["vectors"], rtol=1e-5, atol=1e-3)
    assert not torch.equal(plain["vectors"], torch.as_tensor(batch["patch_vectors"]))
    assert torch.equal(plain["vectors"], stained["vectors"])
    assert not torch.equal(plain["images"], stained["images"])
    alone = stage.prepare(batch, 3, 5, slice(0, 4))
    assert all(torch.equal(alone[name], stained[name]) for name in alone)


def test_warm_start_takes_over_mae_reg_and_nothing_else(tmp_path: Path) -> None:
    profile = tiny_profile(region_warm_start=True)
    stores = fake_stores(tmp_path)
    reg = pretrain_region(
        stores, profile, tmp_path / "reg", 3, variant="reg", stream=MemoryStream("region"), progress=False
    )
    data = profile.model_dump()
    data["mae_region"]["warm_epochs"] = 1
    data["mae_region"]["optimisation"]["learning_rate"] = 1e-12
    short = Profile.model_validate(data)
    warm = pretrain_region(stores, short, tmp_path, 3, start=reg, stream=MemoryStream("region"), progress=False)
    before, after = load_mae_region(reg).state_dict(), load_mae_region(warm).state_dict()
    assert set(after) - set(before) == {name for name in after if name.startswith("cross.")}
    for name, tensor in before.items():
        torch.testing.assert_close(after[name], tensor, rtol=0, atol=1e-6)
    steps = [json.loads(line)["step"] for line in (tmp_path / "mae_region_patreg.jsonl").read_text().splitlines()]
    assert max(steps) == 4  # one epoch of four updates instead of three
    with pytest.raises(CheckpointError, match="is not MAE-Reg"):
        pretrain_region(stores, short, tmp_path / "x", 3, start=warm, stream=MemoryStream("region"), progress=False)
