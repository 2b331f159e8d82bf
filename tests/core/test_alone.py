"""hcmae_core lifted out: it works where only torch, timm and what these two require are installed."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
# Of the road's own requirements: must not be there, or the test shows nothing.
ABSENT = ("h5py", "pandas", "pydantic", "scipy", "hcmae")

ALONE = """
import importlib, importlib.util, pkgutil, sys
sys.path.append(sys.argv[1])
found = [name for name in sys.argv[2:] if importlib.util.find_spec(name)]
assert not found, f"not alone: {found}"

import hcmae_core
assert sorted(name for name in sys.modules if name.startswith("torch")) == [], "the package itself is light"
modules = [item.name for item in pkgutil.walk_packages(hcmae_core.__path__, "hcmae_core.")]
for name in modules:
    importlib.import_module(name)

import torch
from hcmae_core.hcmae import HCMAE
from hcmae_core.losses import cox_loss
from hcmae_core.mae_patch import MAEPatch
from hcmae_core.transformer import Size

torch.manual_seed(0)
size = Size(24, 1, 3)
patch = MAEPatch(32, 8, encoder=size, decoder=Size(16, 1, 2))
images = torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8)
patch(images, torch.Generator().manual_seed(0)).loss.backward()
model = HCMAE(omics_features=5, vector_dim=24, thumbnail=8, transformer=size)
thumbnails = torch.randint(0, 256, (3, 2, 8, 8, 3), dtype=torch.uint8)
risk = model(thumbnails, torch.randn(3, 2, 24), torch.ones(3, 2, dtype=torch.bool), torch.randn(3, 3, 5))
cox_loss(risk, torch.tensor([1.0, 2.0, 3.0]), torch.ones(3)).backward()
for network in (patch, model):
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all()), name
print(len(modules))
"""


def _with_requirements(*names: str) -> set[str]:
    """These distributions and, through all of them, those that they require here."""
    found: set[str] = set()
    asked: list[tuple[str, str]] = [(name, "") for name in names]
    seen = set()
    while asked:
        name, extra = asked.pop()
        if (name, extra) in seen:
            continue
        seen.add((name, extra))
        try:
            lines = distribution(name).requires or []
        except PackageNotFoundError:
            # Wheels for one kind of processor leave out what they name. What is needed fails on import.
            continue
        found.add(name)
        for line in lines:
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate({"extra": extra}):
                asked += [(canonicalize_name(needed.name), wanted) for wanted in ("", *needed.extras)]
    return found


def _link(name: str, folder: Path) -> None:
    """Link the modules and packages of an installed distribution into ``folder``."""
    files = distribution(name).files
    assert files, f"{name} does not say which files it consists of: install it from a wheel"
    for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
        target = Path(str(distribution(name).locate_file(top)))
        link = folder / top
        # Several distributions share a folder (namespace packages).
        if target.exists() and not link.is_symlink():
            link.symlink_to(target, target_is_directory=target.is_dir())


@pytest.mark.slow
def test_core_works_with_torch_and_timm_alone(tmp_path: Path) -> None:
    names = _with_requirements("torch", "timm")
    assert {"torch", "timm"} <= names
    for name in sorted(names):
        _link(name, tmp_path)
    (tmp_path / "hcmae_core").symlink_to(ROOT / "hcmae_core", target_is_directory=True)
    absent = [name for name in ABSENT if canonicalize_name(name) not in names]
    # Isolated (-I) and without site-packages (-S): the standard library and the folder of links.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", ALONE, str(tmp_path), *absent], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    written = [path for path in (ROOT / "hcmae_core").rglob("*.py") if path.name != "__init__.py"]
    # Modules and the one sub-package.
    assert int(done.stdout) == len(written) + 1
