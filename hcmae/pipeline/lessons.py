"""What the lessons show of what is there: methods that the data can feed, and real tables beside the synthetic ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hcmae.config import MODALITIES, ConfigError
from hcmae.manifest import load_manifest, manifest_names
from hcmae.pipeline.check import modalities_there
from hcmae.pipeline.run import Run, example_data

if TYPE_CHECKING:
    from hcmae.survival.data import SurvivalData

# The method that a lesson is about, and what stands in for it where slides, omics or both are not there.
MAIN_METHODS = ("hcmae", "trans_mo", "hcmae_image", "cox_clinical")


def possible(names: Iterable[str], data: SurvivalData) -> list[str]:
    """Those of some methods that the data can feed, in their order."""
    from hcmae.survival.methods import METHODS

    return [name for name in names if name in METHODS and all(data.has(need) for need in METHODS[name].needs)]


def main_method(data: SurvivalData) -> str:
    """HC-MAE, or the stream of it that the data can feed. Raises ConfigError where they feed none."""
    found = possible(MAIN_METHODS, data)
    if not found:
        raise ConfigError(
            "the data hold no omics, no vectors of slides and no clinical columns: no method can use them"
        )
    return found[0]


@dataclass(frozen=True)
class RealTables:
    """Tables of real patients: where they lie, by whose rules they are judged, which omics they have, the data."""

    folder: Path
    cancer: str
    modalities: tuple[str, ...]
    data: SurvivalData

    @property
    def name(self) -> str:
        """The folder's name, by which predictions are kept apart."""
        return self.folder.resolve().name

    @property
    def label(self) -> str:
        """'lihc_real (rules of LIHC)', for captions."""
        return f"{self.name} (rules of {self.cancer})"


def real_tables(run: Run, local_dir: str | Path = "") -> RealTables | None:
    """Tables in a folder of one's own, or in the example beside the checkout; None where there is neither.

    The inclusion rules are those of the manifest that the folder is named after, else of the run's cancer (the example:
    LIHC); the omics are those of which a table is there.
    Raises ConfigError for a ``local_dir`` without tables, CurationError for tables that cannot be used.
    """
    from hcmae.cohort.local import local_mapping
    from hcmae.survival.data import load_tables

    folder, rules = Path(local_dir), run.cancer
    if not str(local_dir):
        example = example_data()
        if example is None or not (example / "lihc_real").is_dir():
            return None
        folder, rules = example / "lihc_real", "LIHC"
    elif folder.resolve().name in manifest_names(run.manifest_dir):
        rules = folder.resolve().name
    found = modalities_there(folder, local_mapping(folder))
    if not found:
        raise ConfigError(f"{folder}: no table for {', '.join(MODALITIES)}; put one there, or leave local_dir empty")
    manifest = run.manifest if rules in (run.cancer, "NULL") else load_manifest(rules, run.manifest_dir)
    data = load_tables(folder, manifest, tuple(found), seed=run.seed)
    return RealTables(folder, manifest.cancer, tuple(found), data)
