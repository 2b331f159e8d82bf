"""DINO: loss against references, crops, teacher, schedules, resume, vectors, and that it does not collapse."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hcmae.config import Profile, load_profile
from hcmae.pretraining import dino
from hcmae.pretraining.checkpoint import read_metadata
from hcmae.pretraining.crops import GridCrops, PixelCrops, colour_jitter, gaussian_blur, resized_crops
from hcmae.pretraining.logs import read_log
from hcmae_core.dino import DINO, DINOHead, clip_each, cosine_value, dino_loss, health

# Stated in the book: below these the teacher answers (nearly) the same for every image.
MIN_ASSIGNMENT_ENTROPY = 0.3
MIN_FEATURE_SPREAD = 0.1


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_loss_by_hand() -> None:
    student, teacher = torch.randn(6, 5, generator=generator()), torch.randn(4, 5, generator=generator(1))
    centre = torch.randn(1, 5, generator=generator(2))
    expected = []
    for seen in range(2):
        target = F.softmax((teacher[2 * seen : 2 * seen + 2] - centre) / 0.04, dim=1)
        for asked in range(3):
            if asked != seen:
                answer = F.softmax(student[2 * asked : 2 * asked + 2] / 0.1, dim=1)
                expected.append(-(target * answer.log()).sum(1).mean())
    value = dino_loss(student, teacher, centre, 0.1, 0.04, n_crops=3)
    assert float(value) == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_loss_and_centre_equal_lightly() -> None:
    lightly = pytest.importorskip("lightly.loss")
    theirs = lightly.DINOLoss(output_dim=16, warmup_teacher_temp=0.04, teacher_temp=0.04, warmup_teacher_temp_epochs=0)
    student, teacher = torch.randn(5 * 8, 16, generator=generator()), torch.randn(2 * 8, 16, generator=generator(1))
    model = DINO(torch.nn.Identity(), 8, prototypes=16, hidden=8, bottleneck=4)
    for _ in range(3):
        reference = theirs(list(teacher.chunk(2)), list(student.chunk(5)), epoch=5)
        ours = dino_loss(student, teacher, model.centre, 0.1, 0.04, n_crops=5)
        model.update_centre(teacher)
        assert float(ours) == pytest.approx(float(reference), rel=1e-4)


def test_head_has_unit_prototypes_and_bounded_scores() -> None:
    head = DINOHead(8, 12, 16, 4)
    scores = head(torch.randn(3, 8, generator=generator()) * 100)
    assert scores.shape == (3, 12)
    assert float(scores.detach().abs().max()) <= 1 + 1e-5


def test_teacher_is_a_moving_average_without_gradient() -> None:
    model = DINO(torch.nn.Linear(4, 8), 8, prototypes=6, hidden=8, bottleneck=4).train()
    before = [p.clone() for p in model.teacher.parameters()]
    with torch.no_grad():
        for parameter in model.student.parameters():
            parameter.add_(1.0)
    model.update_teacher(0.9)
    for old, new in zip(before, model.teacher.parameters(), strict=True):
        torch.testing.assert_close(new, old + 0.1)
        assert not new.requires_grad
    assert not model.teacher.training
    with pytest.raises(ValueError, match="at least two"):
        model([torch.zeros(1, 4)])


def test_schedules_and_clipping() -> None:
    values = [cosine_value(1.0, 0.1, step, 100, 10) for step in range(101)]
    assert values[0] == pytest.approx(0.1)
    assert values[10] == pytest.approx(1.0)
    assert values[100] == pytest.approx(0.1)
    assert bool((np.diff(values[10:]) <= 0).all())
    small, large = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))
    small.grad, large.grad = torch.tensor([0.3, 0.4]), torch.tensor([30.0, 40.0])
    clip_each([small, large], 3.0)
    assert float(small.grad.norm()) == pytest.approx(0.5)
    assert float(large.grad.norm()) == pytest.approx(3.0, rel=1e-4)


def test_pixel_crops() -> None:
    images = torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=generator())
    make = PixelCrops(48, 16, 3)
    crops = make(images, generator(1))
    assert [tuple(c.shape) for c in crops] == [(4, 3, 48, 48)] * 2 + [(4, 3, 16, 16)] * 3
    assert all(torch.isfinite(c).all() for c in crops)
    for a, b in zip(crops, make(images, generator(1)), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(crops[0], make(images, generator(2))[0])


def test_jitter_is_a_setting() -> None:
    profile = load_profile("smoke")
    still = profile.dino.patch.model_copy(update={"jitter": (0.0, 0.0, 0.0, 0.0)})
    quiet = profile.model_copy(update={"dino": profile.dino.model_copy(update={"patch": still})})
    assert dino.make_crops(load_profile("paper"), "patch").jitter == (0.4, 0.4, 0.2, 0.1)
    assert dino.make_crops(profile, "patch").jitter == profile.dino.patch.jitter
    flat = torch.full((8, 64, 64, 3), 90, dtype=torch.uint8)
    flat[..., 0] = 160
    # Small crops are not solarised: without jitter a flat image stays what it was, or turns grey.
    pixels = dino.make_crops(quiet, "patch")(flat, generator())[-1].flatten(2)[..., 0]
    assert len({tuple(row) for row in pixels.round(decimals=3).tolist()}) == 2
    pixels = dino.make_crops(profile, "patch")(flat, generator())[-1].flatten(2)[..., 0]
    assert len({tuple(row) for row in pixels.round(decimals=3).tolist()}) > 2


def test_whole_crop_is_the_image_or_its_mirror() -> None:
    pixels = torch.rand(6, 3, 16, 16, generator=generator())
    wide = resized_crops(pixels, 16, (4.0, 4.0), generator(3), "bilinear")
    for image, crop in zip(pixels, wide, strict=True):
        assert torch.allclose(crop, image, atol=1e-4) or torch.allclose(crop, image.flip(2), atol=1e-4)


def test_blur_and_jitter_keep_flat_grey_images() -> None:
    flat = torch.full((3, 3, 12, 12), 0.5)
    torch.testing.assert_close(gaussian_blur(flat, 1.0, (0.1, 2.0), generator()), flat)
    out = colour_jitter(flat, (0.0, 0.4, 0.4, 0.1), generator(), chance=1.0)
    torch.testing.assert_close(out, flat, atol=2e-3, rtol=0)


def test_jitter_equals_torchvision_without_hue() -> None:
    functional = pytest.importorskip("torchvision.transforms.functional")
    image = 0.3 + 0.3 * torch.rand(1, 3, 8, 8, generator=generator())
    ours = colour_jitter(image, (0.2, 0.2, 0.2, 0.0), generator(4), chance=1.0, grey_chance=0.0)
    draw = generator(4)
    factors = [float(torch.empty(1).uniform_(0.8, 1.2, generator=draw)) for _ in range(3)]
    theirs = functional.adjust_brightness(image, factors[0])
    theirs = functional.adjust_contrast(theirs, factors[1])
    theirs = functional.adjust_saturation(theirs, factors[2])
    torch.testing.assert_close(ours, theirs, atol=2e-3, rtol=0)


def test_grid_crops_are_squares_of_the_grid() -> None:
    grid = torch.arange(36.0).view(1, 6, 6, 1)
    for crop in GridCrops(4, 2, 3)(grid, generator()):
        values = crop[0, 0]
        step = float(values[0, 1] - values[0, 0])
        assert abs(step) == 1.0
        torch.testing.assert_close(values[1] - values[0], torch.full((values.shape[1],), 6.0))
    whole = GridCrops(6, 2, 1)(grid, generator())[0][0, 0]
    assert torch.equal(whole, grid[0, :, :, 0]) or torch.equal(whole, grid[0, :, :, 0].flip(1))
    with pytest.raises(ValueError, match="does not fit a grid of 6"):
        GridCrops(7, 2, 1)(grid, generator())


def test_health_tells_collapse_from_spread() -> None:
    same = health(torch.ones(16, 8), torch.zeros(1, 8), 0.04, torch.ones(16, 4))
    assert same["feature_spread"] == pytest.approx(0.0, abs=1e-6)
    assert same["sharpness"] == pytest.approx(0.0, abs=1e-5)
    one = health(torch.eye(8)[[0] * 16], torch.zeros(1, 8), 0.04, torch.randn(16, 4))
    assert one["assignment_entropy"] < 0.01
    good = health(torch.eye(8), torch.zeros(1, 8), 0.04, torch.eye(8))
    assert good["assignment_entropy"] == pytest.approx(1.0, abs=1e-3)
    assert good["sharpness"] > 0.99


class Patches:
    """A stream of patches in memory with the interface of PatchStream."""

    def __init__(self, images: np.ndarray, batch_size: int) -> None:
        self.images, self.batch_size, self.position = images, batch_size, 0

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = int(state["position"])

    def __iter__(self):  # type: ignore[no-untyped-def]
        while True:
            rows = (self.position + np.arange(self.batch_size)) % len(self.images)
            self.position += self.batch_size
            yield {"images": self.images[rows]}


def small(**more: object) -> Profile:
    stage = {"epochs": 2, "samples_per_epoch": 64, "batch_size": 16}
    return load_profile(
        "smoke", {**{f"dino.{s}.{k}": v for s in ("patch", "region") for k, v in stage.items()}, **more}
    )


def train(profile: Profile, out: Path, *, stop: int | None = None, images: np.ndarray | None = None) -> DINO:
    settings = profile.dino.patch
    if images is None:
        images = np.random.default_rng(0).integers(0, 256, (64, 64, 64, 3), dtype=np.uint8)
    torch.manual_seed(0)
    model = dino.build_dino(profile, "patch")
    per_epoch = (settings.samples_per_epoch or 64) // settings.batch_size
    run = dino._Training(
        "patch", model, settings, profile, torch.device("cpu"), 0, per_epoch, settings.epochs or 1, out, "key"
    )
    if stop is not None:
        real, run._update = run._update, None  # type: ignore[assignment,method-assign]

        def update(batch: torch.Tensor) -> dict:
            if run.step == stop:
                raise KeyboardInterrupt
            return real(batch)

        run._update = update  # type: ignore[method-assign]
    run.run(Patches(images, settings.batch_size), True, False, 99.0)
    return model


@pytest.mark.slow
def test_interrupted_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    profile = small()
    whole = train(profile, tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(profile, tmp_path / "b", stop=6)
    resumed = train(profile, tmp_path / "b")
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    steps = [json.loads(line)["step"] for line in (tmp_path / "b" / "hipt_patch.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))


@pytest.mark.parametrize("ratio", [4.0, 2.0])
def test_weights_round_trip(ratio: float, tmp_path: Path) -> None:
    profile = small(**{"dino.region.network.mlp_ratio": ratio})
    model = dino.build_dino(profile, "region")
    path = dino.save_backbone(tmp_path / "w.safetensors", model, profile, "region", {})
    loaded = dino.load_backbone(path, "region")
    x = torch.randn(2, profile.dino.patch.network.dim, 8, 8)
    torch.testing.assert_close(loaded(x), model.teacher["backbone"](x))
    assert loaded.blocks[0].mlp.fc1.out_features == ratio * profile.dino.region.network.dim
    # Files of earlier versions do not say the ratio, which was always 4.
    assert ("mlp_ratio" in read_metadata(path)["model"]) == (ratio != 4.0)
    with pytest.raises(RuntimeError, match="expected 'hipt_patch'"):
        dino.load_backbone(path, "patch")


def test_budget_follows_the_autoencoders_unless_set() -> None:
    paper = load_profile("paper")
    assert dino.budget(paper, "patch", 1000) == (1000, paper.mae_patch.optimisation.epochs)
    assert dino.budget(small(), "patch", 1000) == (64, 2)


@pytest.mark.slow
def test_training_neither_collapses_nor_loses_the_nuclei(tmp_path: Path) -> None:
    """Patches with nuclei of three sizes: features keep their spread and tell the size."""
    rng = np.random.default_rng(0)
    yy, xx = np.mgrid[:64, :64]
    size = rng.integers(3, 8, 512)
    images = np.full((512, 64, 64, 3), (225, 180, 205), float)
    for image, radius in zip(images, size, strict=True):
        for y, x in rng.uniform(6, 58, (10, 2)):
            image[(yy - y) ** 2 + (xx - x) ** 2 < radius**2] = (95, 60, 140)
    images = (images + rng.normal(0, 6, images.shape)).clip(0, 255).astype(np.uint8)
    model = train(small(**{"dino.patch.samples_per_epoch": 1024}), tmp_path, images=images)
    last = read_log(tmp_path / "hipt_patch.jsonl").iloc[-1]
    assert last["assignment_entropy"] > MIN_ASSIGNMENT_ENTROPY
    assert last["feature_spread"] > MIN_FEATURE_SPREAD
    with torch.inference_mode():
        features = model.teacher["backbone"](dino._normalise(torch.from_numpy(images))).numpy()
    design = np.c_[features, np.ones(512)]
    weights = np.linalg.lstsq(design[:384], size[:384], rcond=1e-4)[0]
    error = size[384:] - design[384:] @ weights
    assert 1 - error.var() / size[384:].var() > 0.5
