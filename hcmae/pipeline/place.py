"""One cancer under one profile: who is meant, where everything lies, and what lies there already.

Nothing here computes anything; ``Run`` adds the verbs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import pandas as pd

from hcmae.config import MODALITIES, ConfigError, Profile, load_profile
from hcmae.content import MEMORY_NAME, Contents
from hcmae.files import read_parquet
from hcmae.manifest import Manifest, load_manifest, manifest_names
from hcmae.synthetic import truth

if TYPE_CHECKING:
    import mudata

    from hcmae.cohort.curate import Cohort

Source = Literal["synthetic", "gdc", "local", "features"]
Variant = Literal["patreg", "reg"]
NULL_COHORT = "NULL"
REGION_VARIANTS: tuple[Variant, ...] = ("reg", "patreg")


def listed_modalities(asked: str | Sequence[str]) -> tuple[str, ...]:
    """Modalities in their fixed order, from names or from text: 'rna,mirna', or 'none' for no omics.

    Raises ConfigError for an unknown one.
    """
    names = asked.split(",") if isinstance(asked, str) else list(asked)
    names = [name.strip().lower() for name in names if name.strip() and name.strip().lower() != "none"]
    unknown = sorted(set(names) - set(MODALITIES))
    if unknown:
        raise ConfigError(f"unknown modality '{unknown[0]}': choose among {', '.join(MODALITIES)}, or none")
    return tuple(name for name in MODALITIES if name in names)


def _frame(path: Path) -> pd.DataFrame:
    """A table from disk, read once as long as the file is the same. Raises what ``read_parquet`` raises."""
    stat = path.stat()
    return _read_once(path, stat.st_size, stat.st_mtime_ns, stat.st_ino).copy()


@lru_cache(maxsize=64)
def _read_once(path: Path, *stat: int) -> pd.DataFrame:
    return read_parquet(path)


class Place:
    """A run's identity, its folders and files, and what has been written there.

    ``cancer`` is one of the six, a cancer with a manifest of your own, or 'NULL': the twin of LIHC whose survival
    depends on nothing. ``modalities``: the omics that a patient must have, as names or as text ('rna,mirna'; 'none': no
    omics at all); ``slides``: whether a patient must have a slide. ``weights_from``: the pre-training folder of another
    run (RUN_DIR/PROFILE/pretrain), whose networks are used as they are and never trained. Raises ConfigError for an
    unknown cancer, profile, source or modality, for a folder without weights, and where neither slides nor omics are
    asked for.
    """

    def __init__(
        self,
        cancer: str = "LIHC",
        profile: str | Path = "smoke",
        source: str = "synthetic",
        seed: int = 0,
        data_dir: str | Path = "data",
        run_dir: str | Path = "runs",
        *,
        overrides: dict[str, Any] | None = None,
        modalities: str | Sequence[str] = MODALITIES,
        slides: bool = True,
        manifest_dir: str | Path | None = None,
        weights_from: str | Path | None = None,
    ) -> None:
        if source not in get_args(Source):
            raise ConfigError(f"unknown source '{source}': choose 'synthetic', 'gdc', 'local' or 'features'")
        self._given: dict[str, Any] = {
            "profile": profile,
            "source": source,
            "seed": seed,
            "data_dir": data_dir,
            "run_dir": run_dir,
            "overrides": overrides,
            "modalities": modalities,
            "slides": slides,
            "manifest_dir": manifest_dir,
            "weights_from": weights_from,
        }
        self.cancer, self.source, self.seed = cancer, source, int(seed)
        self.modalities, self.slides = listed_modalities(modalities), bool(slides)
        if not self.modalities and not self.slides:
            raise ConfigError("neither slides nor omics are asked for: choose slides=True or name some modalities")
        self.profile: Profile = load_profile(profile, overrides)
        self.manifest: Manifest = load_manifest("LIHC" if self.is_null else cancer, manifest_dir)
        self.manifest_dir = manifest_dir
        self.data_dir, self.run_dir = Path(data_dir), Path(run_dir)
        name = self.profile.name
        self.root = self.data_dir / (f"synthetic-{name}" if source == "synthetic" else source) / cancer
        self.profile_dir = self.run_dir / (name if source == "synthetic" else f"{name}-{source}")
        self.dir = self.profile_dir / cancer
        self.weights_from = None if weights_from is None else Path(weights_from)
        if self.weights_from is not None and not any(self.weights_from.glob("*.safetensors")):
            raise ConfigError(
                f"{self.weights_from}: no weights there: name the folder pretrain of a run, with mae_patch.safetensors"
            )
        self.pretrain_dir = self.weights_from or self.profile_dir / "pretrain"

    def __repr__(self) -> str:
        name = type(self).__name__
        return f"{name}({self.cancer}, profile={self.profile.name}, source={self.source}, seed={self.seed})"

    @property
    def has_pixels(self) -> bool:
        """Whether there are slides to look at, and not features alone."""
        return self.source != "features"

    @property
    def tables(self) -> str:
        """How the molecular tables lie: those beside features as those of a folder of one's own."""
        return "local" if self.source == "features" else self.source

    @property
    def is_null(self) -> bool:
        """Whether this is the cohort without signal."""
        return self.cancer == NULL_COHORT

    def sibling(self, cancer: str) -> Self:
        """The same run for another cancer: profile, source, folders, manifests, modalities and slides stay."""
        return type(self)(cancer, **self._given)

    @cached_property
    def contents(self) -> Contents:
        """Hashes of raw files, remembered beside the runs; those that a fetch has verified are taken over."""
        return Contents(self.run_dir / MEMORY_NAME, known=[self.root / MEMORY_NAME])

    # --- raw data ---------------------------------------------------------------------------------------------------

    def truth(self) -> pd.DataFrame | None:
        """Latent factors and log hazard per patient (synthetic cohorts only)."""
        return truth.read_truth(self.root)

    def truth_summary(self) -> dict[str, Any] | None:
        """Oracle C-index, planted features and hazard mix (synthetic cohorts only)."""
        return truth.read_summary(self.root)

    # --- who --------------------------------------------------------------------------------------------------------

    def cohort(self) -> Cohort:
        """The curated cohort from disk, its paths found where the data lie now.

        Raises FileNotFoundError naming the step to run.
        """
        from hcmae.cohort.curate import Cohort
        from hcmae.cohort.paths import located

        frames = []
        for name in ("cohort", "exclusions", "flow"):
            path = self.dir / f"{name}.parquet"
            if not path.exists():
                raise FileNotFoundError(f"{path} is missing: run curate() (notebook 02) for {self.cancer} first")
            frames.append(_frame(path))
        return Cohort(located(frames[0], self.root), *frames[1:])

    # --- pixels -----------------------------------------------------------------------------------------------------

    @property
    def store_dir(self) -> Path:
        """Folder of the slide stores."""
        return self.dir / "slides"

    def slide_outcomes(self) -> pd.DataFrame:
        """What became of each slide; empty before the first call of ``make_slides``."""
        path = self.dir / "slides.parquet"
        return _frame(path) if path.exists() else pd.DataFrame()

    def stores(self) -> list[Path]:
        """The slide stores of the cohort, in the order of its table; slides without a region have none."""
        return list(self.patient_stores().values())

    def patient_stores(self) -> dict[str, Path]:
        """The store of each patient whose slide was cut, in the order of the cohort's table.

        A store that lies there while its slide's last outcome is none (now truncated, say) is not one of them.
        """
        outcomes = self.slide_outcomes()
        if outcomes.empty:
            return {}
        cut = set(outcomes.loc[outcomes["status"].isin(["ok", "skipped"]) & (outcomes["regions"] > 0), "slide"])
        slides = self.cohort().table["slide"]
        paths = {str(patient): self.store_dir / f"{slide}.h5" for patient, slide in slides.items() if slide in cut}
        return {patient: path for patient, path in paths.items() if path.exists()}

    # --- molecules --------------------------------------------------------------------------------------------------

    def omics(self) -> mudata.MuData:
        """The stored MuData; raises FileNotFoundError naming the step to run."""
        from hcmae.omics.kept import read_h5mu

        path = self.dir / "omics.h5mu"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run load_omics() (notebook 04) for {self.cancer} first")
        return read_h5mu(path)

    # --- networks on images -----------------------------------------------------------------------------------------

    def pool(self) -> list[Self]:
        """The runs whose slides pre-train the networks: every cancer of this profile that has been cut into regions.

        The profile's ``pool`` names them where others are not to join it. Pre-training sees the images of all patients,
        test patients included, and no label (transductive, as in the release). The null cohort takes no part. Raises
        FileNotFoundError where no cancer has slides, or one that is named has none.
        """
        found = sorted(path.parent.name for path in self.profile_dir.glob("*/slides.parquet"))
        named = self.profile.pool
        if named is not None:
            lacking = [cancer for cancer in named if cancer not in found]
            if lacking:
                raise FileNotFoundError(
                    f"the profile's pool names {lacking[0]}, which has no slides below {self.profile_dir}: run "
                    "make_slides() (notebook 03) for it first, or take it out of the pool"
                )
            found = sorted(named)
        known = manifest_names(self._given["manifest_dir"])
        # A folder that no manifest is named after (a backup, say) is nobody's cohort.
        ready = [
            self if cancer == self.cancer else self.sibling(cancer)
            for cancer in found
            if cancer == self.cancer or cancer in known
            if cancer != NULL_COHORT
        ]
        if not ready:
            raise FileNotFoundError(
                f"no cancer below {self.profile_dir} has slides: run make_slides() (notebook 03) first"
            )
        return ready

    def pool_stores(self) -> list[Path]:
        """The stores of the whole pool."""
        return [store for run in self.pool() for store in run.stores()]

    @property
    def patch_weights(self) -> Path:
        """Weights of MAE-Patch."""
        return self.pretrain_dir / "mae_patch.safetensors"

    def region_weights(self, variant: Variant = "patreg") -> Path:
        """Weights of MAE-Region: 'patreg' with, 'reg' without patch vectors."""
        return self.pretrain_dir / f"mae_region_{variant}.safetensors"

    @property
    def feature_region_weights(self) -> Path:
        """Weights of the region token, the stand-in for MAE-Region where there are no pixels."""
        return self.pretrain_dir / "feature_region.safetensors"

    def dino_weights(self, stage: Literal["patch", "region"]) -> Path:
        """Weights of one of HIPT's two stages."""
        return self.pretrain_dir / "dino" / f"hipt_{stage}.safetensors"
