"""Which slide belongs to whom in a folder that a user brings, and names of stores that no two slides share.

A clinical table that names a slide is believed: by the path below ``slides/`` first, with or without suffix, then by
the last part of that path, then without regard to case, then by a barcode or a beginning that ends at a boundary. A
patient for whom the table names none gets the files whose names begin with the patient's. What fits two files, or two
patients, is a fault and never a choice; so is a copy of one patient's slide under the name of another's. All faults are
collected, so that one does not hide the next. Names are compared in Unicode's composed form (NFC).
"""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PureWindowsPath

from hcmae.cohort.barcodes import BarcodeError, composed, parse_slide_name, patient_id
from hcmae.cohort.evidence import FEATURE_SUFFIXES, SLIDE_SUFFIXES
from hcmae.content import same_slides
from hcmae.tables import is_missing

# File systems allow 255 bytes, and stores put a few of their own around the name.
LONGEST_NAME = 180
# How many files a message names before it counts the rest.
_NAMED = 5


@dataclass(frozen=True)
class SlideFile:
    """A slide below ``slides/``: where it lies, and its path below that folder by which it is called (NFC, slashes).

    Of a DICOM series ``relative`` is the folder, of all others the file.
    """

    path: Path
    relative: str

    @cached_property
    def name(self) -> str:
        """Last part of the path."""
        return self.relative.rpartition("/")[2]

    @cached_property
    def bare(self) -> str:
        """The path without the suffix of a slide."""
        return without_suffix(self.relative)

    @cached_property
    def stem(self) -> str:
        """Last part of the path without the suffix of a slide."""
        return without_suffix(self.name)


@dataclass
class Claims:
    """Slides by patient, and what has to be said about them.

    ``slides``: patient -> [(file, how it was found)]; ``lost``: patient -> why there is none; ``notes``: patient ->
    remarks on what was taken; ``unclaimed``: files of nobody in the table. ``faults``: what the user has to decide
    before there is a cohort; patients whom a fault is about stand in ``slides`` with what could be theirs. ``doubts``:
    what should be looked at.
    """

    slides: dict[str, list[tuple[SlideFile, str]]] = field(default_factory=dict)
    lost: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    unclaimed: list[SlideFile] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def without_suffix(name: str) -> str:
    """A name without the suffix of a slide or of its features, in either case; other dots belong to the name."""
    stem, dot, suffix = name.rpartition(".")
    return stem if stem and dot and f".{suffix.lower()}" in (*SLIDE_SUFFIXES, *FEATURE_SUFFIXES) else name


def boundaries(name: str) -> Iterator[int]:
    """Lengths at which a beginning of a name can be a name of its own, the whole name first, then the longest.

    A beginning ends before a character that is neither letter nor digit ('P1' in 'P1_HE', not in 'P10'). A dot or
    comma between two digits belongs to a number: '1' is no beginning of '1.5 HE'.
    """
    yield len(name)
    for place in range(len(name) - 1, 0, -1):
        mark = name[place]
        if mark.isalnum() or unicodedata.combining(mark):
            continue
        if mark in ".," and name[place - 1].isdigit() and name[place + 1 : place + 2].isdigit():
            continue
        yield place


def slide_files(folder: Path, paths: Sequence[Path], patients: Iterable[str]) -> list[SlideFile]:
    """Slides as they are called; the files of a DICOM series in a folder of its own are one slide named by the folder.

    ``paths`` lie below ``folder``. A folder of .dcm files whose names begin with patients' names holds single slides.
    """
    owner = _owners(patients)
    found: list[SlideFile] = []
    series: dict[Path, list[Path]] = {}
    for path in paths:
        if path.suffix.lower() == ".dcm" and path.parent != folder:
            series.setdefault(path.parent, []).append(path)
        else:
            found.append(SlideFile(path, _relative(path, folder)))
    for place, parts in series.items():
        if any(owner(without_suffix(composed(part.name))) for part in parts):
            found += [SlideFile(part, _relative(part, folder)) for part in parts]
        else:
            found.append(SlideFile(min(parts), _relative(place, folder)))
    return sorted(found, key=lambda slide: slide.path)


def claim_slides(
    files: Sequence[SlideFile],
    patients: Iterable[str],
    named: Mapping[str, Sequence[str]],
    where: str,
    broken: Sequence[str] = (),
    unread: Sequence[str] = (),
) -> Claims:
    """Who owns which slide.

    ``named``: patient -> names of slides in the clinical table, with an entry for every patient where the table has a
    column of slides; a name that means 'missing' says nothing. ``where``: the table, for messages. ``broken``: links
    that lead nowhere; ``unread``: files without the suffix of a slide; both by their paths below the folder.

    A fault is a name that fits two files, a file that is claimed by two patients, two patients' files with the same
    bytes, or a barcode that says the slide is somebody else's. A doubt is a name that begins with another patient's.
    """
    known = sorted(set(patients))
    find, owner = _finder(files), _owners(known)
    ledger = _Ledger(where)
    strange = _Strange(unread, owner)
    cells = {
        patient: list(dict.fromkeys(c for c in named.get(patient, ()) if not is_missing(composed(c))))
        for patient in known
    }
    for patient, names in cells.items():
        for name in names:
            hits, how = find(name)
            if len(hits) > 1:
                could = " or ".join(file.relative for file in hits[:_NAMED]) + (" ..." if len(hits) > _NAMED else "")
                ledger.fault(
                    patient, hits[0],
                    f"patient {patient}: slide '{name}' could be {could}; write the path below slides/ in that column",
                )  # fmt: skip
                continue
            if not hits:
                gone = any(_tidy(name) in (*_tails(link), *_tails(without_suffix(link))) for link in broken)
                what = "which is a link that leads nowhere" if gone else "which is not below slides/"
                ledger.lose(patient, f"the clinical table names '{name}', {what}")
                if like := strange.like(name):
                    ledger.lose(patient, like)
                continue
            ledger.claim(hits[0], patient, how)
            ledger.compare(hits[0], patient, owner(hits[0].stem))
    by_name: dict[str, list[SlideFile]] = {}
    for file in files:
        by_name.setdefault(owner(file.stem), []).append(file)
    for patient, names in cells.items():
        own = by_name.get(patient, [])
        free = [file.relative for file in own if file not in ledger.taken]
        if names:
            if patient in ledger.claims.lost and free:
                begins = f"{', '.join(free[:3])} begins with the patient's name and was not taken"
                ledger.lose(patient, begins)
            continue
        for file in own:
            if file in ledger.taken:
                ledger.lose(patient, f"{file.relative} is named for patient {ledger.taken[file]}")
            else:
                ledger.claim(file, patient, "file name begins with the patient's name")
                if named:
                    ledger.note(patient, f"the clinical table names no slide; {file.relative} taken by its name")
    for link in broken:
        patient = owner(without_suffix(link.rpartition("/")[2]))
        if patient and not cells[patient]:
            ledger.lose(patient, f"{link} is a link that leads nowhere")
    for patient in known:
        if patient not in ledger.claims.slides and patient not in ledger.claims.lost and (seen := strange.of(patient)):
            ledger.lose(patient, seen)
    return ledger.closed(files)


def store_names(relative: Sequence[str]) -> list[str]:
    """One name per slide, by which its store is called, from the paths below the folder of slides.

    The file name without suffix where no other slide has it, else as much of the path before it as makes the name
    unique, folders joined by '__' ('north__1'), else a hash of the path. Names that differ in case alone count as one,
    since some file systems take them for one.
    """
    paths = [composed(path) for path in relative]
    levels = [_levels(path) for path in paths]
    seen = Counter(name for own in levels for name in {level.casefold() for level in own})
    chosen, times = [], Counter[str]()
    for path, own in zip(paths, levels, strict=True):
        free = (name for name in own if seen[name.casefold()] == 1 and len(name.encode()) <= LONGEST_NAME)
        # The hash can meet no other name: a name of that very form would need the hash of its own path in it.
        digest = hashlib.sha256(path.encode()).hexdigest()[:16]
        name = next(free, f"{own[0].encode()[:80].decode(errors='ignore')}-{digest}")
        # Paths that differ in their Unicode form alone are two files all the same.
        times[name] += 1
        chosen.append(name if times[name] == 1 else f"{name}-{times[name]}")
    return chosen


def _levels(path: str) -> list[str]:
    """Names that a slide could have, the shortest first."""
    parts = path.split("/")
    found = []
    for depth in range(1, len(parts) + 1):
        name = "__".join(parts[-depth:])
        found += [without_suffix(name), name]
    return list(dict.fromkeys(found))


# ---------------------------------------------------------------- what a name fits


def _finder(files: Sequence[SlideFile]) -> Callable[[str], tuple[list[SlideFile], str]]:
    """A function from a name in the table to the files that it fits best, and how it does."""

    def begun(file: SlideFile) -> list[str]:
        starts = [file.stem[:end] for end in boundaries(file.stem)]
        return [*starts, *(file.relative.removesuffix(file.name) + start for start in starts)]

    # How a name is read, what a file answers to, in the order in which they are tried.
    readings: list[tuple[str, Callable[[str], str], Callable[[SlideFile], Iterable[str]]]] = [
        ("", str, lambda file: [file.relative]),
        (", without suffix", str, lambda file: [file.bare]),
        (" by the last part of its path", str, lambda file: _tails(file.relative)),
        (" by the last part of its path, without suffix", str, lambda file: _tails(file.bare)),
        (", case apart", str.casefold, lambda file: map(str.casefold, (*_tails(file.relative), *_tails(file.bare)))),
        (" by its barcode", lambda name: _barcode(name.rpartition("/")[2]), lambda file: [_barcode(file.name)]),
        (" by the beginning of its name", str, begun),
    ]
    known: list[dict[str, list[SlideFile]]] = []
    for _, _, answers in readings:
        table: dict[str, list[SlideFile]] = {}
        for file in files:
            for answer in dict.fromkeys(answers(file)):
                table.setdefault(answer, []).append(file)
        known.append(table)

    def find(cell: str) -> tuple[list[SlideFile], str]:
        name = _tidy(cell)
        for (how, read, _), table in zip(readings, known, strict=True):
            key = read(name)
            if key and key in table:
                return table[key], f"named in the clinical table{how}"
        return [], ""

    return find


def _tidy(cell: str) -> str:
    """A path as it could stand below slides/: with slashes, without what comes before that folder."""
    text = composed(cell)
    if "\\" in text:
        text = PureWindowsPath(text).as_posix()
    parts = [part for part in text.split("/") if part not in ("", ".")]
    if "slides" in parts[:-1]:
        parts = parts[len(parts) - parts[::-1].index("slides") :]
    return "/".join(parts)


def _tails(relative: str) -> list[str]:
    """The path itself and what is left of it without its first folders."""
    parts = relative.split("/")
    return ["/".join(parts[start:]) for start in range(len(parts))]


def _barcode(name: str) -> str:
    try:
        return str(parse_slide_name(name))
    except BarcodeError:
        return ""


def _owners(patients: Iterable[str]) -> Callable[[str], str]:
    """A function from the stem of a file name to the patient whose name it begins with; '' where there is none.

    The longest fitting name counts: with patients 'P1' and 'P1-2', 'P1-2_HE' is of the second. Case counts first; apart
    from it a name fits only where it fits one patient.
    """
    exact = {composed(patient): patient for patient in patients}
    folded: dict[str, list[str]] = {}
    for name, patient in exact.items():
        folded.setdefault(name.casefold(), []).append(patient)

    def owner(stem: str) -> str:
        for end in boundaries(stem):
            for name in (stem[:end], patient_id(stem[:end])):
                if name in exact:
                    return exact[name]
        for end in boundaries(stem):
            if len(fits := folded.get(stem[:end].casefold(), [])) == 1:
                return fits[0]
        return ""

    return owner


# ---------------------------------------------------------------- who has which


class _Ledger:
    """Claims as they are made: a file is one patient's, under whichever of its names and copies."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.claims = Claims()
        self.taken: dict[SlideFile, str] = {}
        self._inodes: dict[tuple[int, int], SlideFile] = {}
        # Patient, slide, and the other patient with whose name that slide begins.
        self._strangers: list[tuple[str, SlideFile, str]] = []

    def claim(self, file: SlideFile, patient: str, how: str) -> None:
        twin = self._inodes.setdefault(_inode(file), file)
        other = self.taken.get(twin)
        if other is None:
            self.taken[file] = patient
            self.claims.slides.setdefault(patient, []).append((file, how))
        elif other != patient and twin == file:
            self.fault(
                patient, file,
                f"slide {file.relative} is named for patients {other} and {patient}; a slide is one patient's: correct "
                "one of them",
            )  # fmt: skip
        elif other != patient:
            self.fault(
                patient, file,
                f"{twin.relative} (patient {other}) and {file.relative} (patient {patient}) are one file under two "
                "names; a slide is one patient's: remove one of the links",
            )  # fmt: skip
        else:
            self.taken[file] = patient

    def compare(self, file: SlideFile, patient: str, owner: str) -> None:
        """What the table says against whose name the file bears."""
        code = _barcode(file.name)
        if code and patient.startswith("TCGA-") and patient_id(code) != patient:
            self.fault(
                patient, file,
                f"patient {patient}: slide {file.relative} is one of {patient_id(code)} by its barcode; correct the "
                "table",
            )  # fmt: skip
        elif owner and owner != patient:
            self._strangers.append((patient, file, owner))
            self.note(
                patient,
                f"slide {file.relative} is this patient's by the clinical table; its name begins with that of {owner}",
            )

    def fault(self, patient: str, file: SlideFile, text: str) -> None:
        """What the user has to decide; until then the file could be the patient's, so that other rules are asked."""
        self.claims.faults.append(f"{self.where}: {text}")
        mine = self.claims.slides.setdefault(patient, [])
        if all(other != file for other, _ in mine):
            mine.append((file, "to be decided"))

    def note(self, patient: str, text: str) -> None:
        self.claims.notes.setdefault(patient, []).append(text)

    def lose(self, patient: str, text: str) -> None:
        before = self.claims.lost.get(patient)
        self.claims.lost[patient] = f"{before}; {text}" if before else text

    def closed(self, files: Sequence[SlideFile]) -> Claims:
        """The claims; what a patient with another slide has lost becomes a note."""
        claims = self.claims
        self._find_copies()
        self._tell_strangers()
        for patient in [patient for patient in claims.lost if patient in claims.slides]:
            self.note(patient, claims.lost.pop(patient))
        claims.unclaimed = [file for file in files if file not in self.taken]
        return claims

    def _find_copies(self) -> None:
        """Slides of two patients with the same bytes."""
        by_path = {file.path: file for file in self.taken if self._inodes.get(_inode(file)) == file}
        for copies in same_slides(list(by_path)):
            same = [by_path[path] for path in copies]
            if len({self.taken[file] for file in same}) > 1:
                told = [f"{file.relative} (patient {self.taken[file]})" for file in same]
                more = f" and {len(told) - _NAMED} more" if len(told) > _NAMED else ""
                self.claims.faults.append(
                    f"{self.where}: {', '.join(told[:_NAMED])}{more} hold the same bytes; a slide is one patient's: "
                    "find out whose it is, and remove the other copy"
                )

    def _tell_strangers(self) -> None:
        """One doubt for all whose slide begins with another patient's name: rows that were shifted or swapped."""
        found = self._strangers
        if not found:
            return
        some = ", ".join(f"{patient} has {file.relative}" for patient, file, _ in found[:_NAMED])
        more = f" and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        pairs = {(patient, owner) for patient, _, owner in found}
        swapped = any((owner, patient) in pairs for patient, owner in pairs)
        what = "rows look swapped" if swapped else "rows may be swapped"
        self.claims.doubts.append(
            f"{self.where}: {len(found)} slide(s) given to one patient begin with the name of another: {some}{more}; "
            f"{what}: compare the column of slides with its source"
        )


class _Strange:
    """Files below slides/ that are not read, because their suffix is no slide's."""

    def __init__(self, unread: Sequence[str], owner: Callable[[str], str]) -> None:
        files = [SlideFile(Path(name), composed(name)) for name in unread]
        self._find = _finder(files)
        self._of: dict[str, list[str]] = {}
        for file in files:
            self._of.setdefault(owner(file.stem), []).append(file.relative)

    def like(self, cell: str) -> str:
        """What looks like a slide that the table names; '' where nothing does."""
        hits = self._find(cell)[0] or self._find(without_suffix(_tidy(cell)))[0]
        return self._told([file.relative for file in hits])

    def of(self, patient: str) -> str:
        """What begins with a patient's name; '' where nothing does."""
        return self._told(self._of.get(patient, []))

    @staticmethod
    def _told(names: Sequence[str]) -> str:
        if not names:
            return ""
        some = ", ".join(names[:_NAMED]) + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
        return f"{some} is not read, for want of a slide's suffix ({', '.join(SLIDE_SUFFIXES)})"


def _inode(file: SlideFile) -> tuple[int, int]:
    stat = file.path.stat()
    return stat.st_dev, stat.st_ino


def _relative(path: Path, folder: Path) -> str:
    return composed(path.relative_to(folder).as_posix())
