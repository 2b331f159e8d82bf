"""Every notebook is paired, takes the eight parameters, describes its figures and stores no output."""

from __future__ import annotations

import ast
import functools
import json
import re
from pathlib import Path

import jupytext
import numpy as np
import pytest

from book.tools.publish import PublishError, pair, paired_text
from hcmae.evaluation import optimism
from hcmae.pipeline import exercises

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
SOURCES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
PARAMETERS = {
    "cancer": "LIHC",
    "profile": "smoke",
    "source": "synthetic",
    "seed": 0,
    "data_dir": "../data",
    "run_dir": "../runs",
    "modalities": "rna,mirna,methylation",
    "slides": True,
}
# A cell that draws: it calls a plot function or asks for a figure, and shows the result.
DRAWS = re.compile(
    r"\bplots\.(?!style\b)\w+\(|\bplot_\w+\(|\bplt\.(subplots|figure|imshow|show)\(|style\.(image_)?figure\("
)

# Lines of a code cell that a reader sees, of one whose code is folded, and of one that builds something by hand.
LINES = {"": 12, "hide-input": 20, "by-hand": 20, "hide-cell": 20, "exercise": 12, "parameters": 12}
# Lessons that build the model by hand and hold the library to it.
BY_HAND = ("01", "05", "06", "07", "11")

needs_notebooks = pytest.mark.skipif(not SOURCES, reason="notebooks/ holds no NN_name.py yet")
each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


@functools.cache
def cells(source: Path):
    return jupytext.reads(source.read_text(encoding="utf-8"), fmt="py:percent").cells


@needs_notebooks
def test_the_lessons_of_the_book_are_there():
    listed = re.findall(r"book/executed/(\w+)", (FOLDER.parent / "_toc.yml").read_text(encoding="utf-8"))
    assert [source.stem for source in SOURCES] == listed


@each
def test_ipynb_is_what_the_script_says(source):
    target = source.with_suffix(".ipynb")
    assert target.exists(), f"{target.name} is missing: run 'make notebooks'"
    assert target.read_text(encoding="utf-8") == paired_text(source.read_text(encoding="utf-8")), (
        f"{target.name} and {source.name} differ: edit the .py and run 'make notebooks'"
    )


@each
def test_script_comes_back_from_the_ipynb(source):
    notebook = jupytext.read(source.with_suffix(".ipynb"))
    again = jupytext.reads(jupytext.writes(notebook, fmt="py:percent"), fmt="py:percent").cells
    assert [(c.cell_type, c.source, dict(c.metadata)) for c in again] == [
        (c.cell_type, c.source, dict(c.metadata)) for c in cells(source)
    ]


@each
def test_parameters_cell_comes_first_and_has_the_defaults(source):
    code = [cell for cell in cells(source) if cell.cell_type == "code"]
    assert code[0].metadata.get("tags") == ["parameters"]
    found = {
        node.targets[0].id: ast.literal_eval(node.value)
        for node in ast.parse(code[0].source).body
        if isinstance(node, ast.Assign)
    }
    assert {name: found.get(name) for name in PARAMETERS} == PARAMETERS


@each
def test_every_figure_has_alt_text(source):
    for number, cell in enumerate(cells(source)):
        if cell.cell_type != "code" or not DRAWS.search(cell.source):
            continue
        alt = cell.metadata.get("mystnb", {}).get("image", {}).get("alt", "")
        assert len(alt) >= 20, f"{source.name}, cell {number}: a figure without a description: {cell.source[:80]!r}"


def code_lines(text: str) -> int:
    """Lines of code without imports, comments and blank lines."""
    lines = [line.strip() for line in text.splitlines()]
    return sum(bool(line) and not line.startswith(("#", "%", "import ", "from ")) for line in lines)


@each
def test_cells_are_short_and_figures_are_folded(source):
    for number, cell in enumerate(cells(source)):
        if cell.cell_type != "code":
            continue
        tags = cell.metadata.get("tags", [])
        kind = tags[0] if tags else ""
        assert kind in LINES, f"{source.name}, cell {number}: unknown tag {kind}"
        count = code_lines(cell.source)
        assert count <= LINES[kind], (
            f"{source.name}, cell {number} has {count} lines: code that is no teaching goes to hcmae/pipeline/page*.py"
        )
        if DRAWS.search(cell.source) and kind != "by-hand":
            assert kind == "hide-input", f"{source.name}, cell {number} draws: its code is folded (tag hide-input)"


@each
def test_a_lesson_has_aims_a_quiz_and_exercises_one_of_them_in_code(source):
    text = "\n".join(cell.source for cell in cells(source) if cell.cell_type == "markdown")
    assert "**Afterwards you can**" in cells(source)[0].source
    assert re.search(r"\bneeds\b", cells(source)[0].source)
    assert 3 <= text.count("```{quiz}") <= 5
    labels = re.findall(r"\{exercise\}\n:label: (\S+)", text)
    assert len(labels) >= 3
    for label in labels:
        assert f"{{solution}} {label}" in text or any("hide-cell" in c.metadata.get("tags", []) for c in cells(source))
    (code,) = [cell.source for cell in cells(source) if "exercise" in cell.metadata.get("tags", [])]
    (name,) = re.findall(r'check\("(\S+)", \w+\)', code)
    assert name in labels
    assert name.startswith(f"ex-{source.stem[:2]}-")
    blank, solved = answers(source, name)
    with pytest.raises(exercises.AnswerError):
        exercises.passed(name, blank)
    exercises.passed(name, solved)


def answers(source: Path, name: str):
    """The function that the student is given and the one of the solution, as the lesson has them."""
    functions = []
    text = "\n".join(cell.source for cell in cells(source) if cell.cell_type == "markdown")
    (solution,) = re.findall(rf"\{{solution\}} {name}\n.*?```python\n(.*?)```", text, re.DOTALL)
    (given,) = [cell.source for cell in cells(source) if "exercise" in cell.metadata.get("tags", [])]
    for code in (given, solution):
        space = {"np": np, "optimism": optimism}
        defined = [node for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]
        exec(compile(ast.Module(defined, []), name, "exec"), space)
        functions.append(space[defined[0].name])
    return functions


def test_every_check_belongs_to_a_lesson():
    asked = re.findall(r'check\("(\S+)"', "\n".join(source.read_text(encoding="utf-8") for source in SOURCES))
    assert sorted(asked) == sorted(exercises.CHECKS)


def test_a_check_says_what_is_missing_and_stops_nothing():
    assert "returns nothing" in exercises.check("ex-07-eq7", lambda *given: None)
    assert "stops with ZeroDivisionError" in exercises.check("ex-10-p", lambda *given: 1 / 0)
    assert "the function itself" in exercises.check("ex-10-p", 0.1)
    assert "the values are not" in exercises.check("ex-10-p", lambda observed, null: 0.5)
    assert "the shape is" in exercises.check("ex-10-p", lambda observed, null: null)
    assert "the leak is still there" in exercises.check(
        "ex-11-leak", lambda x, time, event, train: np.argsort(-np.abs(optimism.cox_score(x, time, event)))[:5]
    )
    with pytest.raises(KeyError, match="no check 'ex-99'"):
        exercises.check("ex-99", print)


@each
def test_a_run_is_opened_in_one_line(source):
    text = source.read_text(encoding="utf-8")
    assert "run = pages.open_run(globals())\n" in text
    assert "Run(" not in "".join(cell.source for cell in cells(source) if cell.cell_type == "code")


@pytest.mark.parametrize("source", [path for path in SOURCES if path.stem[:2] in BY_HAND], ids=lambda path: path.stem)
def test_what_is_built_by_hand_is_printed_and_held_to_the_library(source):
    built = [cell.source for cell in cells(source) if "by-hand" in cell.metadata.get("tags", [])]
    assert built
    shown = "\n".join(cell.source for cell in cells(source) if cell.cell_type == "code")
    # Printed from the library, not copied into the lesson.
    assert "pages.source(" in shown
    assert not any("def " in text for text in built)
    if source.stem[:2] != "11":
        assert any("assert" in text for text in built), f"{source.name} builds by hand and compares with nothing"


def test_long_cells_would_be_noticed():
    assert code_lines("import x\n# why\n\na = 1\nfrom y import z\nb = 2\n") == 2


@each
def test_no_output_is_stored(source):
    notebook = json.loads(source.with_suffix(".ipynb").read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@each
def test_starts_with_a_title_and_names_what_it_needs(source):
    first = cells(source)[0]
    assert first.cell_type == "markdown"
    assert first.source.startswith("# ")
    text = "\n".join(cell.source for cell in cells(source) if cell.cell_type == "markdown").lower()
    assert "minutes" in text
    assert "{exercise}" in text or "{exercise-start}" in text
    # A solution is a box of its own, or code in a cell that opens on a click.
    assert "{solution" in text or any("hide-cell" in cell.metadata.get("tags", []) for cell in cells(source))


def test_a_figure_without_description_would_be_noticed():
    assert DRAWS.search("plots.kaplan_meier(predictions)")
    assert DRAWS.search("fig, ax = plt.subplots()")
    assert not DRAWS.search("from hcmae import plots")
    assert not DRAWS.search("plots.style.notebook()")


def test_pairing_writes_once_and_then_nothing(tmp_path):
    script = tmp_path / "01_x.py"
    script.write_text('# %% [markdown]\n# # Title\n\n# %% tags=["parameters"]\nseed = 0\n', encoding="utf-8")
    assert pair(tmp_path) == [tmp_path / "01_x.ipynb"]
    assert pair(tmp_path) == []
    notebook = json.loads((tmp_path / "01_x.ipynb").read_text(encoding="utf-8"))
    assert notebook["cells"][1]["metadata"] == {"tags": ["parameters"]}
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_pairing_an_empty_folder_says_so(tmp_path):
    with pytest.raises(PublishError, match="no NN_name"):
        pair(tmp_path)
