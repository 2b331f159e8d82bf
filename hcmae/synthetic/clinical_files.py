"""Clinical records in the form of GDC ``/cases`` hits, odd values included."""

from __future__ import annotations

from typing import Any

import numpy as np

from hcmae.manifest import Manifest
from hcmae.synthetic.latent import Patient, patient_rng, stable_uuid

STAGES = ("Stage I", "Stage II", "Stage III", "Stage IV")


def case_record(patient: Patient, manifest: Manifest, seed: int) -> dict[str, Any]:
    """One hit: demographic, diagnoses and follow_ups of a patient.

    Age and stage are weakly related to the hazard, so that a clinical Cox model is a little better than chance.
    """
    rng = patient_rng(seed, patient.index, 5)
    lean = float(np.clip(patient.log_hazard, -5, 5)) / 1.9
    age = int(np.clip(61 + 11 * (0.18 * lean + rng.normal()), 19, 90))
    stage = STAGES[int(np.clip(np.floor(1.6 + 0.25 * lean + rng.normal(0, 0.9)), 0, 3))]
    dead = patient.event == 1
    time = patient.time
    demographic: dict[str, Any] = {
        "demographic_id": stable_uuid(seed, patient.barcode, "demographic"),
        "vital_status": "Dead" if dead else "Alive",
        "age_at_index": age,
        "sex_at_birth": "female" if rng.uniform() < 0.5 else "male",
    }
    if dead:
        demographic["days_to_death"] = time
    last = time if not dead else max(0, time - int(rng.integers(1, 120)))
    diagnosis: dict[str, Any] = {
        "diagnosis_id": stable_uuid(seed, patient.barcode, "diagnosis"),
        "submitter_id": f"{patient.barcode}_diagnosis",
        "primary_diagnosis": manifest.title,
        "classification_of_tumor": "primary",
        "diagnosis_is_primary_disease": True,
        "age_at_diagnosis": age * 365 + int(rng.integers(0, 365)),
        "ajcc_pathologic_stage": stage if rng.uniform() > 0.06 else "Not Reported",
    }
    visits = sorted({max(1, int(last * share)) for share in (0.4, 0.7)})
    follow_ups = [_visit(patient, seed, i, {"days_to_follow_up": day}) for i, day in enumerate(visits)]
    # The last day seen has lived in either place over the releases; a third of the records has it in both.
    place = rng.uniform()
    if place < 0.67:
        diagnosis["days_to_last_follow_up"] = last
    if place > 0.33:
        follow_ups.append(_visit(patient, seed, len(follow_ups), {"days_to_follow_up": last}))
    if patient.index % 7 == 0:
        follow_ups.append(_visit(patient, seed, len(follow_ups), {"disease_response": "TF-Tumor Free"}))
    if not dead and patient.index % 11 == 0:
        demographic["days_to_death"] = None  # null in some records, absent in most
    diagnoses = [diagnosis]
    if patient.index % 13 == 0:
        diagnoses.insert(
            0,
            {
                "diagnosis_id": stable_uuid(seed, patient.barcode, "prior"),
                "classification_of_tumor": "Prior primary",
                "diagnosis_is_primary_disease": False,
                "age_at_diagnosis": max(18, age - 9) * 365,
                "ajcc_pathologic_stage": "Stage I",
            },
        )
    record: dict[str, Any] = {
        "id": stable_uuid(seed, patient.barcode, "case"),
        "case_id": stable_uuid(seed, patient.barcode, "case"),
        "submitter_id": patient.barcode,
        "project": {"project_id": manifest.project},
        "demographic": demographic,
        "diagnoses": diagnoses,
        "follow_ups": follow_ups,
    }
    _spoil(record, diagnosis, patient)
    return record


def _visit(patient: Patient, seed: int, number: int, content: dict[str, Any]) -> dict[str, Any]:
    return {"follow_up_id": stable_uuid(seed, patient.barcode, "follow_up", number), **content}


def _spoil(record: dict[str, Any], diagnosis: dict[str, Any], patient: Patient) -> None:
    """Write the record of a patient whom curation must find and exclude."""
    demographic = record["demographic"]
    diagnosis_days = "days_to_last_follow_up"

    def only(days: int | None) -> None:
        record["follow_ups"] = []
        diagnosis.pop(diagnosis_days, None)
        if days is not None:
            diagnosis[diagnosis_days] = days

    match patient.exclusion:
        case "short_follow_up":
            only(12)
        case "short_follow_up_death":
            demographic.update(vital_status="Dead", days_to_death=21)
            only(9)
        case "missing_follow_up":
            only(None)
            del record["follow_ups"]
        case "negative_follow_up":
            only(-7)
        case "dead_without_date":
            demographic.update(vital_status="Dead")
            demographic.pop("days_to_death", None)
        case "vital_status_unknown":
            demographic["vital_status"] = "Not Reported"
        case _:
            pass
