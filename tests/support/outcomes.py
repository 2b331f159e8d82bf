"""What every outcome that a reader gives must be, whatever the table was."""

from __future__ import annotations

from hcmae.cohort.clinical import ClinicalTable


def assert_outcomes_can_be_true(table: ClinicalTable) -> None:
    """Event, time and age lie where those of people lie, and what is missing has a reason."""
    for outcome in table.outcomes.values():
        assert outcome.event in (0, 1, None)
        assert outcome.time is None or 0 <= outcome.time < 120 * 366
        assert outcome.reason or None not in (outcome.time, outcome.event)
        assert outcome.age is None or 0 <= outcome.age <= 130
