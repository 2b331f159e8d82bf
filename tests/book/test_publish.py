"""Publishing: equal runs give equal pages, a failed run gives none, nothing of the machine is left."""

from __future__ import annotations

import copy
import json

import pytest

from book.tools.publish import PublishError, main, normalise, publish, run_status


def executed(**changes):
    """A small executed notebook as papermill leaves it."""
    notebook = {
        "cells": [
            {
                "cell_type": "markdown",
                "id": "a1",
                "metadata": {"papermill": {"duration": 0.1}},
                "source": ["See [the method](../book/method.md)\n", "and [lesson 7](07_survival.ipynb)."],
            },
            {
                "cell_type": "code",
                "id": "b2",
                "metadata": {"tags": ["parameters"], "papermill": {"duration": 0.2}},
                "execution_count": 1,
                "source": "cancer = 'LIHC'",
                "outputs": [],
            },
            {
                "cell_type": "code",
                "id": "c3",
                "metadata": {"tags": ["injected-parameters"]},
                "execution_count": 2,
                "source": "cancer = 'BRCA'",
                "outputs": [],
            },
            {
                "cell_type": "code",
                "id": "d4",
                "metadata": {
                    "execution": {"iopub.status.busy": "2026-01-01T00:00:00Z"},
                    "mystnb": {"image": {"alt": "A line"}},
                },
                "execution_count": 3,
                "source": "plot()",
                "outputs": [
                    {
                        "output_type": "stream",
                        "name": "stderr",
                        "text": "\r  0%|          | 0/3 [00:00<?, ?it/s]\r100%|####| 3/3 [00:01<00:00,  2.9it/s]\n",
                    },
                    {"output_type": "stream", "name": "stderr", "text": "UserWarning: look here\n"},
                    {
                        "output_type": "display_data",
                        "metadata": {},
                        "data": {"application/vnd.jupyter.widget-view+json": {"model_id": "x"}, "text/plain": "bar"},
                    },
                    {
                        "output_type": "execute_result",
                        "execution_count": 3,
                        "metadata": {},
                        "data": {
                            "image/svg+xml": "<svg><metadata>\n<dc:date>2026-01-01T00:00:00</dc:date></metadata></svg>",
                            "text/plain": ["<Figure at 0x7f00deadbeef>"],
                        },
                    },
                ],
            },
        ],
        "metadata": {
            "kernelspec": {"name": "python3", "display_name": "other", "language": "python"},
            "language_info": {"name": "python", "version": "3.11.9"},
            "papermill": {
                "duration": 12.345,
                "end_time": "2026-01-01T00:00:12",
                "parameters": {"cancer": "BRCA", "profile": "smoke", "source": "synthetic", "seed": 0},
            },
            "widgets": {"state": {}},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    notebook.update(changes)
    return notebook


def test_two_equal_runs_give_the_same_page():
    first, second = executed(), executed()
    second["metadata"]["papermill"]["duration"] = 99.0
    second["metadata"]["language_info"]["version"] = "3.11.12"
    second["cells"][3]["metadata"]["execution"] = {"iopub.status.busy": "2027-05-05T00:00:00Z"}
    second["cells"][3]["id"] = "zz"
    output = second["cells"][3]["outputs"][3]["data"]
    output["image/svg+xml"] = output["image/svg+xml"].replace("2026", "2027")
    output["text/plain"] = ["<Figure at 0x7f11deadbe00>"]
    second["cells"][3]["outputs"][0]["text"] = "\r 50%|##   | 1/2 [00:09<00:09,  9.99s/it]\n"
    assert json.dumps(normalise(first), sort_keys=True) == json.dumps(normalise(second), sort_keys=True)


def test_what_a_reader_must_not_see_is_gone_and_the_rest_is_kept():
    page = normalise(executed())
    text = json.dumps(page)
    for gone in ("papermill", "iopub", "it/s", "3.11.9", "dc:date", "deadbeef", "widget-view"):
        assert gone not in text
    assert "UserWarning: look here" in text
    assert page["cells"][2]["metadata"]["tags"] == ["injected-parameters", "remove-cell"]
    assert page["cells"][3]["metadata"] == {"mystnb": {"image": {"alt": "A line"}}}
    assert [cell["id"] for cell in page["cells"]] == ["cell-000", "cell-001", "cell-002", "cell-003"]
    assert page["cells"][0]["source"].startswith("See [the method](../method.md)")
    assert "<svg>" in page["cells"][3]["outputs"][-1]["data"]["image/svg+xml"]


def test_styled_tables_have_the_same_name_in_every_run():
    import pandas as pd

    pages = []
    for _ in range(2):
        frame = pd.DataFrame({"a": [1.0, 2.0]})
        notebook = executed()
        notebook["cells"][3]["outputs"] = [
            {"output_type": "display_data", "metadata": {}, "data": {"text/html": styled.to_html()}}
            for styled in (frame.style.format(precision=3).hide(axis="index"), frame.style.highlight_max())
        ]
        pages.append(normalise(notebook)["cells"][3]["outputs"])
    assert pages[0] == pages[1]
    first, second = (output["data"]["text/html"] for output in pages[0])
    assert 'class="dataframe"' in first
    assert 'id="T_cell003_0_0"' in first
    assert 'id="T_cell003_1_0_row1_col0"' in second


def test_normalising_does_not_change_its_input():
    notebook = executed()
    before = copy.deepcopy(notebook)
    normalise(notebook)
    assert notebook == before


def test_a_failed_cell_stops_the_page(tmp_path):
    notebook = executed()
    notebook["cells"][1]["outputs"] = [
        {"output_type": "error", "ename": "ValueError", "evalue": "no patient left", "traceback": []}
    ]
    source = tmp_path / "02.ipynb"
    source.write_text(json.dumps(notebook), encoding="utf-8")
    with pytest.raises(PublishError, match=r"02\.ipynb.*cell 1 failed with ValueError: no patient left"):
        publish(source, tmp_path / "page.ipynb")
    assert not (tmp_path / "page.ipynb").exists()
    assert main([str(source), str(tmp_path / "page.ipynb")]) == 1


def test_a_notebook_that_never_ran_is_refused():
    notebook = executed()
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell.update(execution_count=None, outputs=[])
    with pytest.raises(PublishError, match="no cell was ever run"):
        normalise(notebook)


@pytest.mark.parametrize(("text", "words"), [(None, "no such notebook"), ("{", "not a notebook"), ("[]", "not a")])
def test_what_is_no_notebook_is_named(tmp_path, text, words):
    source = tmp_path / "x.ipynb"
    if text is not None:
        source.write_text(text, encoding="utf-8")
    with pytest.raises(PublishError, match=words) as error:
        publish(source, tmp_path / "y.ipynb")
    assert "x.ipynb" in str(error.value)


def test_status_holds_time_parameters_machine_and_packages(tmp_path):
    source = tmp_path / "02.ipynb"
    source.write_text(json.dumps(executed()), encoding="utf-8")
    publish(source, tmp_path / "02_cohort.ipynb")
    status = json.loads((tmp_path / "02_cohort.status.json").read_text(encoding="utf-8"))
    assert (status["notebook"], status["cancer"], status["profile"]) == ("02_cohort", "BRCA", "smoke")
    assert status["seconds"] == 12.3
    assert status["machine"]["cores"] >= 1
    assert "torch" in status["packages"]


def test_results_of_the_lessons_own_name_lie_beside_the_page_while_the_run_has_them(tmp_path):
    source = tmp_path / "run" / "notebooks" / "11_leaks.ipynb"
    kept = tmp_path / "run" / "results" / "leaks.json"
    for path in (source, kept):
        path.parent.mkdir(parents=True)
    source.write_text(json.dumps(executed()), encoding="utf-8")
    kept.write_text('{"rows": [1]}', encoding="utf-8")
    publish(source, tmp_path / "11_leaks.ipynb")
    assert json.loads((tmp_path / "11_leaks.results.json").read_text(encoding="utf-8")) == {"rows": [1]}
    kept.unlink()
    publish(source, tmp_path / "11_leaks.ipynb")
    assert not (tmp_path / "11_leaks.results.json").exists()


def test_status_of_a_notebook_that_papermill_did_not_run():
    notebook = executed()
    del notebook["metadata"]["papermill"]
    assert run_status(notebook, "x")["seconds"] is None


def test_what_depends_on_the_machine_or_on_earlier_runs_is_left_out():
    notebook = executed()
    said = "slides: done in 5.0 s\nreg: up to date, skipped (pretrain)\nraw: up to date, skipped\n42 patients\n"
    notebook["cells"][3]["outputs"] = [
        {"output_type": "stream", "name": "stdout", "text": said},
        {"output_type": "stream", "name": "stdout", "text": "omics: done in 12.3 s\n"},
        {
            "output_type": "stream",
            "name": "stderr",
            "text": "/home/somebody/my venv/lib/x.py\n/home/somebody/lib/site-packages/a/b.py:21: UserWarning: look\n",
        },
    ]
    streams = normalise(notebook)["cells"][3]["outputs"]
    assert [stream["text"] for stream in streams] == [
        "42 patients\n",
        "/home/somebody/my venv/lib/x.py\n…/site-packages/a/b.py:21: UserWarning: look\n",
    ]
