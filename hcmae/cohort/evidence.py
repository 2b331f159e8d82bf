"""What raw data say about everybody, before any rule: outcomes and candidate files by patient."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

from hcmae.cohort.barcodes import (
    Barcode,
    BarcodeError,
    parse,
    parse_slide_name,
)
from hcmae.cohort.clinical import Outcome
from hcmae.cohort.people import Spelling
from hcmae.config import MODALITIES
from hcmae.packed import open_packed

SLIDE_SUFFIXES = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".svslide", ".dcm")

# Of features that others have made of slides.
FEATURE_SUFFIXES = (".h5", ".pt")


class CurationError(ValueError):
    """Raw data from which no cohort can be made; the message names the file or folder and what to do."""


@dataclass(frozen=True)
class Annotation:
    """A notice of the GDC or of a user about a patient, sample, aliquot, slide or file."""

    entity: str  # 'case', 'aliquot' ...
    classification: str  # 'Redaction', 'CenterNotification' ...
    category: str  # 'Item flagged DNU' ...


@dataclass(frozen=True)
class Candidate:
    """One file (or column of a matrix, or row of a table) that a patient could contribute.

    ``name``: of a slide's store, unique among all slides of the folder ('': the file name without suffix). ``how``: how
    a slide was found to be this patient's. ``preservation``: of the tissue, 'FFPE' or what else is said; '' is unknown.
    ``stated_type``: code of the sample's type where a table of samples says it, '' where none does.
    """

    path: str
    sample: str
    size: int
    barcode: Barcode | None
    name: str = ""
    how: str = ""
    preservation: str = ""
    annotations: tuple[Annotation, ...] = ()
    stated_type: str = ""

    @property
    def sample_type(self) -> str:
        """By the barcode, else as stated; '' where nothing says it."""
        return (self.barcode.sample_type if self.barcode is not None else None) or self.stated_type


@dataclass
class Evidence:
    """What the raw data say about everybody, before any rule: outcomes and candidate files by patient."""

    outcomes: dict[str, Outcome]
    candidates: dict[str, dict[str, list[Candidate]]]  # modality or 'slides' -> patient -> candidates
    # TCGA's files without a barcode could be normal tissue; a user's own have none and are taken as they are.
    need_barcode: bool = False
    # Of slides: patient -> why there is none, patient -> remarks on what there is, slides of nobody, what has to be
    # decided before there is a cohort, and what should be looked at.
    lost: dict[str, str] = field(default_factory=dict)
    notes: dict[str, list[str]] = field(default_factory=dict)
    unclaimed: list[Candidate] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)
    # Of names: who is spelt otherwise in another table.
    spellings: dict[str, Spelling] = field(default_factory=dict)

    @property
    def patients(self) -> list[str]:
        names = set(self.outcomes)
        for found in self.candidates.values():
            names |= set(found)
        return sorted(names)


@contextmanager
def open_text(path: Path) -> Iterator[TextIO]:
    """A text file, unpacked if gzip; undecodable bytes are kept as marks, so that checks report them.

    Reading raises OSError, EOFError or zlib.error for damage, and for a file that unpacks without end.
    """
    with open(path, "rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
    if packed:
        with open_packed(path) as handle, io.TextIOWrapper(handle, "utf-8-sig", errors="replace") as text:
            yield text
    else:
        with open(path, encoding="utf-8-sig", errors="replace") as text:
            yield text


def check_modalities(modalities: Iterable[str]) -> bool:
    unknown = sorted(set(modalities) - set(MODALITIES))
    if unknown:
        raise CurationError(f"unknown modality '{unknown[0]}': choose among {', '.join(MODALITIES)}")
    return True


def barcode_of(text: str) -> Barcode | None:
    try:
        return parse(text)
    except BarcodeError:
        return None


def slide_barcode(name: str, sample: str) -> Barcode | None:
    """Barcode of a slide: from its file name, else from its sample; None where neither is one of a slide."""
    try:
        return parse_slide_name(name)
    except BarcodeError:
        code = barcode_of(sample)
        return code if code is not None and code.is_slide else None
