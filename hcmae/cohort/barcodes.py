"""TCGA barcodes: what they say about patient, sample, aliquot and slide, and which of several aliquots is kept.

``TCGA-TT-PPPP-SSV-ppA-LLLL-CC``: tissue source site, participant, sample type and vial, portion and analyte, plate,
centre. A slide ends after the portion with its kind and number instead, as in ``TCGA-TT-PPPP-01Z-00-DX1``.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

DIAGNOSTIC = "DX"

_SITE = r"TCGA-(?P<site>[A-Z0-9]{2})-(?P<participant>[A-Z0-9]{4})"
_SAMPLE = r"-(?P<sample_type>[0-9]{2})(?:(?P<vial>[A-Z]))?"
_REST = (
    r"(?:-(?P<portion>[0-9]{2})"
    r"(?:-(?P<slide_kind>DX|TS|BS|MS)(?P<slide_number>[0-9A-Z]{1,3})"
    r"|(?P<analyte>[A-Z])?(?:-(?P<plate>[A-Z0-9]{4})(?:-(?P<centre>[0-9]{2}))?)?)?)?"
)
_PATTERN = re.compile(rf"{_SITE}(?:{_SAMPLE}{_REST})?")
_MARKED = re.compile(r"TCGA[-._ ][A-Z0-9]{2}[-._ ][A-Z0-9]{4}(?=$|[-._ ])", re.IGNORECASE)
_SLIDE_NAME = re.compile(rf"^(?P<barcode>{_SITE}-[0-9]{{2}}[A-Z]-[0-9]{{2}}-(?:DX|TS|BS|MS)[0-9A-Z]{{1,3}})(?=$|[._])")


class BarcodeError(ValueError):
    """Text that is not a TCGA barcode, or a barcode that says less than was asked."""


@dataclass(frozen=True)
class Barcode:
    """The parts of one barcode; parts that a shorter barcode does not have are None."""

    site: str
    participant: str
    sample_type: str | None = None
    vial: str | None = None
    portion: str | None = None
    analyte: str | None = None
    plate: str | None = None
    centre: str | None = None
    slide_kind: str | None = None
    slide_number: str | None = None

    @property
    def patient(self) -> str:
        """First 12 characters."""
        return f"TCGA-{self.site}-{self.participant}"

    @property
    def is_tumour(self) -> bool:
        """Sample types 01-09; 10-19 are normal tissue, 20-29 controls."""
        return self.sample_type is not None and 1 <= int(self.sample_type) <= 9

    @property
    def is_slide(self) -> bool:
        return self.slide_kind is not None

    def __str__(self) -> str:
        text = self.patient
        if self.sample_type:
            text += f"-{self.sample_type}{self.vial or ''}"
        if self.portion:
            text += f"-{self.portion}{self.analyte or ''}"
        if self.slide_kind:
            text += f"-{self.slide_kind}{self.slide_number}"
        for part in (self.plate, self.centre):
            text += f"-{part}" if part else ""
        return text


def parse(text: str) -> Barcode:
    """Take a whole barcode apart, from the patient's 12 characters to the aliquot's 28; letters of either case.

    Raises BarcodeError for anything else, a barcode with something before or behind it included.
    """
    match = _PATTERN.fullmatch(str(text).strip().upper())
    if match is None:
        raise BarcodeError(f"'{text}' is not a TCGA barcode; expected the form TCGA-XX-XXXX[-01A[-11R-A123-07]]")
    return Barcode(**match.groupdict())


def parse_slide_name(name: str) -> Barcode:
    """Barcode at the start of a slide's file name, e.g. ``TCGA-A4-8098-01Z-00-DX1.<uuid>.svs``.

    Raises BarcodeError where the name does not begin with a slide barcode.
    """
    match = _SLIDE_NAME.match(str(name).strip().upper())
    if match is None:
        raise BarcodeError(
            f"slide '{name}': the name does not begin with a slide barcode such as TCGA-XX-XXXX-01Z-00-DX1"
        )
    return parse(match["barcode"])


def patient_id(text: str) -> str:
    """Patient of any TCGA barcode or of a file name that begins with one; text of another kind comes back stripped.

    Cohorts of other origin name their patients as they like, so this never fails.
    """
    stripped = str(text).strip()
    match = re.match(rf"{_SITE}(?=$|[-._])", stripped.upper())
    return match.group(0) if match else stripped


def composed(text: str) -> str:
    """Text in Unicode's composed form (NFC) without blanks around it: file systems and tables differ in the form."""
    return unicodedata.normalize("NFC", text).strip()


def dashed(text: str) -> str:
    """A barcode with dashes where it has dots, underscores or blanks instead, as R writes it; other text as it is.

    'TCGA.AA.0001.01A' is 'TCGA-AA-0001-01A'. No other name begins like that, so nothing is guessed.
    """
    if _MARKED.match(text) is None:
        return text
    whole = re.sub(r"[._ ]", "-", text)
    if _PATTERN.fullmatch(whole.upper()) is not None:
        return whole
    return f"TCGA-{text[5:7]}-{text[8:]}"


def named_patient(cell: str) -> str:
    """The patient that a cell of a user's table names, the same in whichever Unicode form it is written."""
    return patient_id(dashed(composed(cell)))


def choose_aliquot(barcodes: Iterable[str], analyte: str) -> str:
    """One of several aliquots of a patient, by the replicate rules that Broad's Firehose published.

    The earlier vial comes first (B and C are often FFPE re-extractions). RNA: analyte H before R before T; then the
    later plate. DNA: native D, unless an amplified G, W or X lies on a later plate. Ties: the highest barcode.

    ``analyte`` is 'RNA' or 'DNA'. Raises BarcodeError for an empty list or text that is no barcode.
    """
    parsed = {text: parse(text) for text in barcodes}
    if not parsed:
        raise BarcodeError("no aliquot to choose from: pass at least one barcode")
    if analyte not in ("RNA", "DNA"):
        raise BarcodeError(f"analyte '{analyte}': choose 'RNA' or 'DNA'")
    first_vial = min(code.vial or "A" for code in parsed.values())
    best = {text: code for text, code in parsed.items() if (code.vial or "A") == first_vial}
    if analyte == "RNA":
        rank = {"H": 2, "R": 1}
        return max(best, key=lambda t: (rank.get(best[t].analyte or "", 0), best[t].plate or "", t))
    # A later plate outranks the analyte; on the same plate native DNA wins.
    return max(best, key=lambda t: (best[t].plate or "", best[t].analyte == "D", t))
