"""The paper's geometry and sizes on one synthetic region: one training step of each network, inside 10 GB."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, resource, torch
from hcmae.config import load_profile
from hcmae.pretraining.pretrain import build_mae_patch, build_mae_region
from hcmae.pretraining.devices import cpu_has_bf16
from hcmae.pretraining.loop import make_optimizer

profile = load_profile("paper")
torch.manual_seed(0)
generator = torch.Generator().manual_seed(0)
region = torch.randint(0, 256, (1, 4096, 4096, 3), dtype=torch.uint8, generator=generator)
report = {}

def step(name, model, loss, settings):
    optimizer = make_optimizer(model, settings)
    before = next(model.parameters()).detach().clone()
    with torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
        value = loss()
    value.backward()
    optimizer.step()
    report[name] = {"loss": float(value.detach()), "moved": float((next(model.parameters()) - before).abs().max())}

patch = build_mae_patch(profile)
patches = region.view(16, 256, 16, 256, 3).transpose(1, 2).reshape(256, 256, 256, 3)
step("patch", patch, lambda: patch(patches[:4], generator).loss, profile.mae_patch.optimisation)
with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
    # As many at a time as a stage encodes; the region's other parts would take as much memory again, and only time.
    vectors = patch.encode(patches[:32]).repeat(8, 1)[None]
report["patch_vectors"] = list(vectors.shape)
del patch
network = build_mae_region(profile)
step("region", network, lambda: network(region, vectors.clone(), generator).loss, profile.mae_region.optimisation)
with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=cpu_has_bf16()):
    report["region_vector"] = list(network.encode(region, vectors).shape)
del network
report["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
print(json.dumps(report))
"""


@pytest.mark.slow
def test_paper_sizes_take_one_step_within_ten_gigabytes() -> None:
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=root, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["patch_vectors"] == [1, 256, 384]
    assert report["region_vector"] == [1, 384]
    for name in ("patch", "region"):
        assert 0.3 < report[name]["loss"] < 10
        assert report[name]["moved"] > 0
    assert report["peak_gb"] < 10
