"""One cancer under one profile: where everything lies, and the verbs that do what is missing.

What a step reads, writes and depends on stands in ``road``; a verb does its step unless it is done.
"""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import pandas as pd

from hcmae.config import CANCERS, MODALITIES, ConfigError, Profile, Protocol, load_profile
from hcmae.content import MEMORY_NAME, Contents
from hcmae.manifest import Manifest, load_manifest
from hcmae.pipeline import results, road, work
from hcmae.synthetic import truth

if TYPE_CHECKING:
    import mudata

    from hcmae.cohort.curate import Cohort
    from hcmae.survival.data import SurvivalData

Source = Literal["synthetic", "gdc", "local"]
Variant = Literal["patreg", "reg"]
NULL_COHORT = "NULL"
REGION_VARIANTS: tuple[Variant, ...] = ("reg", "patreg")


class Run:
    """One cancer, one profile, one source of data.

    ``cancer`` is one of the six, a cancer with a manifest of your own, or 'NULL': the twin of LIHC whose survival
    depends on nothing. Raises ConfigError for an unknown cancer, profile or source.
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
        modalities: tuple[str, ...] = MODALITIES,
        manifest_dir: str | Path | None = None,
    ) -> None:
        if source not in get_args(Source):
            raise ConfigError(f"unknown source '{source}': choose 'synthetic', 'gdc' or 'local'")
        self._given: dict[str, Any] = {
            "profile": profile,
            "source": source,
            "seed": seed,
            "data_dir": data_dir,
            "run_dir": run_dir,
            "overrides": overrides,
            "modalities": modalities,
            "manifest_dir": manifest_dir,
        }
        self.cancer, self.source, self.seed, self.modalities = cancer, source, int(seed), tuple(modalities)
        self.profile: Profile = load_profile(profile, overrides)
        self.manifest: Manifest = load_manifest("LIHC" if self.is_null else cancer, manifest_dir)
        self.data_dir, self.run_dir = Path(data_dir), Path(run_dir)
        name = self.profile.name
        self.root = self.data_dir / (f"synthetic-{name}" if source == "synthetic" else source) / cancer
        self.profile_dir = self.run_dir / (name if source == "synthetic" else f"{name}-{source}")
        self.dir = self.profile_dir / cancer
        self.pretrain_dir = self.profile_dir / "pretrain"

    def __repr__(self) -> str:
        return f"Run({self.cancer}, profile={self.profile.name}, source={self.source}, seed={self.seed})"

    @property
    def is_null(self) -> bool:
        """Whether this is the cohort without signal."""
        return self.cancer == NULL_COHORT

    def sibling(self, cancer: str) -> Run:
        """The same run for another cancer: profile, source, folders, manifests and modalities stay."""
        return Run(cancer, **self._given)

    @cached_property
    def contents(self) -> Contents:
        """Hashes of raw files, remembered beside the runs; those that a fetch has verified are taken over."""
        return Contents(self.run_dir / MEMORY_NAME, known=[self.root / MEMORY_NAME])

    def status(self) -> pd.DataFrame:
        """Every step of the road: [step, state, why, title]; a step after one that is not done waits for it."""
        return road.status(self)

    # --- raw data -----------------------------------------------------------------------------------------------

    def synthesise(self, *, workers: int = 2) -> None:
        """Write the synthetic twin (slides, omics, clinical records, truth) unless it is there already."""
        if self.source != "synthetic":
            raise ConfigError(f"source is '{self.source}': only source 'synthetic' can be synthesised")
        road.do(self, "synthesise", workers=workers)

    def truth(self) -> pd.DataFrame | None:
        """Latent factors and log hazard per patient (synthetic cohorts only)."""
        return truth.read_truth(self.root)

    def truth_summary(self) -> dict[str, Any] | None:
        """Oracle C-index, planted features and hazard mix (synthetic cohorts only)."""
        return truth.read_summary(self.root)

    # --- who ----------------------------------------------------------------------------------------------------

    def curate(self, *, slides: bool = True) -> Cohort:
        """Apply the inclusion rules; keep the cohort, the exclusions, the flow and the choices on disk."""
        road.check_source(self)
        road.do(self, "curate", slides=slides)
        return self.cohort()

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
            frames.append(pd.read_parquet(path))
        return Cohort(located(frames[0], self.root), *frames[1:])

    # --- pixels -------------------------------------------------------------------------------------------------

    @property
    def store_dir(self) -> Path:
        """Folder of the slide stores."""
        return self.dir / "slides"

    def make_slides(self, *, workers: int = 2, strict: bool = False, progress: bool = True) -> pd.DataFrame:
        """Cut every slide of the cohort into regions; returns one outcome per slide (also kept as slides.parquet).

        Slides that failed for a passing reason, and stores that are gone, are done by the next call, they alone.
        """
        road.do(self, "slides", workers=workers, strict=strict, progress=progress)
        return self.slide_outcomes()

    def slide_outcomes(self) -> pd.DataFrame:
        """What became of each slide; empty before the first call of ``make_slides``."""
        path = self.dir / "slides.parquet"
        return pd.read_parquet(path) if path.exists() else pd.DataFrame()

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

    # --- molecules ----------------------------------------------------------------------------------------------

    def load_omics(self) -> mudata.MuData:
        """Read the omics tables of the cohort into one MuData and keep it as omics.h5mu."""
        road.do(self, "omics")
        return self.omics()

    def omics(self) -> mudata.MuData:
        """The stored MuData; raises FileNotFoundError naming the step to run."""
        from hcmae.omics.kept import read_h5mu

        path = self.dir / "omics.h5mu"
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing: run load_omics() (notebook 04) for {self.cancer} first")
        return read_h5mu(path)

    # --- networks on images -------------------------------------------------------------------------------------

    def pool(self) -> list[Run]:
        """The runs whose slides pre-train the networks: every cancer of this profile that has been cut into regions.

        Pre-training sees the images of all patients, test patients included, and no label (transductive, as in the
        release). The null cohort takes no part. Raises FileNotFoundError where no cancer has slides.
        """
        found = sorted(path.parent.name for path in self.profile_dir.glob("*/slides.parquet"))
        ready = [self if cancer == self.cancer else self.sibling(cancer) for cancer in found if cancer != NULL_COHORT]
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

    def dino_weights(self, stage: Literal["patch", "region"]) -> Path:
        """Weights of one of HIPT's two stages."""
        return self.pretrain_dir / "dino" / f"hipt_{stage}.safetensors"

    def pretrain_patch(self, *, progress: bool = True) -> Path:
        """Pre-train MAE-Patch on the pool and write the patch vectors of every slide of the pool."""
        road.do(self, "mae_patch", progress=progress)
        self._write_pool("patch_vectors", progress)
        return self.patch_weights

    def pretrain_region(self, variant: Variant = "patreg", *, progress: bool = True) -> Path:
        """Pre-train MAE-Region ('patreg' with, 'reg' without patch vectors) and write the pool's region vectors."""
        if work.starts_warm(self.profile, variant):
            self.pretrain_region("reg", progress=progress)
        road.do(self, f"mae_region_{variant}", progress=progress)
        self._write_pool("region_vectors" if variant == "patreg" else "region_vectors_reg", progress)
        return self.region_weights(variant)

    def pretrain_dino(self, *, progress: bool = True) -> Path:
        """Pre-train both DINO stages of HIPT on the same pool and write HIPT's vectors (lesson 09)."""
        road.do(self, "dino_patch", progress=progress)
        self._write_pool("hipt_patch_vectors", progress)
        road.do(self, "dino_region", progress=progress)
        self._write_pool("region_vectors_hipt", progress)
        return self.pretrain_dir / "dino"

    def _write_pool(self, step: str, progress: bool) -> None:
        for run in self.pool():
            road.do(run, step, progress=progress)

    def embed(self, *, progress: bool = True) -> None:
        """Patch and region vectors of this cancer's slides, with the weights that lie in the pre-training folder.

        HIPT's vectors too, where its two stages have been trained. Raises FileNotFoundError for missing weights.
        """
        for path in (self.patch_weights, *(self.region_weights(v) for v in REGION_VARIANTS)):
            if not path.exists():
                raise FileNotFoundError(
                    f"{path} is missing: run notebooks 05 and 06 for profile {self.profile.name} first"
                )
        steps = ["patch_vectors", "region_vectors_reg", "region_vectors"]
        if all(self.dino_weights(stage).exists() for stage in ("patch", "region")):
            # The second stage reads the vectors of the first.
            steps += ["hipt_patch_vectors", "region_vectors_hipt"]
        for step in steps:
            road.do(self, step, progress=progress)

    def embed_resnet(self, weights: str | Path, *, progress: bool = True) -> None:
        """Write the patch vectors of an ImageNet ResNet-50 whose weights are on disk, for MCAT and CLAM (lesson 09).

        weights: a safetensors file with timm's or torchvision's names. Raises CheckpointError for any other.
        """
        from hcmae.pretraining.checkpoint import load_resnet

        load_resnet(weights)  # names a missing or wrong file before the step asks for its hash
        road.do(self, "resnet_vectors", weights=weights, progress=progress)

    def measure_nuclei(self, *, workers: int = 2, progress: bool = True) -> None:
        """Write the hand-crafted nuclear features that GPDBN and CAMR read (lesson 09)."""
        road.do(self, "nuclei", workers=workers, progress=progress)

    # --- survival -----------------------------------------------------------------------------------------------

    @cached_property
    def survival_data(self) -> SurvivalData:
        """Everything a survival method may need, in memory."""
        from dataclasses import replace

        from hcmae.omics.kept import read_normals
        from hcmae.survival.data import load_inputs

        limit = self.profile.fidelity.max_regions
        data = load_inputs(self.cohort().table, self.store_dir, self.omics(), max_regions=limit)
        if self.profile.omics.contrast != "tumour_normal":
            return data
        return replace(data, normals=read_normals(self.root, list(self.omics().mod)))

    def folds(self, *, repeats: int | None = None) -> pd.DataFrame:
        """Test folds of every repeat, made once, kept as folds_<folds>x<repeats>.parquet and shared by all methods."""
        road.do(self, "folds", say=lambda _: None, repeats=repeats)
        return pd.read_parquet(work.fold_path(self, repeats))

    def evaluate(
        self,
        method: str,
        protocol: str | Protocol = "honest",
        *,
        repeats: int | None = None,
        data: SurvivalData | None = None,
        label: str | None = None,
        workers: int = 1,
    ) -> pd.DataFrame:
        """Out-of-fold predictions of one method: columns patient, repeat, fold, risk, time, event.

        Kept as predictions/<protocol>/<method>.parquet; folds that are done are not trained again. ``data`` replaces
        the cohort's own data (for permuted labels, say) and then needs a ``label`` that names its folder.
        """
        from hcmae.survival.cross_validate import cross_validate

        if isinstance(protocol, str):
            protocol = Protocol.preset(protocol)  # type: ignore[arg-type]
        if data is not None and label is None:
            raise ConfigError("evaluate(data=...) needs label=..., the folder its predictions are kept in")
        folder = self.dir / "predictions" / (f"{label}-{protocol.name}" if label else protocol.name)
        return cross_validate(
            method,
            data if data is not None else self.survival_data,
            self.folds(repeats=repeats),
            self.profile,
            protocol,
            seed=self.seed,
            out_dir=folder,
            omics_cache=self.dir / "omics_cache",
            workers=workers,
        )

    # --- results ------------------------------------------------------------------------------------------------

    def save_result(self, name: str, value: dict[str, Any]) -> Path:
        """Write results/<name>.json with the provenance of the run beside the numbers."""
        return results.save_result(self, name, value)

    def load_result(self, name: str) -> dict[str, Any]:
        """Read results/<name>.json back; raises FileNotFoundError naming it."""
        return results.load_result(self, name)

    def provenance(self) -> dict[str, Any]:
        """Where a number comes from: cancer, profile, source, seed, folds, settings hash, library version, commit."""
        return results.provenance(self)


def all_runs(run: Run, cancers: tuple[str, ...] = CANCERS) -> list[Run]:
    """The same run for every cancer that has been curated, in the paper's order."""
    return [run.sibling(cancer) for cancer in cancers if (run.profile_dir / cancer / "cohort.parquet").exists()]


def example_data() -> Path | None:
    """Folder with small real data (slides/, lihc_real/, mirna_gdc/), or None.

    Looked for at $HCMAE_SHARED_DATA, then in shared/data beside the checkout; notebooks show a section on real input
    where it exists.
    """
    beside = Path(__file__).resolve().parents[3] / "shared" / "data"
    for candidate in (os.environ.get("HCMAE_SHARED_DATA"), beside):
        if candidate and Path(candidate).is_dir():
            return Path(candidate)
    return None
