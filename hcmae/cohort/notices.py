"""Words that say not to use a sample or patient, wherever they stand: in a table of annotations or in a remark."""

from __future__ import annotations

import re

YES, NO = {"true", "yes", "1", "1.0", "y"}, {"false", "no", "0", "0.0", "n"}
# Columns of yes and no, or of words such as 'fail', that say whether a sample is to be used.
NOT_USED = {"exclude", "excluded", "exclusion", "remove", "removed", "drop", "dropped", "discard", "discarded",
             "reject", "rejected", "bad", "failed", "fail", "qc_fail", "qc_failed", "outlier"}  # fmt: skip
USED = {"usable", "use", "used", "include", "included", "keep", "kept", "valid", "good", "pass", "passed", "qc",
         "qc_pass", "qc_passed", "qc_status", "quality"}  # fmt: skip
_FAILED = {"fail", "failed", "bad", "poor", "reject", "rejected", "exclude", "excluded"}

# What "Item flagged DNU" and "Redaction" are called by people, wherever it stands in a text.
_WORDS = {
    "item flagged dnu": re.compile(
        r"\bdnu\b|\bdonotuse\b|\b(?:do|does|must|should|shall|can|may)(?: ?not|n'?t) (?:be )?use[d]?\b"
        r"|\bcannot be used\b|\bnot (?:to be used|for use|usable)\b|\bunusable\b"
    ),
    "redaction": re.compile(
        r"\bredact(?:ed|ions?)?\b|\bwithdr(?:ew|awn) (?:(?:his|her|their|the|informed) )*consent\b"
        r"|\bconsent (?:(?:was|is|has been) )?(?:withdrawn|revoked)\b|\bwithdrawal of (?:informed )?consent\b"
        r"|^(?:(?:item|data|file|slide|sample|aliquot|case|patient|subject)s? (?:(?:was|were|is|has been) )?)?"
        r"withdrawn\b|\bretracted\b"
    ),
}
_DENIED = re.compile(r"\b(?:not|no|never|without|isn'?t|wasn'?t) (?:(?:a|been|be|flagged|as) )*$")


def notice_kind(text: str) -> str:
    """'item flagged dnu' or 'redaction' where a text says so in whichever words ('Do Not Use', 'withdrawn'), else ''.

    "Not redacted" and "no redaction" say nothing of the kind.
    """
    plain = " ".join(re.sub(r"[^a-z0-9']+", " ", text.lower().replace("\u2019", "'")).split())
    for kind, words in _WORDS.items():
        if any(_DENIED.search(plain[: found.start()]) is None for found in words.finditer(plain)):
            return kind
    return ""


def says_not_used(column: str, cell: str) -> bool:
    """Whether a column such as 'exclude' or 'usable' says that a sample is not to be used."""
    if column in NOT_USED:
        return cell in YES | _FAILED
    return column in USED and cell in NO | _FAILED
