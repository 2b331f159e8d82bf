"""Students get no solution, instructors all of them, and both editions are notebooks of every lesson."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from book.tools import course
from book.tools.publish import PublishError

LESSON = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Title
#
# ```{exercise}
# :label: ex-99-prose
# Why?
# ```
#
# ```{solution} ex-99-prose
# :class: dropdown
# Because of the secret.
# ```
#
# Prose that stays.

# %% tags=["hide-cell"]
secret = 1

# %% tags=["exercise"]
from hcmae.pipeline.exercises import check


def answer(x): ...


check("ex-99-code", answer)

# %% [markdown]
# ````{solution} ex-99-code
# :class: dropdown
# ```python
# def answer(x):
#     return "secret"
# ```
# ````
"""


def sources(text: str) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(text)["cells"]]


def test_students_get_blanks_and_the_prose() -> None:
    cells = sources(course.student(LESSON))
    whole = "\n".join(cells)
    assert "secret" not in whole
    assert "{solution" not in whole
    assert "Prose that stays." in whole
    assert "Why?" in whole
    assert 'check("ex-99-code", answer)' in whole
    assert all(cells), "an empty cell is left where a solution was"


def test_instructors_get_the_solution_checked() -> None:
    cells = sources(course.instructor(LESSON))
    blank = next(number for number, cell in enumerate(cells) if "def answer(x): ..." in cell)
    assert cells[blank + 1] == 'def answer(x):\n    return "secret"\n\n\ncheck("ex-99-code", answer)'
    assert "{solution} ex-99-prose" in "\n".join(cells)


@pytest.mark.slow
def test_every_lesson_has_both_editions(tmp_path: Path) -> None:
    written = course.write_course(tmp_path)
    lessons = sorted(path.stem for path in course.NOTEBOOKS.glob("[0-9][0-9]_*.py"))
    for edition in ("student", "instructor"):
        assert sorted(path.stem for path in written if path.parent.name == edition) == lessons
    for path in written:
        text = path.read_text(encoding="utf-8")
        assert ("{solution" in text) == (path.parent.name == "instructor")
        if path.parent.name == "instructor":
            # The blank and the solved one.
            assert len([cell for cell in sources(text) if 'check("ex-' in cell]) == 2


def test_a_solution_that_would_slip_through_or_take_an_exercise_along_is_an_error(tmp_path: Path) -> None:
    lesson = tmp_path / "01_x.py"
    lesson.write_text(LESSON.replace("````", "~~~~"), encoding="utf-8")
    with pytest.raises(PublishError, match=r"01_x\.py: a solution is in no box"):
        course.write_course(tmp_path / "out", tmp_path)
    unclosed = "# Because of the secret.\n# ```\n"
    lesson.write_text(LESSON.replace(unclosed, "# Because of the secret.\n"), encoding="utf-8")
    with pytest.raises(PublishError, match=r"01_x\.py: "):
        course.write_course(tmp_path / "out", tmp_path)
    with pytest.raises(PublishError, match="no NN_name"):
        course.write_course(tmp_path / "out", tmp_path / "empty")
