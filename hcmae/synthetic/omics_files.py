"""Omics files in the GDC's own formats: STAR counts, miRNA quantification, SeSAMe betas, with planted programmes.

A programme is a set of features that rise and fall together with one latent value. ``shared`` and ``omics`` drive the
hazard, the distractors do not: they are the co-expression that a selection without labels picks. The rest is noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hcmae.config import SyntheticSettings
from hcmae.files import write_text

DISTRACTORS = 3
# Log2 change of a count, or logit change of a beta, per standard deviation of the programme.
RNA_EFFECT = (0.5, 1.0)
METHYLATION_EFFECT = (0.35, 0.7)
GENE_TYPES = ("protein_coding", "lncRNA", "processed_pseudogene", "misc_RNA")
STAR_HEADER = (
    "# gene-model: GENCODE v36\n"
    "gene_id\tgene_name\tgene_type\tunstranded\tstranded_first\tstranded_second"
    "\ttpm_unstranded\tfpkm_unstranded\tfpkm_uq_unstranded\n"
)
FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """The features of one modality: names, base levels, and how each programme loads on them."""

    names: list[str]
    base: FloatArray  # [F] log2 mean count, or logit of beta
    spread: FloatArray  # [F] negative-binomial dispersion, or sd of the logit
    loadings: FloatArray  # [F, 2 + DISTRACTORS] columns: shared, omics, distractors
    sparse: NDArray[np.bool_]  # [F] largely missing (methylation only)
    prefixes: list[str] = field(default_factory=list)  # constant text that starts each row (RNA)
    length: FloatArray = field(default_factory=lambda: np.empty(0))  # [F] kilobases (RNA)

    def planted(self) -> dict[str, dict[str, list[str]]]:
        """Names of the planted features per programme and direction."""
        labels = ["shared", "omics", *(f"distractor_{i + 1}" for i in range(DISTRACTORS))]
        return {
            label: {
                "up": [self.names[i] for i in np.flatnonzero(self.loadings[:, k] > 0)],
                "down": [self.names[i] for i in np.flatnonzero(self.loadings[:, k] < 0)],
            }
            for k, label in enumerate(labels)
        }


@dataclass(frozen=True)
class Catalogue:
    """Features of the three modalities, drawn once per seed and shared by all cancers of that seed."""

    rna: Features
    mirna: Features
    methylation: Features


def draw_catalogue(settings: SyntheticSettings, seed: int) -> Catalogue:
    """Name the features, choose the planted ones."""
    rng = np.random.default_rng([seed, 101])
    return Catalogue(
        rna=_genes(settings.genes, rng),
        mirna=_mirnas(settings.mirnas, rng),
        methylation=_probes(settings.probes, rng),
    )


def programme_size(features: int) -> int:
    """Planted features per programme: a tenth, at least 4, at most 40."""
    return int(np.clip(features // 10, 4, 40))


def write_rna(path: Path, features: Features, programmes: FloatArray, rng: np.random.Generator) -> None:
    """STAR counts: comment, header, four N_ rows, then genes with integer counts and TPM, FPKM, FPKM-UQ.

    programmes [2 + DISTRACTORS] are the patient's values of the programmes.
    """
    library = np.exp(rng.normal(0, 0.3))
    mean = np.exp2(np.minimum(features.base + features.loadings @ programmes, 18.0)) * library
    dispersion = features.spread
    counts = rng.poisson(rng.gamma(1.0 / dispersion, mean * dispersion))
    first = rng.binomial(counts, 0.5)
    second = counts - first
    total = max(int(counts.sum()), 1)
    rate = counts / features.length
    tpm = rate * (1e6 / max(rate.sum(), 1e-9))
    fpkm = rate * (1e6 / total)
    expressed = counts[counts > 0]
    upper = np.percentile(expressed, 75) if len(expressed) else 1.0
    fpkm_uq = fpkm * (total / (upper * len(counts)))
    noise = (total * np.array([0.03, 0.09, 0.05, 0.03]) * rng.uniform(0.6, 1.6, size=4)).astype(int).tolist()
    lines = [STAR_HEADER]
    for label, value in zip(("unmapped", "multimapping", "noFeature", "ambiguous"), noise, strict=True):
        lines.append(f"N_{label}\t\t\t{value}\t{value}\t{value}\t\t\t\n")
    columns = (counts.tolist(), first.tolist(), second.tolist(), tpm.tolist(), fpkm.tolist(), fpkm_uq.tolist())
    lines += [
        "%s%d\t%d\t%d\t%.4f\t%.4f\t%.4f\n" % row  # noqa: UP031  (a third faster than f-strings here)
        for row in zip(features.prefixes, *columns, strict=True)
    ]
    write_text(path, "".join(lines))


def write_mirna(path: Path, features: Features, programmes: FloatArray, rng: np.random.Generator) -> None:
    """miRNA quantification: read_count (integer), reads per million, cross-mapped flag."""
    library = np.exp(rng.normal(0, 0.35))
    mean = np.exp2(np.minimum(features.base + features.loadings @ programmes, 18.0)) * library
    counts = rng.poisson(rng.gamma(1.0 / features.spread, mean * features.spread))
    rpm = counts * (1e6 / max(int(counts.sum()), 1))
    crossed = np.where(rng.uniform(size=len(counts)) < 0.08, "Y", "N").tolist()
    rows = zip(features.names, counts.tolist(), rpm.tolist(), crossed, strict=True)
    body = "".join(["%s\t%d\t%.6f\t%s\n" % row for row in rows])  # noqa: UP031
    write_text(path, "miRNA_ID\tread_count\treads_per_million_miRNA_mapped\tcross-mapped\n" + body)


def write_methylation(path: Path, features: Features, programmes: FloatArray, rng: np.random.Generator) -> None:
    """SeSAMe betas: probe and beta, no header, ``NA`` where the probe failed."""
    batch = rng.normal(0, 0.08)
    logit = (
        features.base + features.loadings @ programmes + batch + rng.normal(size=len(features.base)) * features.spread
    )
    beta = 1.0 / (1.0 + np.exp(-logit))
    missing = rng.uniform(size=len(beta)) < np.where(features.sparse, 0.65, 0.012)
    rows = zip(features.names, beta.tolist(), missing.tolist(), strict=True)
    write_text(path, "".join([f"{name}\tNA\n" if lost else "%s\t%.12f\n" % (name, b) for name, b, lost in rows]))  # noqa: UP031


def _loadings(
    count: int, allowed: NDArray[np.int64], effect: tuple[float, float], rng: np.random.Generator
) -> FloatArray:
    """Loadings [count, 2 + DISTRACTORS]; each programme has its own features, about half of them going down."""
    size = programme_size(count)
    sizes = [size, size] + [max(3, size // 2)] * DISTRACTORS
    if sum(sizes) > len(allowed):
        raise ValueError(
            f"synthetic: {count} features are too few for the planted programmes; raise genes, mirnas and probes to 60"
        )
    chosen = np.split(rng.permutation(allowed)[: sum(sizes)], np.cumsum(sizes)[:-1])
    loadings = np.zeros((count, len(sizes)))
    for column, members in enumerate(chosen):
        strength = rng.uniform(*effect, size=len(members))
        sign = np.where(np.arange(len(members)) % 2 == 0, 1.0, -1.0)
        loadings[members, column] = strength * sign
    return loadings


def _genes(count: int, rng: np.random.Generator) -> Features:
    numbers = np.sort(rng.choice(np.arange(3, 290_000), size=count, replace=False))
    versions = rng.integers(1, 19, size=count)
    names = [f"ENSG{number:011d}.{version}" for number, version in zip(numbers, versions, strict=True)]
    symbols = [f"SYN{number}" for number in numbers]
    if count >= 100:
        # As in GENCODE: some symbols name two genes, and pseudo-autosomal genes come a second time.
        symbols[7] = symbols[3]
        names[-1], symbols[-1] = f"{names[-2]}_PAR_Y", symbols[-2]
    kinds = rng.choice(GENE_TYPES, size=count, p=(0.55, 0.25, 0.15, 0.05))
    base = rng.normal(6.0, 2.6, size=count)
    base[rng.uniform(size=count) < 0.05] = -6.0  # genes that are hardly ever seen
    loadings = _loadings(count, np.arange(0, max(count - 2, 1)), RNA_EFFECT, rng)
    planted = np.abs(loadings).sum(axis=1) > 0
    base[planted] = rng.uniform(5.0, 10.0, size=int(planted.sum()))
    kinds[planted] = "protein_coding"
    return Features(
        names=names,
        base=base,
        spread=rng.uniform(0.08, 0.35, size=count),
        loadings=loadings,
        sparse=np.zeros(count, dtype=bool),
        prefixes=[f"{name}\t{symbol}\t{kind}\t" for name, symbol, kind in zip(names, symbols, kinds, strict=True)],
        length=rng.uniform(0.5, 8.0, size=count),
    )


def _mirnas(count: int, rng: np.random.Generator) -> Features:
    numbers = np.sort(rng.choice(np.arange(1, 9000), size=count, replace=False))
    loadings = _loadings(count, np.arange(count), RNA_EFFECT, rng)
    planted = np.abs(loadings).sum(axis=1) > 0
    base = rng.normal(3.5, 3.0, size=count)
    base[planted] = rng.uniform(4.5, 11.0, size=int(planted.sum()))
    return Features(
        names=sorted(f"hsa-mir-{number}" for number in numbers),
        base=base,
        spread=rng.uniform(0.08, 0.35, size=count),
        loadings=loadings,
        sparse=np.zeros(count, dtype=bool),
    )


def _probes(count: int, rng: np.random.Generator) -> Features:
    other = max(2, count // 100)
    numbers = np.sort(rng.choice(np.arange(29, 27_000_000), size=count - 2 * other, replace=False))
    names = [f"cg{number:08d}" for number in numbers]
    names += [f"ch.{1 + i % 22}.{1000 + 37 * i}F" for i in range(other)] + [
        f"rs{10_000 + 91 * i}" for i in range(other)
    ]
    probes = len(numbers)
    sparse = np.zeros(count, dtype=bool)
    sparse[rng.choice(probes, size=max(2, probes // 50), replace=False)] = True
    loadings = _loadings(count, np.flatnonzero(~sparse[:probes]), METHYLATION_EFFECT, rng)
    planted = np.abs(loadings).sum(axis=1) > 0
    # Probes are mostly unmethylated or mostly methylated.
    base = np.where(rng.uniform(size=count) < 0.5, rng.normal(-2.2, 0.8, count), rng.normal(1.8, 0.9, count))
    base[planted] = rng.uniform(-1.5, 1.5, size=int(planted.sum()))
    return Features(names=names, base=base, spread=rng.uniform(0.25, 0.6, size=count), loadings=loadings, sparse=sparse)
