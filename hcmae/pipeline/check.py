"""All checks of raw data at once, before anything is computed: what is wrong in a folder, and what to do about it.

The checks are those of the road itself, called one by one: a table that is refused does not hide what is wrong with the
next. No network is run and no pixel is decoded; of slides the headers are read.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import pandas as pd

from hcmae.config import MODALITIES, ConfigError
from hcmae.manifest import Manifest, default_manifest_dir, load_manifest, manifest_names
from hcmae.tables import TableNote

if TYPE_CHECKING:
    from hcmae.cohort.annotations import SampleNotes
    from hcmae.cohort.clinical import Outcome
    from hcmae.cohort.curate import Cohort
    from hcmae.cohort.evidence import Evidence

Kind = Literal["fault", "warning", "left out", "note"]
_T = TypeVar("_T")
# How many patients or files a finding names before it counts the rest.
_NAMED = 5
# Whom or what a message is about: a name in quotation marks, or one that no word of a sentence looks like.
_SUBJECT = re.compile(
    r"\b(patient|case|sample|feature|slide|column|line|row) (?:'([^']+)'|(?=[\w.:-]*[\dA-Z])([\w.:-]*\w))"
)


@dataclass(frozen=True)
class Rule:
    """One check: its name, what it looks at, and what it does with what it finds."""

    name: str
    looks_at: str
    does: str


# What to do where the message of a rule does not say it.
_OTHERWISE = {"slides": "see whether a viewer opens it; if not, copy or export it again"}

# In the order in which they are made. The page "What is checked" prints this table.
RULES = (
    Rule("folder", "whether there are raw data at all; links to nothing", "refuses"),
    Rule("manifest", "the rules of inclusion: a manifest of the folder's name, or of --cancer, that can be read",
         "refuses one that cannot be read, warns where LIHC's rules stand in"),
    Rule("columns.json", "a user's names of files and columns: valid JSON, known keys and units", "refuses"),
    Rule("other files", "what lies beside the data under a name that is none of theirs", "warns"),
    Rule("clinical", "patient, time and event of every row: there, readable, the same in all rows of a patient; "
         "layout, unit of time", "refuses; warns of times that are unlikely and of columns that disagree"),
    Rule("remarks", "samples.tsv and annotations.tsv, of fetched files annotations.txt: every value can be read, every "
         "row is about somebody", "warns; refuses rows that contradict each other"),
    Rule("lock", "the list of fetched files: its columns, sizes, names, each file once", "refuses"),
    Rule("files", "size of every fetched file against the lock", "refuses a wrong size, leaves out what is not there"),
    Rule("rna", "patients, values and unit of the RNA table; of fetched files the first one", "refuses"),
    Rule("mirna", "patients, values and unit of the miRNA table; of fetched files the first one", "refuses"),
    Rule("methylation", "patients, values and unit of the methylation table; of fetched files the first one",
         "refuses"),
    Rule("slides", "header, pyramid and length of every slide", "refuses a slide that cannot be opened"),
    Rule("resolution", "whether a slide says its micrometres per pixel", "warns where it has to be assumed"),
    Rule("beside the slides", "what lies below slides/ and is not read: no slide's suffix, a link to nothing", "warns"),
    Rule("owner of a slide", "one slide, one patient: a name that fits two files, a file named for two patients, two "
         "patients' files with the same bytes, another patient's barcode", "refuses"),
    Rule("name of a slide", "whether a slide bears the name of another patient than the table gives it to: rows that "
         "were swapped", "warns"),
    Rule("cohort", "whether the tables and slides are about the same patients, and anybody is left; whether one rule "
         "leaves out more than a quarter", "refuses where nobody is left, warns of heavy losses"),
    Rule("clinical record", "a patient with files needs a clinical record", "leaves out and lists"),
    Rule("columns agree", "two columns about one outcome, event and vital status or days and months, say the same",
         "leaves out and lists"),
    Rule("known vital status", "neither alive nor dead is no observation", "leaves out and lists"),
    Rule("known survival time", "a death without its day, a follow-up without any, a day before the diagnosis",
         "leaves out and lists"),
    Rule("followed for", "follow-up of at least inclusion.min_days days", "leaves out and lists"),
    Rule("diagnostic slide", "no frozen section (inclusion.slide_kind)", "leaves out and lists"),
    Rule("slide", "a slide of any kind (inclusion.slide_kind: any); its sample type and its least size",
         "leaves out and lists"),
    Rule("data", "one file or row per modality, of the sample types of inclusion.sample_types", "leaves out and lists"),
    Rule("not of FFPE tissue", "no aliquot of formalin-fixed tissue for omics", "leaves out and lists"),
    Rule("not flagged", "no annotation that says not to use the patient or the file", "leaves out and lists"),
    Rule("files on disk", "what was chosen for the patient is there", "leaves out and lists"),
)  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What one check found: ``rule`` names it, ``subject`` is the patient, feature, slide or line it is about.

    ``patients``: all whom a rule leaves out, with the reason of each.
    """

    kind: Kind
    rule: str
    file: str
    what: str
    do: str = ""
    subject: str = ""
    patients: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, kind: Kind, rule: str, file: str | Path, message: str) -> Finding:
        """From a message of the library: what is wrong, after the last semicolon what to do, somewhere whom about."""
        text = "; ".join(" ".join(line.split()) for line in message.splitlines() if line.strip())
        # Messages begin with the file that they are about.
        first, _, rest = text.partition(": ")
        for place in (Path(first), Path(file).parent / first, Path(file) / first):
            if rest and (place == Path(file) or place.is_file()):
                file, text = place, rest
                break
        what, _, do = text.rpartition("; ")
        # A semicolon within brackets parts reasons, not what is wrong from what to do.
        if not what or kind in ("note", "left out") or what.count("(") > what.count(")"):
            what, do = text, _OTHERWISE.get(rule, "") if kind == "fault" else ""
        about = _SUBJECT.search(what)
        return cls(
            kind, rule, str(file), what, do, f"{about[1]} {about[2] or about[3]}" if about and kind != "note" else ""
        )

    def line(self) -> str:
        """For people."""
        marks = {"fault": "FAULT", "warning": "warn", "left out": "out", "note": "ok"}
        told = f"[{marks[self.kind]:<5}] {self.rule}: {self.file}: {self.what}"
        return told + (f"\n        -> {self.do}" if self.do else "")


@dataclass
class Report:
    """All findings of a folder, and the rules by which it was judged."""

    root: Path
    manifest: str
    findings: list[Finding] = field(default_factory=list)

    @property
    def faults(self) -> list[Finding]:
        """What stops the road."""
        return [finding for finding in self.findings if finding.kind == "fault"]

    def add(self, kind: Kind, rule: str, file: str | Path, message: str) -> None:
        """Note a finding once, however many checks run into it: the same words about another file are another one."""
        found = Finding.of(kind, rule, file, message)
        known = {(other.kind, other.file, other.what, other.do) for other in self.findings}
        if (found.kind, found.file, found.what, found.do) not in known:
            self.findings.append(found)

    @contextmanager
    def watch(self, rule: str, file: str | Path) -> Iterator[None]:
        """Note as findings of a rule what the work inside raises and warns of."""
        from hcmae.slides.reader import SlideError

        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                yield
            except (ValueError, OSError, SlideError) as error:
                self.add("fault", rule, file, str(error))
        for warning in told:
            if issubclass(warning.category, UserWarning):
                kind: Kind = "note" if issubclass(warning.category, TableNote) else "warning"
                self.add(kind, rule, file, str(warning.message))

    def tried(self, rule: str, file: str | Path, work: Callable[[], _T]) -> _T | None:
        """The result of ``work``, or None where it is a finding."""
        with self.watch(rule, file):
            return work()
        return None

    def to_dict(self) -> dict[str, Any]:
        """For programs."""
        return {
            "folder": str(self.root),
            "manifest": self.manifest,
            "faults": len(self.faults),
            "findings": [vars(finding) for finding in self.findings],
        }


@dataclass
class _Parts:
    """What can go into a cohort: sound tables, slides, and what was read of a user's names and remarks."""

    modalities: list[str] = field(default_factory=list)
    slides: bool = False
    # Whether outcomes, and the lock where there is one, could be read.
    readable: bool = False
    mapping: dict[str, Any] = field(default_factory=dict)
    notes: SampleNotes | None = None


def rules_for(
    root: str | Path, cancer: str | None = None, directory: str | Path | None = None
) -> tuple[Manifest, list[Finding]]:
    """The manifest by whose rules a folder is judged, and what has to be said about it.

    It is that of ``cancer``, else the one that the folder is named after; where there is none, or it cannot be read,
    LIHC's stands in, and that is a finding. Raises ConfigError for an unknown ``cancer``, and where LIHC has none.
    """
    name = cancer or Path(root).resolve().name
    name = "LIHC" if name == "NULL" else name
    folder = default_manifest_dir() if directory is None else Path(directory)
    path, known = folder / f"{name}.yaml", manifest_names(folder)
    if name in known:
        try:
            return load_manifest(name, folder), []
        except ConfigError as error:
            found = Finding.of("fault", "manifest", path, f"{error}; until then LIHC's rules are applied here")
    elif cancer is not None:
        raise ConfigError(f"unknown cancer '{cancer}': {folder} has {', '.join(sorted(known)) or 'no manifest at all'}")
    else:
        near = difflib.get_close_matches(name.upper(), sorted(known), 1)
        hint = f"did you mean --cancer {near[0]}?" if near else "name one with --cancer, or write one of your own"
        text = f"no manifest has the name of this folder, so the rules of LIHC stand in; {hint}"
        found = Finding.of("warning", "manifest", path, text)
    own = "LIHC" in known and name != "LIHC"
    return load_manifest("LIHC", folder if own else default_manifest_dir()), [found]


def check_data(
    manifest: Manifest,
    source: str,
    root: str | Path,
    *,
    modalities: Sequence[str] | None = None,
    slides: bool | None = None,
    seed: int = 0,
    told: Sequence[Finding] = (),
) -> Report:
    """Every check of a folder of raw data; see ``RULES``. Computes nothing and writes nothing.

    modalities, slides: what the cohort must have. None: of a folder of one's own (source 'local') what lies there, of
    fetched data (source 'gdc', Xena's matrices too, and 'synthetic') everything. told: findings to begin with, such as
    those of `rules_for`.
    Raises ConfigError for an unknown source or modality; whatever is wrong with the data is a finding.
    """
    if source not in ("synthetic", "gdc", "local"):
        raise ConfigError(f"unknown source '{source}': choose synthetic, gdc or local")
    unknown = sorted(set(modalities or ()) - set(MODALITIES))
    if unknown:
        raise ConfigError(f"unknown modality '{unknown[0]}': choose among {', '.join(MODALITIES)}")
    report = Report(Path(root), manifest.cancer)
    if not report.root.is_dir():
        what = "not a folder; give the folder that it lies in" if report.root.exists() else "there is no such folder"
        report.add("fault", "folder", root, what if ";" in what else f"{what}; put the data there, or fetch them")
        return report
    report.findings += told
    check = _check_local if source == "local" else _check_fetched
    parts = check(report, manifest, modalities, slides)
    _check_cohort(report, manifest, source, parts, seed)
    return report


def _check_local(report: Report, manifest: Manifest, modalities: Sequence[str] | None, slides: bool | None) -> _Parts:
    """The parts of a user's folder, each on its own: what is wrong with one does not hide the next."""
    from hcmae.cohort.clinical import read_clinical_table
    from hcmae.cohort.columns import sound_columns
    from hcmae.cohort.local import local_file, local_slides

    root = report.root
    mapping, faults = sound_columns(root)
    for fault in faults:
        report.add("fault", "columns.json", root / "columns.json", fault)
    parts = _Parts(mapping=mapping)
    outcomes: dict[str, Outcome] = {}
    clinical = report.tried("clinical", root, lambda: local_file(root, "clinical", mapping))
    if clinical is not None:
        # What is recognised, its layout and its unit of time, is said by the reader.
        with report.watch("clinical", clinical):
            outcomes, _ = read_clinical_table(clinical, mapping.get("clinical"))
            report.add("note", "clinical", clinical, f"{len(outcomes)} patients")
            parts.readable = True
    tables = [clinical]
    for modality in modalities_there(root, mapping) if modalities is None else modalities:
        path = report.tried(modality, root, lambda modality=modality: local_file(root, modality, mapping))  # type: ignore[misc]
        tables.append(path)
        if path is not None and _check_local_table(report, path, modality, mapping, outcomes):
            parts.modalities.append(modality)
    parts.notes, remarks = _check_remarks(report, mapping)
    _check_rest(report, {path.name for path in (*tables, *remarks) if path is not None})
    folder = root / "slides"
    if slides is True or (slides is None and folder.is_dir()):
        files = report.tried("slides", folder, lambda: local_slides(folder))
        _check_slides(report, files or [])
        parts.slides = files is not None
    return parts


def _check_remarks(report: Report, mapping: Mapping[str, Any]) -> tuple[SampleNotes, list[Path | None]]:
    """What the tables of remarks say, as far as they can be read, and the tables."""
    from hcmae.cohort.annotations import SampleNotes
    from hcmae.cohort.local import remark_file

    notes, root, paths = SampleNotes(), report.root, []
    for what in ("samples", "annotations"):
        path = report.tried("remarks", root, lambda what=what: remark_file(root, what, mapping))  # type: ignore[misc]
        paths.append(path)
        if path is not None:
            with report.watch("remarks", path):
                notes.add(path)
    return notes, paths


def _check_rest(report: Report, read: set[str]) -> None:
    """What lies in a folder and nobody reads: a name that was meant otherwise, a share that is not mounted."""
    from hcmae.cohort.local import normal_files

    known = {
        "columns.json",
        "slides",
        "choices.csv",
        "exclusions.csv",
        *(path.name for path in normal_files(report.root)),
    }
    for path in sorted(report.root.iterdir()):
        if path.is_symlink() and not path.exists():
            report.add("fault", "folder", path, "a link to nothing; mount the share that it points to, or remove it")
        elif path.name == "slides" and not path.is_dir():
            report.add("fault", "folder", path, "not a folder; put the slides into a folder of this name")
        elif path.name not in read | known and not path.name.startswith((".", "~$")):
            report.add("warning", "other files", path, f"not looked at: {_meant(path, read)}")


def _meant(path: Path, read: set[str]) -> str:
    """Why nobody reads what lies in a folder, and what to do if it is part of the data."""
    name = path.name.lower()
    if path.is_dir():
        if any(child.name.lower().startswith("clinical") for child in path.iterdir()):
            return "a folder with a clinical table of its own; check that folder"
        return "no folder of this name is known; if it holds the slides, name it 'slides'"
    if name == "columns.json":
        return "its name is written otherwise; name it 'columns.json'"
    if name.endswith((".xlsx", ".xls", ".ods")):
        return "a spreadsheet; save it as .tsv or .csv"
    word = next((word for word in ("clinical", *MODALITIES, "sample", "annotation") if name.startswith(word)), "")
    word += "s" if word in ("sample", "annotation") else ""
    taken = next((other for other in sorted(read) if word and other.lower().startswith(word)), "")
    if taken:
        return f"{taken} is read for {word}; name this one in columns.json if it is the right one"
    if word:
        return f"its name begins like that of {word}; name one file '{word}.tsv', or name it in columns.json"
    return "its name is none that is known; rename it, or name it in columns.json, if it is part of the data"


def modalities_there(root: Path, mapping: Mapping[str, Any]) -> list[str]:
    """Modalities of which a user's folder has a table or more, by the names of files or by columns.json."""
    names = [path.name.lower() for path in root.iterdir() if path.is_file()] if root.is_dir() else []
    named = mapping.get("files", {})
    return [m for m in MODALITIES if m in named or any(name.startswith(m) for name in names)]


def _check_local_table(
    report: Report, path: Path, modality: str, mapping: dict[str, Any], outcomes: Mapping[str, Outcome]
) -> bool:
    """Patients, values and unit of one table of a user, read as the road reads them."""
    from hcmae.cohort.local import table_samples
    from hcmae.omics.readers import read_local_rows, refuse_outcome, unit_of

    patients = report.tried(
        modality, path, lambda: table_samples(path, mapping.get(modality, {}).get("patient"), outcomes)
    )
    if patients is None:
        return False
    rows = report.tried(modality, path, lambda: read_local_rows(path, modality, report.root, mapping))
    if rows is None:
        return False
    known = {
        sample: (outcome.time, outcome.event)
        for patient, samples in patients.items()
        for sample in samples
        if (outcome := outcomes.get(patient)) is not None and None not in (outcome.time, outcome.event)
    }
    faults = len(report.faults)
    if known:
        time, event = zip(*known.values(), strict=True)
        with report.watch(modality, path):
            refuse_outcome(path, rows.loc[list(known)], time, event)
    found = report.tried(modality, path, lambda: unit_of(rows, path, modality, report.root, mapping))
    if found is None or len(report.faults) > faults:
        return False
    samples = "" if len(rows) == len(patients) else f" in {len(rows)} samples"
    report.add("note", modality, path, f"{len(patients)} patients{samples}, {rows.shape[1]} features")
    report.add("note", modality, path, found.line(path.name))
    return True


def _check_fetched(report: Report, manifest: Manifest, modalities: Sequence[str] | None, slides: bool | None) -> _Parts:
    """The lock, the clinical records, and of each modality what is there; returns what can go into a cohort."""
    from hcmae.cohort.clinical import read_clinical_json
    from hcmae.cohort.lock import from_xena, read_lock, xena_header, xena_matrix

    root, wanted = report.root, list(MODALITIES if modalities is None else modalities)
    matrices = from_xena(manifest, wanted)
    sound = []
    records = report.tried("clinical", root / "clinical.json", lambda: read_clinical_json(root / "clinical.json"))
    if records is not None:
        report.add("note", "clinical", root / "clinical.json", f"{len(records)} patients")
    for modality in matrices:
        path = report.tried(modality, root / "xena", lambda modality=modality: xena_matrix(root, manifest, modality))  # type: ignore[misc]
        header = report.tried(modality, path, lambda path=path: xena_header(path)) if path is not None else None  # type: ignore[misc]
        if header is not None:
            report.add("note", modality, str(path), f"a matrix of {len(header) - 1} samples")
            sound.append(modality)
    asked = [m for m in (*([] if slides is False else ["slides"]), *wanted) if m not in matrices]
    lock = report.tried("lock", root / "files.tsv", lambda: read_lock(root / "files.tsv")) if asked else None
    if lock is None:
        return _Parts(sound, False, records is not None and not asked)
    for name in asked:
        there = _check_sizes(report, lock, name)
        if name == "slides":
            _check_slides(report, there)
        elif there and _check_first(report, there[0], name):
            sound.append(name)
    return _Parts([name for name in MODALITIES if name in sound], slides is not False, records is not None)


def _check_sizes(report: Report, lock: pd.DataFrame, name: str) -> list[Path]:
    """Files of a modality that are there; those of another size than the lock's are faults, absent ones are listed."""
    there, absent = [], []
    listed = lock[lock["modality"] == name]
    for file_id, filename, size in listed[["id", "filename", "size"]].itertuples(index=False):
        path = report.root / name / file_id / filename
        if not path.exists():
            absent.append(path)
        elif path.stat().st_size != size:
            has = path.stat().st_size
            report.add(
                "fault", "files", path, f"has {has} bytes, the lock says {size}; run hcmae verify --remove, then fetch"
            )
        else:
            there.append(path)
    if absent:
        report.add(
            "left out", "files", absent[0], f"{len(absent)} of {len(listed)} files of {name} are not there: fetch them"
        )
    return there


def _check_first(report: Report, path: Path, modality: str) -> bool:
    """One fetched file of a modality: a format that has changed is seen in the first."""
    from hcmae.omics.gdc_files import read_mirna_counts, read_sesame_betas, read_star_counts

    read: Any = {"rna": read_star_counts, "mirna": read_mirna_counts, "methylation": read_sesame_betas}[modality]
    reading = report.tried(modality, path, lambda: read(path))
    if reading is None:
        return False
    report.add("note", modality, path, f"{len(reading.names)} features (the first file; the others are read later)")
    return True


def _check_slides(report: Report, files: Sequence[Path]) -> None:
    """Headers of slides: whether each can be opened, and says its resolution."""
    from hcmae.slides.reader import open_slide

    opened = 0
    for path in files:
        with report.watch("slides", path), warnings.catch_warnings():
            # Said once below, as a finding of its own rule.
            warnings.filterwarnings("ignore", message=".*micrometres per pixel|.*assum")
            with open_slide(path, check=False) as slide:
                opened += 1
                if slide.mpp_source == "assumed":
                    report.add(
                        "warning", "resolution", path,
                        f"says no resolution, {slide.mpp:g} micrometres per pixel are assumed; "
                        "name a table of resolutions in slides.mpp_table",
                    )  # fmt: skip
    if opened:
        report.add("note", "slides", files[0].parent, f"{opened} of {len(files)} slides can be opened")


def _check_cohort(report: Report, manifest: Manifest, source: str, parts: _Parts, seed: int) -> None:
    """Whose each slide is, who would be in the cohort by the parts that are sound, and whom each rule leaves out."""
    from hcmae.cohort.curate import NobodyLeftError, judged
    from hcmae.cohort.local import local_evidence
    from hcmae.cohort.lock import lock_evidence

    root, modalities, slides = report.root, parts.modalities, parts.slides
    if not parts.readable:
        report.add(
            "warning", "cohort", root,
            "whose the slides are and who would be left out is not known yet; mend the faults above, then check again",
        )  # fmt: skip
        return
    if not parts.modalities and not parts.slides:
        report.add("fault", "cohort", root, "neither a sound omics table nor slides; mend the faults above first")
        return
    if source == "local":
        evidence = report.tried(
            "cohort",
            root,
            lambda: local_evidence(root, modalities, slides, mapping=parts.mapping, notes=parts.notes),
        )
    else:
        evidence = report.tried("cohort", root, lambda: lock_evidence(manifest, root, modalities, slides))
    if evidence is None:
        return
    if source == "local" and parts.slides:
        _check_beside_slides(report, evidence)
    for fault in evidence.faults:
        report.add("fault", "owner of a slide", root, fault)
    for doubt in evidence.doubts:
        report.add("warning", "name of a slide", root, doubt)
    with report.watch("cohort", root):
        try:
            cohort = judged(evidence, manifest, source, root, seed=seed, modalities=modalities, slides=slides)
        except NobodyLeftError as error:
            _list_losses(report, error.exclusions)
            # The flow, which the message shows, is what was listed just now.
            told, flow, _ = str(error).partition("; see the flow")
            report.add("fault", "cohort", root, f"{told}; see above who is left out, and why" if flow else told)
            return
        _list_losses(report, cohort.exclusions)
        report.add("note", "cohort", root, _account(cohort, parts, bool(evidence.faults)))


def _account(cohort: Cohort, parts: _Parts, undecided: bool) -> str:
    table = cohort.table
    whom = ", ".join([*parts.modalities, *(["slides"] if parts.slides else [])])
    return (
        f"{len(table)} patients with {whom}; {int(table['event'].sum())} deaths, "
        f"median follow-up {table['time'].median():.0f} days"
        + ("; those whose slide has to be decided are counted" if undecided else "")
    )


def _check_beside_slides(report: Report, evidence: Evidence) -> None:
    """Files below slides/ that are not read; a warning where a patient without a slide could have meant one."""
    from hcmae.cohort.evidence import SLIDE_SUFFIXES
    from hcmae.cohort.local import broken_links, unread_files

    folder = report.root / "slides"
    for link in broken_links(folder):
        report.add(
            "warning", "beside the slides", folder / link, "a link to nothing; mount the share that it points to"
        )
    rest = unread_files(folder)
    if not rest:
        return
    reasons = " ".join((*evidence.lost.values(), *(note for notes in evidence.notes.values() for note in notes)))
    meant = [name for name in rest if f"{name} is not read" in reasons or f"{name}, " in reasons]
    named = ", ".join((meant or rest)[:_NAMED]) + (" ..." if len(meant or rest) > _NAMED else "")
    text = f"{len(rest)} files are not read as slides ({named}); slides end in {', '.join(SLIDE_SUFFIXES)}"
    report.add("warning" if meant else "note", "beside the slides", folder, text)


def _list_losses(report: Report, exclusions: pd.DataFrame) -> None:
    """One finding per rule, with all whom it leaves out and why."""
    for rule, left in exclusions.groupby("rule", sort=False):
        patients = {str(patient): str(reason) for patient, reason in left[["patient", "reason"]].to_numpy()}
        by_reason: dict[str, list[str]] = {}
        for patient, reason in patients.items():
            by_reason.setdefault(reason, []).append(patient)
        told = [f"{reason} ({_some(names)})" for reason, names in list(by_reason.items())[:_NAMED]]
        if len(by_reason) > _NAMED:
            rest = sum(len(names) for names in list(by_reason.values())[_NAMED:])
            told.append(f"and {rest} more for other reasons, all of them in --json")
        what = f"{len(patients)} patient{'s' if len(patients) > 1 else ''}: {', '.join(told)}"
        report.findings.append(Finding("left out", str(rule), str(report.root), what, patients=patients))


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
