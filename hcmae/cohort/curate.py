"""Who is in the cohort, who is not, and why: named rules in a fixed order, every loss on record.

A patient stays with a known outcome, one diagnostic slide and one file per modality. Where a patient has several, one
is chosen: a slide at random with the seed, an aliquot by the barcode rules of :mod:`hcmae.cohort.barcodes`.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hcmae.cohort.barcodes import (
    DIAGNOSTIC,
    choose_aliquot,
)
from hcmae.cohort.clinical import ClinicalError, Outcome
from hcmae.cohort.evidence import SLIDE_SUFFIXES, Candidate, CurationError, Evidence, check_modalities, slide_barcode
from hcmae.cohort.local import local_evidence
from hcmae.cohort.lock import lock_evidence, read_lock
from hcmae.config import MODALITIES
from hcmae.manifest import Inclusion, Manifest

ANALYTE = {"rna": "RNA", "mirna": "RNA", "methylation": "DNA"}
SOURCES = ("synthetic", "gdc", "local")


@dataclass(frozen=True)
class Cohort:
    """The outcome of curation.

    ``table``: indexed by patient, in sorted order: time (days, float), event (0 or 1), age (years), sex, stage, grade,
    slide (id: file name without suffix), slide_path, and per modality <m>_path and <m>_sample; note.
    ``exclusions``: patient, rule, reason; one row per excluded patient, the first rule that failed.
    ``flow``: rule, before, excluded, after; one row per rule, in order.
    ``choices``: patient, modality, sample, path, kept; patients who offered more than one file (empty when read back).
    """

    table: pd.DataFrame
    exclusions: pd.DataFrame
    flow: pd.DataFrame
    choices: pd.DataFrame = field(default_factory=pd.DataFrame)


def curate(
    manifest: Manifest,
    source: str,
    root: str | Path,
    *,
    seed: int,
    modalities: Sequence[str] = MODALITIES,
    slides: bool = True,
) -> Cohort:
    """Apply the inclusion rules (section III-A) to the raw data at ``root``.

    ``source``: 'gdc' and 'synthetic' read the lock ``files.tsv``, ``clinical.json`` and the files of the lock; 'local'
    reads the tables and slides that a user brings. ``modalities`` and ``slides`` say what a patient must have. The
    synthetic slides are small, so their least size is not asked.

    Raises CurationError (or ClinicalError) for missing or contradictory raw data, and where no patient is left.
    """
    root = Path(root)
    modalities = tuple(m for m in MODALITIES if m in modalities) if check_modalities(modalities) else ()
    inclusion = manifest.inclusion
    if source == "synthetic":
        inclusion = inclusion.model_copy(update={"min_slide_bytes": 0})
    if source == "local":
        evidence = local_evidence(root, modalities, slides)
    elif source in SOURCES:
        evidence = lock_evidence(manifest, root, modalities, slides)
    else:
        raise CurationError(f"unknown source '{source}': choose one of {', '.join(SOURCES)}")
    return apply_rules(evidence, inclusion, seed=seed, modalities=modalities, slides=slides, where=str(root))


def apply_rules(
    evidence: Evidence,
    inclusion: Inclusion,
    *,
    seed: int,
    modalities: Sequence[str] = MODALITIES,
    slides: bool = True,
    where: str = "the raw data",
) -> Cohort:
    """The rules themselves, on evidence already read. Raises CurationError where nobody is left."""
    chosen: dict[str, dict[str, Candidate]] = {name: {} for name in (*modalities, "slides")}
    choices: list[dict[str, Any]] = []
    remaining = evidence.patients
    exclusions: list[tuple[str, str, str]] = []
    flow: list[tuple[str, int, int, int]] = []
    for rule, judge in _rules(evidence, inclusion, seed, modalities, slides, chosen, choices):
        before = len(remaining)
        kept = []
        for patient in remaining:
            reason = judge(patient)
            if reason:
                exclusions.append((patient, rule, reason))
            else:
                kept.append(patient)
        flow.append((rule, before, before - len(kept), len(kept)))
        remaining = kept
    frame = pd.DataFrame(flow, columns=["rule", "before", "excluded", "after"])
    losses = pd.DataFrame(exclusions, columns=["patient", "rule", "reason"])
    if not remaining:
        raise CurationError(_nobody_left(where, evidence, frame, modalities, slides))
    table = pd.DataFrame(
        [_row(evidence.outcomes[p], chosen, modalities, slides) for p in remaining],
        index=pd.Index(remaining, name="patient"),
    )
    return Cohort(
        table, losses, frame, pd.DataFrame(choices, columns=["patient", "modality", "sample", "path", "kept"])
    )


def _rules(
    evidence: Evidence,
    inclusion: Inclusion,
    seed: int,
    modalities: Sequence[str],
    slides: bool,
    chosen: dict[str, dict[str, Candidate]],
    choices: list[dict[str, Any]],
) -> Iterator[tuple[str, Callable[[str], str]]]:
    """Names of the rules in order, each with a function from patient to reason ('' keeps the patient)."""
    outcomes = evidence.outcomes

    yield "clinical record", lambda p: "" if p in outcomes else "has files, but no clinical record"
    yield "known vital status", lambda p: "" if outcomes[p].event is not None else outcomes[p].reason
    yield "known survival time", lambda p: "" if outcomes[p].time is not None else outcomes[p].reason

    def long_enough(patient: str) -> str:
        days = outcomes[patient].time
        assert days is not None
        return "" if days >= inclusion.min_days else f"followed for {days:.4g} days only"

    yield f"followed for {inclusion.min_days} days or more", long_enough

    if slides:
        pool = {p: list(c) for p, c in evidence.candidates.get("slides", {}).items()}

        def narrowed(keep: Callable[[Candidate], bool], loss: Callable[[list[Candidate]], str]) -> Callable[[str], str]:
            def judge(patient: str) -> str:
                had = pool.get(patient, [])
                pool[patient] = [c for c in had if keep(c)]
                return "" if pool[patient] else loss(had)

            return judge

        losses: tuple[Callable[[list[Candidate]], str], ...] = (
            lambda had: f"frozen sections only ({len(had)})" if had else "no slide",
            lambda had: f"slides of sample type {_types(had)} only",
            lambda had: f"largest slide has {max(c.size for c in had) / 1e6:.3g} MB, too little for a whole section",
        )
        for (name, keep), loss in zip(slide_rules(inclusion), losses, strict=False):
            yield name, narrowed(keep, loss)

        def draw(patient: str) -> str:
            chosen["slides"][patient] = draw_slide(patient, pool[patient], seed)
            _note_choice(choices, patient, "slides", evidence.candidates["slides"][patient], chosen["slides"][patient])
            return ""
    else:

        def draw(patient: str) -> str:
            return ""

    for position, modality in enumerate(modalities):

        def has_file(patient: str, modality: str = modality, first: bool = position == 0) -> str:
            if first:
                draw(patient)
            found = evidence.candidates.get(modality, {}).get(patient, [])
            fitting = [
                c for c in found
                if (not evidence.need_barcode if c.barcode is None else c.barcode.sample_type in inclusion.sample_types)
            ]  # fmt: skip
            if not fitting:
                return f"{modality} of sample type {_types(found)} only" if found else f"no {modality} data"
            chosen[modality][patient] = choose_file(fitting, modality)
            _note_choice(choices, patient, modality, found, chosen[modality][patient])
            return ""

        yield f"{modality} data", has_file

    def fetched(patient: str) -> str:
        if slides and patient not in chosen["slides"]:
            draw(patient)
        missing = [name for name in chosen if patient in chosen[name] and not Path(chosen[name][patient].path).exists()]
        return f"not downloaded: {', '.join(missing)}" if missing else ""

    yield "files on disk", fetched


def draw_slide(patient: str, candidates: Sequence[Candidate], seed: int) -> Candidate:
    """One of a patient's slides at random; the choice depends on seed and patient, not on who else is in the cohort."""
    found = sorted(candidates, key=lambda c: Path(c.path).name)
    rng = np.random.default_rng([seed, zlib.crc32(patient.encode())])
    return found[int(rng.integers(len(found)))]


def drawn_slides(lock: pd.DataFrame, inclusion: Inclusion, seed: int) -> set[str]:
    """Ids of the slides that curation draws from a lock, one per patient who has an eligible one."""
    pool: dict[str, list[Candidate]] = {}
    for row in lock[lock["modality"] == "slides"].itertuples():
        barcode = slide_barcode(str(row.filename), str(row.sample))
        candidate = Candidate(f"{row.id}/{row.filename}", str(row.sample), int(str(row.size)), barcode)
        if all(keep(candidate) for _, keep in slide_rules(inclusion)):
            pool.setdefault(str(row.case), []).append(candidate)
    return {draw_slide(case, found, seed).path.split("/")[0] for case, found in pool.items()}


def slide_rules(inclusion: Inclusion) -> list[tuple[str, Callable[[Candidate], bool]]]:
    """The rules for slides in order: name, and what a slide must be. Slides without barcode (of other origin) pass."""
    diagnostic = inclusion.slide_kind == "diagnostic"
    types = inclusion.sample_types
    rules: list[tuple[str, Callable[[Candidate], bool]]] = [
        (
            "diagnostic slide" if diagnostic else "slide",
            lambda c: not diagnostic or c.barcode is None or c.barcode.slide_kind == DIAGNOSTIC,
        ),
        (f"slide of sample type {', '.join(types)}", lambda c: c.barcode is None or c.barcode.sample_type in types),
    ]
    if inclusion.min_slide_bytes:
        megabytes = inclusion.min_slide_bytes / 1e6
        rules.append((f"slide of {megabytes:g} MB or more", lambda c: c.size >= inclusion.min_slide_bytes))
    return rules


def choose_file(candidates: Sequence[Candidate], modality: str) -> Candidate:
    """One of a patient's omics files: by barcode rules, and for methylation the larger array first.

    Candidates without a barcode: the first by sample name. Raises nothing for a non-empty list.
    """
    if modality == "methylation":
        # A 27k file has a sixteenth of the probes of a 450k file of the same patient.
        largest = max(c.size for c in candidates)
        candidates = [c for c in candidates if c.size * 2 > largest] or list(candidates)
    coded = {c.sample: c for c in sorted(candidates, key=lambda c: c.path) if c.barcode is not None}
    if not coded:
        return min(candidates, key=lambda c: (c.sample, c.path))
    return coded[choose_aliquot(coded, ANALYTE[modality])]


def table1_comparison(manifest: Manifest, cohort: Cohort) -> pd.DataFrame:
    """The paper's Table I beside this cohort: quantity, paper, here, difference.

    ``regions`` and ``patches`` are known after the slides are cut and are left out here.
    """
    here = len(cohort.table)
    paper = manifest.table1.patients
    return pd.DataFrame([("patients", paper, here, here - paper)], columns=["quantity", "paper", "here", "difference"])


def other_readings(
    manifest: Manifest,
    source: str,
    root: str | Path,
    *,
    seed: int,
    modalities: Sequence[str] = MODALITIES,
    slides: bool = True,
) -> pd.DataFrame:
    """How many patients the cohort would have under other readings of the paper: reading, patients, deaths, difference.

    One rule is changed at a time; ``difference`` is to Table I's number, so that what explains it can be seen. Raises
    what :func:`curate` raises.
    """

    def counted(name: str, *, kept: Sequence[str] = modalities, **change: Any) -> tuple[str, int, int, int]:
        changed = manifest.model_copy(update={"inclusion": manifest.inclusion.model_copy(update=change)})
        table = curate(changed, source, root, seed=seed, modalities=kept, slides=slides).table
        return name, len(table), int(table["event"].sum()), len(table) - manifest.table1.patients

    rows = [counted("as curated"), counted("without the least time", min_days=0)]
    if slides:
        rows.append(counted("slides of any size and kind", min_slide_bytes=0, slide_kind="any"))
    if len(modalities) > 1:
        rows += [counted(f"without asking for {m}", kept=[k for k in modalities if k != m]) for m in modalities]
    return pd.DataFrame(rows, columns=["reading", "patients", "deaths", "difference"])


# ---------------------------------------------------------------- small parts


def _types(candidates: Iterable[Candidate]) -> str:
    return ", ".join(sorted({(c.barcode.sample_type if c.barcode else None) or "unknown" for c in candidates}))


def _note_choice(
    choices: list[dict[str, Any]], patient: str, modality: str, found: Sequence[Candidate], kept: Candidate
) -> None:
    if len(found) > 1:
        for c in found:
            choices.append(
                {"patient": patient, "modality": modality, "sample": c.sample, "path": c.path, "kept": c is kept}
            )


def _row(
    outcome: Outcome, chosen: Mapping[str, Mapping[str, Candidate]], modalities: Sequence[str], slides: bool
) -> dict[str, Any]:
    assert outcome.time is not None
    assert outcome.event is not None
    slide = chosen["slides"].get(outcome.patient) if slides else None
    row: dict[str, Any] = {
        "time": float(outcome.time),
        "event": int(outcome.event),
        "age": outcome.age if outcome.age is not None else np.nan,
        "sex": outcome.sex,
        "stage": outcome.stage,
        "grade": outcome.grade,
        "slide": _slide_id(slide.path) if slide else None,
        "slide_path": slide.path if slide else None,
    }
    for modality in MODALITIES:
        file = chosen[modality].get(outcome.patient) if modality in modalities else None
        row[f"{modality}_path"] = file.path if file else None
        row[f"{modality}_sample"] = file.sample if file else None
    row["note"] = outcome.note
    return row


def _slide_id(path: str) -> str:
    name = Path(path).name
    suffix = Path(path).suffix
    return name[: -len(suffix)] if suffix.lower() in SLIDE_SUFFIXES else name


def _nobody_left(where: str, evidence: Evidence, flow: pd.DataFrame, modalities: Sequence[str], slides: bool) -> str:
    worst = flow[flow["before"] > 0].iloc[-1] if (flow["before"] > 0).any() else None
    if worst is None:
        return f"{where}: no patient at all; check that the data are there"
    sets = {"clinical": set(evidence.outcomes)}
    sets |= {m: set(evidence.candidates.get(m, {})) for m in modalities}
    if slides:
        sets["slides"] = set(evidence.candidates.get("slides", {}))
    names = sorted(sets)
    for i, a in enumerate(names):
        for b in names[i + 1 :]:
            if sets[a] and sets[b] and not sets[a] & sets[b]:
                return (
                    f"{where}: {a} and {b} share no patient (for example {min(sets[a])} and {min(sets[b])}); "
                    "write the patients' names in the same way in both"
                )
    return (
        f"{where}: no patient is left after the rule '{worst['rule']}' "
        f"({worst['before']} before it); see the flow:\n{flow.to_string(index=False)}"
    )


__all__ = [
    "Candidate",
    "ClinicalError",
    "Cohort",
    "CurationError",
    "Evidence",
    "apply_rules",
    "choose_file",
    "curate",
    "read_lock",
    "table1_comparison",
]
