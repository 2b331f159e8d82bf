"""What remarks in a clinical table say of its patients: not to use them, a duplicate, a mix-up, lost to follow-up.

Every column is read that has no part of its own. A remark that says not to use a patient counts as a notice, as in
``annotations.tsv``; other remarks that matter are doubts, because only a person can tell what follows from them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from hcmae.cohort.layouts import normalised
from hcmae.cohort.notices import NO, YES, notice_kind, says_not_used
from hcmae.tables import is_missing, listed

# Columns of yes and no that say whether a patient is to be used; other such names ('removed', 'failed', 'quality') are
# of tumours and treatments in a clinical table.
_DECIDING = {
    "exclude", "excluded", "exclusion", "discard", "discarded", "qc_fail", "qc_failed", "outlier", "usable", "include",
    "included", "qc_pass", "qc_passed",
}  # fmt: skip
# Columns in which people write remarks; in others 'redacted' is what stands for a value that is not given.
_REMARKS = re.compile(
    r"comment|note|remark|annotation|flag|reason|redact|consent|status|memo|info|exclu|notice|message|bemerk|komment"
)
_NOT_GIVEN = ("redacted", "redaction", "[redacted]", "<redacted>", "retracted")
# A remark on more of the patients than this is about the column, not about them.
_FEW = 0.25
# What has the words of a notice and is none: habits, treatments, findings.
_OTHERWISE = re.compile(
    r"\b(?:do|does|did|may|can|could|should|shall)(?: not|n'?t|not) use "
    r"(?!(?:this|these|it|for|in|data|samples?|slides?|cases?|patients?|because|until|see|as"
    r"|the (?:samples?|slides?|cases?|patients?|data))\b)\w+"
    r"|\bwithdrawn from\b|(?<=\w )retracted\b|\bretracted(?= \w)"
)
_LOST = re.compile(r"\blost to follow[- ]?up\b|\blost to fu\b|\bltfu\b")
_MATTERS = re.compile(
    "|".join(
        (
            r"\b(?:duplicate|copy) of\b",
            r"^duplicated?$",
            r"\bduplicate (?:patient|case|record|entry|row|sample)\b",
            r"\bsame (?:patient|person|case|individual) as\b",
            r"\bmis-?label\w*",
            r"\b(?:sample|label|slide|tube)s? (?:was |were )?swap\w*|\bswapped\b|\bmix(?:ed)?[- ]?up\b",
            r"\bwrong (?:patient|sample|slide|person|label|case|block|tissue|diagnosis)\b|\bmis-?diagnos\w+",
            r"\bsamples? (?:is |was |were )?contaminat\w+|\bcontaminated sample",
            r"\bineligible\b|\bnot eligible\b|\bexcluded? from\b",
            r"^(?:please )?(?:excluded?|removed?|delete|drop)\b(?: (?:this|the) (?:patient|case|sample|row))?$",
            r"\bwithdr[ae]w\w* from (?:the )?(?:study|trial|register|registry|cohort)\b",
            r"\bfailed (?:the )?qc\b|\bqc failed\b",
        )
    )
)


@dataclass
class Remarks:
    """``notices`` by patient, not to use them; ``notes`` and ``doubts``, one line each."""

    notices: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def read_remarks(
    rows: Mapping[str, Sequence[Mapping[str, str]]], parts: Collection[str | None], events: Mapping[str, int | None]
) -> Remarks:
    """What the columns say that have no part in ``parts``; ``events`` by patient: 1 for a death."""
    found: dict[str, dict[str, dict[str, str]]] = {}  # kind -> column -> patient -> remark
    for patient, own in rows.items():
        for row in own:
            for column, cell in row.items():
                if column in parts or is_missing(cell):
                    continue
                if kind := _kind(column, cell):
                    found.setdefault(kind, {}).setdefault(column, {}).setdefault(patient, cell)
    remarks = Remarks()
    for column, told in found.get("decides", {}).items():
        words = column.replace("_", " ") if notice_kind(normalised(column).replace("_", " ")) else "do not use"
        _add_notices(remarks, column, told, words)
    for column, told in found.get("notice", {}).items():
        if len(told) > max(1, _FEW * len(rows)):
            remarks.doubts.append(
                f"column '{column}': {len(told)} of {len(rows)} patients have remarks such as {_quoted(told)}; so many "
                "are taken for no notice: write those who are to be left out into annotations.tsv"
            )
        else:
            _add_notices(remarks, column, told)
    for column, told in found.get("matters", {}).items():
        remarks.doubts.append(
            f"column '{column}': {_quoted(told)}; this decides nothing here: see whether these patients are to be "
            "used, and write 'do not use' for those who are not"
        )
    for column, told in found.get("lost", {}).items():
        dead = {patient: cell for patient, cell in told.items() if events.get(patient) == 1}
        if dead:
            remarks.doubts.append(f"column '{column}': {_quoted(dead)}, yet the event is a death; correct one of them")
        if alive := {patient: cell for patient, cell in told.items() if patient not in dead}:
            remarks.notes.append(f"column '{column}': {_quoted(alive)}; censored at the last day that is given")
    return remarks


def _add_notices(remarks: Remarks, column: str, told: Mapping[str, str], words: str = "") -> None:
    for patient, cell in told.items():
        text = f"{words} (column {column}, {cell})" if words else f"{cell} (column {column})"
        remarks.notices.setdefault(patient, []).append(text)
    remarks.notes.append(
        f"column '{column}': {_quoted(told)}; a notice not to use {'them' if len(told) > 1 else 'the patient'}, as in "
        "annotations.tsv (inclusion.exclude_annotations)"
    )


def _quoted(told: Mapping[str, str]) -> str:
    return listed([f"{patient} '{cell[:60]}'" for patient, cell in told.items()])


def _kind(column: str, cell: str) -> str:
    """'decides', 'notice', 'matters' or 'lost' for a cell that says something of the kind, '' for any other."""
    name, text = normalised(column), " ".join(cell.lower().replace("\u2019", "'").split())
    if name in _DECIDING:
        return "decides" if says_not_used(name, text) else ""
    if notice_kind(name.replace("_", " ")):
        return "decides" if text in YES or notice_kind(cell) else ""
    if text in YES | NO or not any(letter.isalpha() for letter in text):
        return ""
    said = notice_kind(_OTHERWISE.sub(" ", text))
    if said and (_REMARKS.search(name) or text not in _NOT_GIVEN):
        return "notice"
    if _MATTERS.search(text):
        return "matters"
    return "lost" if _LOST.search(text) else ""
