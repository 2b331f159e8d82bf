"""Who the synthetic patients are: latent factors, regions, hazard, follow-up, and why some must be excluded."""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hcmae.config import CANCERS, Profile
from hcmae.manifest import Manifest
from hcmae.synthetic.survival_times import concordance, simulate_survival

FACTORS = ("cell", "architecture", "burden", "shared", "omics")
# Correlation of the omics programme that is shared with the images and the cell factor.
SHARED_WITH_CELL = 0.7
# Factors are kept within this many standard deviations, so that no painted quantity saturates.
LIMIT = 2.2
WEIBULL_SHAPE = 1.3

# What curation must find and leave out, one patient each: (reason, what the generator does to the patient).
EXCLUSIONS = (
    "short_follow_up",
    "short_follow_up_death",
    "missing_follow_up",
    "negative_follow_up",
    "dead_without_date",
    "vital_status_unknown",
    "no_slide",
    "no_rna",
    "no_mirna",
    "no_methylation",
    "metastasis_only",
    "no_clinical",
)


@dataclass(frozen=True)
class Patient:
    """One synthetic patient; ``exclusion`` is empty for those who belong to the cohort."""

    index: int
    barcode: str
    exclusion: str
    cell: float
    architecture: float
    shared: float
    omics: float
    regions: int
    tumour_regions: int
    time: int
    event: int
    log_hazard: float
    extra_slide: bool = False
    extra_rna: bool = False
    normal_rna: bool = False


def patient_rng(seed: int, index: int, purpose: int) -> np.random.Generator:
    """Independent, reproducible stream per patient and purpose: the order of the workers cannot matter."""
    return np.random.default_rng([seed, index, purpose])


def stable_uuid(*parts: object) -> str:
    """A UUID (version 4 in form) that depends on nothing but its parts."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return str(uuid.UUID(bytes=digest[:16], version=4))


def cohort_seed(seed: int, cancer: str) -> int:
    """One number from seed and cancer: patients of two cancers share no random stream."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{cancer}".encode()).digest()[:7], "big")


def cohort_size(manifest: Manifest, profile: Profile) -> int:
    """How many patients remain after curation."""
    return max(1, round(manifest.synthetic.patients * profile.synthetic.patient_scale))


def draw_patients(
    manifest: Manifest, profile: Profile, seed: int, *, null: bool = False
) -> tuple[list[Patient], pd.DataFrame]:
    """Draw the cohort: factors, regions, survival; then the patients who are planted to be excluded.

    Returns all patients, and the truth of those who belong to the cohort: index patient, columns cell, architecture,
    burden, shared, omics (each mean 0, sd 1), log_hazard, time (days), event.
    """
    twin = manifest.synthetic
    n = cohort_size(manifest, profile)
    total = n + len(EXCLUSIONS)
    cancer = "NULL" if null else manifest.cancer
    rng = np.random.default_rng([cohort_seed(seed, cancer), 1])

    cell = _bounded(rng, total)
    architecture = _bounded(rng, total)
    omics = _bounded(rng, total)
    shared = SHARED_WITH_CELL * cell + np.sqrt(1 - SHARED_WITH_CELL**2) * _bounded(rng, total)
    regions = _regions(manifest.regions_per_slide * profile.synthetic.region_scale, total, rng)
    # Share of tumour from a fifth to the whole slide; the truth is the share that can be seen, after rounding.
    wished = 0.15 + 0.85 * rng.uniform(size=total)
    tumour = np.clip(np.round(wished * regions), 1, regions).astype(int)

    table = pd.DataFrame({"cell": cell, "architecture": architecture, "burden": tumour / regions})
    table["shared"], table["omics"] = shared, omics
    inside = np.arange(total) < n
    table = (table - table[inside].mean()) / table[inside].std(ddof=0)

    weights = twin.hazard
    log_hazard = sum(getattr(weights, name) * table[name].to_numpy() for name in FACTORS)
    log_hazard = np.zeros(total) if null else log_hazard - log_hazard[:n].mean()
    survival = simulate_survival(
        log_hazard[:n], median_days=twin.median_days, event_rate=twin.event_rate, shape=WEIBULL_SHAPE, seed=rng
    )
    # Everybody in the cohort outlives the inclusion limit; the order of the times, hence the oracle, is untouched.
    time = np.ceil(survival.time).astype(int) + manifest.inclusion.min_days
    time = np.concatenate([time, rng.integers(400, 2000, size=total - n)])
    event = np.concatenate([survival.event, np.zeros(total - n, dtype=int)])
    table["log_hazard"], table["time"], table["event"] = log_hazard, time, event

    order = rng.permutation(total)  # the odd ones are spread over the cohort
    extras = rng.permutation(n)
    patients = []
    for position, source in enumerate(order):
        row = table.iloc[int(source)]
        patients.append(
            Patient(
                index=position,
                barcode=_barcode(cancer, position),
                exclusion="" if source < n else EXCLUSIONS[int(source) - n],
                cell=float(row["cell"]),
                architecture=float(row["architecture"]),
                shared=float(row["shared"]),
                omics=float(row["omics"]),
                regions=int(regions[source]),
                tumour_regions=int(tumour[source]),
                time=int(row["time"]),
                event=int(row["event"]),
                log_hazard=float(row["log_hazard"]),
                extra_slide=bool(source in extras[:3]),
                extra_rna=bool(source in extras[2:5]),
                normal_rna=bool(source in extras[5:8]),
            )
        )
    barcodes = {int(source): patient.barcode for source, patient in zip(order, patients, strict=True)}
    truth = table[inside].copy()
    truth.index = pd.Index([barcodes[i] for i in range(n)], name="patient")
    return patients, truth.sort_index()


def oracle_c_index(truth: pd.DataFrame) -> float:
    """C-index of the true log hazard: no model of these patients can be expected to do better."""
    return concordance(truth["time"].to_numpy(), truth["event"].to_numpy(), truth["log_hazard"].to_numpy())


def _bounded(rng: np.random.Generator, n: int) -> np.ndarray:
    """Normal values folded back into +-LIMIT by drawing again."""
    values = rng.normal(size=n)
    while (outside := np.abs(values) > LIMIT).any():
        values[outside] = rng.normal(size=int(outside.sum()))
    return values


def _regions(mean: float, n: int, rng: np.random.Generator) -> np.ndarray:
    """Regions per slide: log-normal around the mean, at least three."""
    spread = 0.3
    values = max(mean, 3.0) * np.exp(rng.normal(-(spread**2) / 2, spread, size=n))
    return np.maximum(3, np.round(values)).astype(int)


def _barcode(cancer: str, index: int) -> str:
    """Form of a TCGA barcode; no real participant code starts with S."""
    site = f"Y{CANCERS.index(cancer)}" if cancer in CANCERS else "YN"
    return f"TCGA-{site}-S{index:03X}"
