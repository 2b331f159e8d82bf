"""What the GDC says of one file, as a row of a lock; absent fields are left out of its answers."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from hcmae.cohort.annotations import FFPE, NOT_FFPE, annotation, preservation, written
from hcmae.cohort.barcodes import BarcodeError, parse, parse_slide_name
from hcmae.cohort.evidence import Annotation
from hcmae.cohort.lock import safe_name
from hcmae.gdc.client import UUID

log = logging.getLogger(__name__)


class FetchError(RuntimeError):
    """Something about the request or this machine prevents fetching; the message says what to do."""


def lock_row(hit: Mapping[str, Any], modality: str, filters: Mapping[str, Any]) -> dict[str, Any] | None:
    """The row of one hit; None for a file that is not what was asked for, not open, or of several cases.

    Raises FetchError for a hit that lacks what a lock needs, or whose names could not be those of files.
    """
    file_id = str(hit.get("file_id") or hit.get("id") or "").lower()
    name, size, md5 = hit.get("file_name"), hit.get("file_size"), str(hit.get("md5sum") or "").lower()
    if not UUID.fullmatch(file_id) or not isinstance(name, str) or not safe_name(name):
        raise FetchError(
            f"{modality}: the server lists file '{file_id}' with the unusable name {name!r}; nothing written"
        )
    if not isinstance(size, int) or size <= 0 or len(md5) != 32:
        raise FetchError(f"{modality}: file {file_id} comes without size or md5; nothing written")
    wanted = filters.get("data_type")
    # Values are compared without regard to case, as the server does.
    if wanted and str(hit.get("data_type", wanted)).lower() not in [
        w.lower() for w in ([wanted] if isinstance(wanted, str) else wanted)
    ]:
        return None
    if str(hit.get("access", "open")).lower() != "open":
        log.warning("%s: file %s is not open; left out", modality, file_id)
        return None
    cases = [c.get("submitter_id") for c in _records(hit.get("cases"))]
    if len(cases) != 1 or not cases[0]:
        log.warning("%s: file %s belongs to %d cases; left out", modality, file_id, len(cases))
        return None
    if not isinstance(cases[0], str) or not safe_name(cases[0]):
        raise FetchError(f"{modality}: file {file_id} belongs to the unusable case {cases[0]!r}; nothing written")
    sample = _sample(hit, name, modality)
    return {
        "id": file_id, "filename": name, "md5": md5, "size": size, "state": str(hit.get("state") or "released"),
        "sample": sample, "case": cases[0], "modality": modality,
        "preservation": _preservation(hit, sample), "annotations": written(_notices(hit)),
    }  # fmt: skip


def _records(value: Any, *names: str) -> list[Mapping[str, Any]]:
    """The records of a list, or those under names within them; what is no list of records holds none."""
    listed = value if isinstance(value, list) else []
    found: list[Mapping[str, Any]] = [entry for entry in listed if isinstance(entry, dict)]
    for name in names:
        found = [inner for entry in found for inner in _records(entry.get(name))]
    return found


def _preservation(hit: Mapping[str, Any], sample: str) -> str:
    """How the tissue of a file's sample was preserved; '' where the server does not say, or says it of another one."""
    samples = _records(hit.get("cases"), "samples")
    own = [s for s in samples if s.get("submitter_id") and sample.startswith(str(s["submitter_id"]).upper())]
    if not own and len(samples) == 1 and not samples[0].get("submitter_id"):
        own = samples
    flags = [part.get("is_ffpe") for s in own for part in (s, *_records(s.get("portions")))]
    found = {preservation(s.get("preservation_method")) for s in own} | {preservation(None, flag) for flag in flags}
    return FFPE if FFPE in found else max(found - {""}, default="", key=lambda text: (text != NOT_FFPE, text))


def _notices(hit: Mapping[str, Any]) -> list[Annotation]:
    """Notices about a file and what it was made of; of those of the case the ones that are about the case itself."""
    own = [annotation(entry) for entry in _records(hit.get("annotations"))]
    case = [annotation(entry) for entry in _records(hit.get("cases"), "annotations")]
    return [a for a in own if a is not None] + [a for a in case if a is not None and a.entity == "case"]


def _sample(hit: Mapping[str, Any], name: str, modality: str) -> str:
    """Barcode of the slide or aliquot: from the file name, the associated entity or the nested case; else ''."""
    if modality == "slides":
        try:
            return str(parse_slide_name(name))
        except BarcodeError:
            pass
    entities = [
        str(e.get("entity_submitter_id"))
        for e in _records(hit.get("associated_entities"))
        if e.get("entity_type") in ("aliquot", "slide") and e.get("entity_submitter_id")
    ]
    aliquots = _records(hit.get("cases"), "samples", "portions", "analytes", "aliquots")
    nested = [str(aliquot["submitter_id"]) for aliquot in aliquots if aliquot.get("submitter_id")]
    samples = [str(s["submitter_id"]) for s in _records(hit.get("cases"), "samples") if s.get("submitter_id")]
    for found in (entities, nested, samples):
        if len(set(found)) == 1:
            try:
                return str(parse(found[0]))
            except BarcodeError:
                return found[0] if safe_name(found[0]) else ""
    return ""
