"""Who is in the cohort, who is not, and why: named rules in a fixed order, every loss on record.

A patient stays with a known outcome, one diagnostic slide and one file per modality. Where a patient has several, one
is chosen: a slide at random with the seed, an aliquot by the barcode rules of :mod:`hcmae.cohort.barcodes`.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hcmae.cohort.annotations import FFPE, described, matching, parsed
from hcmae.cohort.barcodes import DIAGNOSTIC, choose_aliquot
from hcmae.cohort.clinical import ClinicalError, Outcome
from hcmae.cohort.evidence import Candidate, CurationError, Evidence, check_modalities, slide_barcode
from hcmae.cohort.follow_up import warn_of_one_outcome
from hcmae.cohort.local import local_evidence
from hcmae.cohort.lock import is_there, lock_evidence, read_lock
from hcmae.cohort.people import why_no_name_is_shared
from hcmae.cohort.slide_names import without_suffix
from hcmae.config import MODALITIES
from hcmae.manifest import Inclusion, Manifest

ANALYTE = {"rna": "RNA", "mirna": "RNA", "methylation": "DNA"}
SOURCES = ("synthetic", "gdc", "local", "features")
CHOICE_COLUMNS = ("patient", "modality", "sample", "path", "kept", "how")
SLIDE_NOT_FLAGGED = "slide not flagged"
# A rule that leaves out a larger share is worth a second look at the tables.
HEAVY_LOSS = 0.25

Pool = dict[str, list[Candidate]]
Judge = Callable[[str], str]  # patient -> reason to leave out, '' to keep
Keep = Callable[[Candidate], bool]
Loss = Callable[[str, list[Candidate]], str]  # patient, files before the rule -> reason


class UnknownPreservationWarning(UserWarning):
    """The data do not say which aliquots are of FFPE tissue, so that rule is not asked."""


class HeavyLossWarning(UserWarning):
    """A rule leaves out more than a quarter of those before it."""


class SlideOwnerWarning(UserWarning):
    """A slide is one patient's by the clinical table and bears another's name."""


class NobodyLeftError(CurationError):
    """No patient is left. ``exclusions`` and ``flow`` are those of :class:`Cohort`."""

    def __init__(self, message: str, exclusions: pd.DataFrame, flow: pd.DataFrame) -> None:
        super().__init__(message)
        self.exclusions, self.flow = exclusions, flow


@dataclass(frozen=True)
class Cohort:
    """The outcome of curation.

    ``table``: indexed by patient, in sorted order: time (days, float), event (0 or 1), age (years), sex, stage, grade,
    slide (id: file name without suffix), slide_path, and per modality <m>_path and <m>_sample; note.
    ``exclusions``: patient, rule, reason; one row per excluded patient, the first rule that failed.
    ``flow``: rule, before, excluded, after; one row per rule, in order.
    ``choices``: patient, modality, sample, path, kept, how; patients who offered more than one file, how each slide of
    a user's folder was found, and its slides of nobody (empty when read back).
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
    reads the tables and slides that a user brings, 'features' tables and files of features. ``modalities`` and
    ``slides`` say what a patient must have. The synthetic slides and files of features are small, so their least size
    is not asked.

    Raises CurationError (or ClinicalError) for missing or contradictory raw data, where no patient is left, and where
    two patients would share a slide, by its name or by its bytes, or the name of its store. Warns where a slide bears
    the name of another patient than the clinical table gives it to.
    """
    root = Path(root)
    modalities = tuple(m for m in MODALITIES if m in modalities) if check_modalities(modalities) else ()
    if source not in SOURCES:
        raise CurationError(f"unknown source '{source}': choose one of {', '.join(SOURCES)}")
    if source in ("local", "features"):
        evidence = local_evidence(root, modalities, slides, of_features=source == "features")
    else:
        evidence = lock_evidence(manifest, root, modalities, slides)
    if evidence.faults:
        raise CurationError(_all_faults(evidence.faults))
    for doubt in evidence.doubts:
        warnings.warn(doubt, SlideOwnerWarning, stacklevel=2)
    return judged(evidence, manifest, source, root, seed=seed, modalities=modalities, slides=slides)


def judged(
    evidence: Evidence,
    manifest: Manifest,
    source: str,
    root: str | Path,
    *,
    seed: int,
    modalities: Sequence[str],
    slides: bool,
) -> Cohort:
    """The cohort of evidence that has been read from ``root``; see :func:`curate`. Evidence with faults is let pass."""
    inclusion = manifest.inclusion
    if source in ("synthetic", "features"):
        inclusion = inclusion.model_copy(update={"min_slide_bytes": 0})
    if source == "gdc" and inclusion.ffpe_aliquots == "exclude":
        _warn_of_unknown_preservation(evidence, modalities, str(root))
    cohort = apply_rules(evidence, inclusion, seed=seed, modalities=modalities, slides=slides, where=str(root))
    if not evidence.faults:
        _check_slides(cohort.table, str(root))
    return cohort


def _all_faults(faults: Sequence[str], most: int = 10) -> str:
    """One line per fault; the first alone where there is no other."""
    if len(faults) == 1:
        return faults[0]
    more = [f"and {len(faults) - most} more, which hcmae check lists"] if len(faults) > most else []
    return "\n".join([f"{len(faults)} faults:", *faults[:most], *more])


def apply_rules(
    evidence: Evidence,
    inclusion: Inclusion,
    *,
    seed: int,
    modalities: Sequence[str] = MODALITIES,
    slides: bool = True,
    where: str = "the raw data",
) -> Cohort:
    """The rules themselves, on evidence already read. Warns where a rule leaves out more than a quarter.

    Raises NobodyLeftError where nobody is left.
    """
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
    for slide in evidence.unclaimed:
        choices.append(_choice("", "slides", slide, kept=False))
    frame = pd.DataFrame(flow, columns=["rule", "before", "excluded", "after"])
    losses = pd.DataFrame(exclusions, columns=["patient", "rule", "reason"])
    if not remaining:
        raise NobodyLeftError(_nobody_left(where, evidence, frame, modalities, slides), losses, frame)
    _warn_of_heavy_losses(frame, where)
    table = pd.DataFrame(
        [_row(evidence.outcomes[p], chosen, modalities, slides, evidence.notes.get(p, ())) for p in remaining],
        index=pd.Index(remaining, name="patient"),
    )
    warn_of_one_outcome(table["event"].tolist(), where)
    return Cohort(table, losses, frame, pd.DataFrame(choices, columns=list(CHOICE_COLUMNS)))


def _rules(
    evidence: Evidence,
    inclusion: Inclusion,
    seed: int,
    modalities: Sequence[str],
    slides: bool,
    chosen: dict[str, dict[str, Candidate]],
    choices: list[dict[str, Any]],
) -> Iterator[tuple[str, Judge]]:
    """Names of the rules in order, each with a function from patient to reason ('' keeps the patient)."""
    outcomes = evidence.outcomes

    def spelt(patient: str) -> str:
        spelling = evidence.spellings.get(patient)
        return "" if spelling is None else spelling.told()

    yield "clinical record", lambda p: "" if p in outcomes else f"has files, but no clinical record{spelt(p)}"
    if any(outcome.contradiction for outcome in outcomes.values()):
        yield "columns agree", lambda p: outcomes[p].contradiction
    yield "known vital status", lambda p: "" if outcomes[p].event is not None else outcomes[p].reason
    yield "known survival time", lambda p: "" if outcomes[p].time is not None else outcomes[p].reason

    def long_enough(patient: str) -> str:
        days = outcomes[patient].time
        assert days is not None
        return "" if days >= inclusion.min_days else f"followed for {days:.4g} days only"

    yield f"followed for {inclusion.min_days} days or more", long_enough

    if inclusion.exclude_annotations and any(_annotated(found) for found in evidence.candidates.values()):

        def not_flagged(patient: str) -> str:
            own = (a for found in evidence.candidates.values() for c in found.get(patient, ()) for a in c.annotations)
            flags = matching((a for a in own if a.entity == "case"), inclusion.exclude_annotations)
            return f"the patient is flagged: {described(flags)}" if flags else ""

        yield "patient not flagged", not_flagged

    shown = dict(evidence.candidates.get("slides", {})) if slides else {}
    if slides:
        for name, keep, loss in _slide_filters(evidence, inclusion):
            yield name, _narrowed(shown, keep, loss)

    def draw(patient: str) -> None:
        if slides and patient not in chosen["slides"]:
            chosen["slides"][patient] = draw_slide(patient, shown[patient], seed)
            _note_choice(choices, patient, "slides", evidence.candidates["slides"][patient], chosen["slides"][patient])

    for modality in modalities:
        measured = dict(evidence.candidates.get(modality, {}))
        filters = _omics_filters(evidence, inclusion, modality)
        for name, keep, loss in filters:
            narrow, last = _narrowed(measured, keep, loss), name == filters[-1][0]

            def has_file(
                patient: str,
                modality: str = modality,
                measured: Pool = measured,
                narrow: Judge = narrow,
                last: bool = last,
            ) -> str:
                draw(patient)
                reason = narrow(patient)
                if last and not reason:
                    chosen[modality][patient] = choose_file(measured[patient], modality)
                    found = evidence.candidates[modality][patient]
                    _note_choice(choices, patient, modality, found, chosen[modality][patient])
                return reason

            yield name, has_file

    def fetched(patient: str) -> str:
        draw(patient)
        missing = [
            name for name in chosen if patient in chosen[name] and not is_there(Path(chosen[name][patient].path))
        ]
        return f"not downloaded: {', '.join(missing)}" if missing else ""

    yield "files on disk", fetched


def _narrowed(pool: Pool, keep: Keep, loss: Loss) -> Judge:
    """A rule that leaves of each patient's files those to keep, and gives the reason where none is left."""

    def judge(patient: str) -> str:
        had = list(pool.get(patient, ()))
        pool[patient] = [c for c in had if keep(c)]
        return "" if pool[patient] else loss(patient, had)

    return judge


def _slide_filters(evidence: Evidence, inclusion: Inclusion) -> list[tuple[str, Keep, Loss]]:
    """The rules for slides with their reasons; what no slide carries is not asked for."""

    def none(patient: str, had: Sequence[Candidate]) -> str:
        if had:
            return f"frozen sections only ({len(had)})"
        return f"no slide: {evidence.lost[patient]}" if patient in evidence.lost else "no slide"

    losses: tuple[Loss, ...] = (
        none,
        lambda _, had: f"slides of sample type {_types(had)} only",
        lambda _, had: f"largest slide has {max(c.size for c in had) / 1e6:.3g} MB, too little for a whole section",
    )
    rules = [rule for rule in slide_rules(inclusion) if rule[0] != SLIDE_NOT_FLAGGED]
    filters = [(name, keep, loss) for (name, keep), loss in zip(rules, losses, strict=False)]
    if inclusion.exclude_annotations and _annotated(evidence.candidates.get("slides", {})):
        filters.append((SLIDE_NOT_FLAGGED, unflagged(inclusion), _flag_loss("slide", inclusion)))
    return filters


def _omics_filters(evidence: Evidence, inclusion: Inclusion, modality: str) -> list[tuple[str, Keep, Loss]]:
    """The rules for a patient's files of one modality; what no file carries is not asked for."""

    def of_type(c: Candidate) -> bool:
        if c.barcode is None and not c.stated_type:
            return not evidence.need_barcode
        return c.sample_type in inclusion.sample_types

    def no_type(patient: str, had: Sequence[Candidate]) -> str:
        if had:
            return f"{modality} of sample type {_types(had)} only"
        spelling = evidence.spellings.get(patient)
        return f"no {modality} data{'' if spelling is None else spelling.told()}"

    found = evidence.candidates.get(modality, {})
    filters: list[tuple[str, Keep, Loss]] = [(f"{modality} data", of_type, no_type)]
    if inclusion.ffpe_aliquots == "exclude" and any(c.preservation for own in found.values() for c in own):
        filters.append(
            (
                f"{modality} not of FFPE tissue",
                lambda c: c.preservation != FFPE,
                lambda _, had: f"{modality} of FFPE tissue only ({', '.join(sorted(c.sample for c in had))})",
            )
        )
    if inclusion.exclude_annotations and _annotated(found):
        filters.append((f"{modality} not flagged", unflagged(inclusion), _flag_loss(modality, inclusion)))
    return filters


def unflagged(inclusion: Inclusion) -> Keep:
    """Whether a file carries none of the notices that exclude."""
    return lambda c: not matching(c.annotations, inclusion.exclude_annotations)


def _flag_loss(what: str, inclusion: Inclusion) -> Loss:
    def loss(patient: str, had: Sequence[Candidate]) -> str:
        flags = [a for c in had for a in matching(c.annotations, inclusion.exclude_annotations)]
        return f"{what} is flagged: {described(flags)}"

    return loss


def _annotated(found: Mapping[str, Sequence[Candidate]]) -> bool:
    return any(c.annotations for own in found.values() for c in own)


def draw_slide(patient: str, candidates: Sequence[Candidate], seed: int) -> Candidate:
    """One of a patient's slides at random; the choice depends on seed and patient, not on who else is in the cohort."""
    found = sorted(candidates, key=lambda c: (Path(c.path).name, c.path))
    rng = np.random.default_rng([seed, zlib.crc32(patient.encode())])
    return found[int(rng.integers(len(found)))]


def drawn_slides(lock: pd.DataFrame, inclusion: Inclusion, seed: int) -> set[str]:
    """Ids of the slides that curation draws from a lock, one per patient who has an eligible one."""
    pool: dict[str, list[Candidate]] = {}
    for row in lock[lock["modality"] == "slides"].itertuples():
        barcode = slide_barcode(str(row.filename), str(row.sample))
        notices = parsed(str(getattr(row, "annotations", "")))
        candidate = Candidate(
            f"{row.id}/{row.filename}", str(row.sample), int(str(row.size)), barcode, annotations=notices
        )
        if all(keep(candidate) for _, keep in slide_rules(inclusion)):
            pool.setdefault(str(row.case), []).append(candidate)
    return {draw_slide(case, found, seed).path.split("/")[0] for case, found in pool.items()}


def slide_rules(inclusion: Inclusion) -> list[tuple[str, Keep]]:
    """The rules for slides in order: name, and what a slide must be. Slides without barcode (of other origin) pass."""
    diagnostic = inclusion.slide_kind == "diagnostic"
    types = inclusion.sample_types
    rules: list[tuple[str, Keep]] = [
        (
            "diagnostic slide" if diagnostic else "slide",
            lambda c: not diagnostic or c.barcode is None or c.barcode.slide_kind == DIAGNOSTIC,
        ),
        (
            f"slide of sample type {', '.join(types)}",
            lambda c: (c.barcode is None and not c.stated_type) or c.sample_type in types,
        ),
    ]
    if inclusion.min_slide_bytes:
        megabytes = inclusion.min_slide_bytes / 1e6
        rules.append((f"slide of {megabytes:g} MB or more", lambda c: c.size >= inclusion.min_slide_bytes))
    if inclusion.exclude_annotations:
        rules.append((SLIDE_NOT_FLAGGED, unflagged(inclusion)))
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
        with warnings.catch_warnings():
            # What a rule that is not asked for would leave out is no news.
            warnings.simplefilter("ignore", HeavyLossWarning)
            warnings.simplefilter("ignore", UnknownPreservationWarning)
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
    return ", ".join(sorted({c.sample_type or "unknown" for c in candidates}))


def _note_choice(
    choices: list[dict[str, Any]], patient: str, modality: str, found: Sequence[Candidate], kept: Candidate
) -> None:
    if len(found) > 1 or kept.how:
        choices += [_choice(patient, modality, c, kept=c is kept) for c in found]


def _choice(patient: str, modality: str, file: Candidate, *, kept: bool) -> dict[str, Any]:
    values = (patient, modality, file.sample, file.path, kept, file.how)
    return dict(zip(CHOICE_COLUMNS, values, strict=True))


def _warn_of_heavy_losses(flow: pd.DataFrame, where: str) -> None:
    for rule, before, excluded in flow[["rule", "before", "excluded"]].itertuples(index=False):
        if excluded > HEAVY_LOSS * before:
            hint = "; are the times in days, as they are taken to be?" if str(rule).startswith("followed for") else ""
            warnings.warn(
                f"{where}: the rule '{rule}' leaves out {excluded} of {before} patients{hint}; exclusions.csv has them",
                HeavyLossWarning,
                stacklevel=3,
            )


def _warn_of_unknown_preservation(evidence: Evidence, modalities: Sequence[str], where: str) -> None:
    """A rule that cannot be asked is said, not passed over: older locks and Xena's matrices know no preservation."""
    files = {m: [c for own in evidence.candidates.get(m, {}).values() for c in own] for m in modalities}
    silent = [m for m, found in files.items() if found and not any(c.preservation for c in found)]
    if silent:
        warnings.warn(
            f"{where}: nothing says how the tissue behind {', '.join(silent)} was preserved, so aliquots of FFPE "
            "tissue are not left out; a lock that is resolved again says it, where the server does",
            UnknownPreservationWarning,
            stacklevel=3,
        )


def _check_slides(table: pd.DataFrame, where: str) -> None:
    """A last look, whatever the evidence was: no slide and no name of a store is two patients'."""
    paths, names = table["slide_path"].dropna(), table["slide"].dropna()
    # File systems may take names that differ in case alone for one.
    for values in (paths, names.map(str.casefold)):
        twice = values[values.duplicated(keep=False)]
        if len(twice):
            first, second = twice.index[:2]
            raise CurationError(
                f"{where}: patients {first} and {second} share the slide {table.loc[first, 'slide_path']} "
                f"({table.loc[second, 'slide_path']}, store {table.loc[second, 'slide']}); a slide is one patient's"
            )


def _row(
    outcome: Outcome,
    chosen: Mapping[str, Mapping[str, Candidate]],
    modalities: Sequence[str],
    slides: bool,
    remarks: Iterable[str],
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
        "slide": (slide.name or without_suffix(Path(slide.path).name)) if slide else None,
        "slide_path": slide.path if slide else None,
    }
    for modality in MODALITIES:
        file = chosen[modality].get(outcome.patient) if modality in modalities else None
        row[f"{modality}_path"] = file.path if file else None
        row[f"{modality}_sample"] = file.sample if file else None
    kept = [c for own in chosen.values() if (c := own.get(outcome.patient)) is not None]
    notices = described(a for c in kept for a in c.annotations)
    texts = [outcome.note, *remarks, f"annotated: {notices}" if notices else ""]
    row["note"] = "; ".join(text for text in texts if text)
    return row


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
                    f"{where}: {a} and {b} share no patient (for example {min(sets[a])} and {min(sets[b])})"
                    f"{why_no_name_is_shared(a, sets[a], b, sets[b])}; write the patients' names in the same way in "
                    "both"
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
    "NobodyLeftError",
    "apply_rules",
    "choose_file",
    "curate",
    "read_lock",
    "table1_comparison",
]
