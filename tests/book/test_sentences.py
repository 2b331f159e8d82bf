"""A sentence that compares is computed, cited or declared with its reason, in every lesson and on every page."""

from __future__ import annotations

from pathlib import Path

import pytest

from book.tools import sentences

KNOWN = sentences.declared()


@pytest.mark.parametrize("path", sentences.sources(), ids=lambda path: path.stem)
def test_no_comparison_without_a_ground(path: Path) -> None:
    bad, stale = sentences.unfounded([path], KNOWN)
    assert not bad, f"{bad[0].place} compares: compute it, cite a results file or declare it: {bad[0].text!r}"
    assert not stale, f"book/comparisons.toml: {stale[0].place} does not say any more: {stale[0].text!r}"


def test_declared_sentences_have_a_place_and_a_reason() -> None:
    names = {path.name for path in sentences.sources()}
    for name, entries in KNOWN.items():
        assert name in names, f"book/comparisons.toml declares sentences of {name}, which is no lesson or page"
        assert all(len(reason) > 10 for reason in entries.values())


@pytest.mark.parametrize(
    "claim",
    [
        "HC-MAE is better than MCAT.",
        "Its C-index is above 0.5.",
        "**What to see.** The *full* model beats both its streams.",
        "The agreement rises slowly with the number of trees.",
        "Colour and density come back, single nuclei do not.",
        "| HC-MAE | the largest of all |",
        "The more candidates, the better they look.",
        "Even the true score stays clearly below 1:",
        "The share that it finds is lower.",
    ],
)
def test_comparisons_are_found(claim: str) -> None:
    assert [text for text in sentences.sentences(claim) if sentences.compares(text)]


@pytest.mark.parametrize(
    "other",
    [
        "Is HC-MAE better than MCAT?",
        "The table below is printed from the code.",
        "A file rather than a folder, and no other than this one.",
        "The `best_test` epoch.",
        "See [that page](better.md).",
    ],
)
def test_what_claims_nothing_is_left_alone(other: str) -> None:
    assert not [text for text in sentences.sentences(other) if sentences.compares(text)]


def test_code_is_no_prose_and_directives_are() -> None:
    text = (
        "````{exercise}\n:label: better-than\nIt is worse.\n```python\nbetter = than\n```\nIt is best.\n````\n"
        "It is higher.\n```\nlower than\n```\nIt is larger.\n$$\nx \\text{ is smaller}\n$$\n"
    )
    found = [sentence for sentence in sentences.sentences(text) if sentences.compares(sentence)]
    assert found == ["It is worse.", "It is best.", "It is higher.", "It is larger."]


def test_a_fixed_verdict_in_code_is_found_and_a_chosen_one_is_not() -> None:
    code = (
        'display(Markdown(f"A ({a:.2f}) is better than B ({b:.2f})."))\n'
        'display(Markdown(f"A is {word} B." + (" It is worse." if a < b else "")))\n'
        'if a > b:\n    display(Markdown("A is better."))\n'
        'display(Markdown(f"{sentences.compared(one, a, other, b)}."))\n'
    )
    assert [text for text in sentences.prose_of_code(code) if sentences.compares(text)] == [
        "A (…) is better than B (…)."
    ]


def test_a_citation_or_a_declaration_is_a_ground(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("A is above B ({result}`draws_null`).\n\nC is *above* D.\n", encoding="utf-8")
    (bad,), stale = sentences.unfounded([page], {})
    assert (bad.words, stale) == ("C is above D.", [])
    assert sentences.unfounded([page], {"page.md": {"C is above D.": "a definition"}}) == ([], [])
    _, (stale,) = sentences.unfounded([page], {"page.md": {"C is above D.": "x", "It is gone.": "x"}})
    assert stale.text == "It is gone."
    assert sentences.unfounded([page], {"page.md": {"*": "rules"}}) == ([], [])


def test_a_lesson_cannot_be_declared_as_a_whole(tmp_path: Path) -> None:
    listed = tmp_path / "comparisons.toml"
    listed.write_text('[pages]\n"01_survival.py" = "too long"\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"01_survival\.py is declared as a whole"):
        sentences.declared(listed)


def test_cited_results_files_exist() -> None:
    for path in sentences.sources():
        for name in sentences.RESULT.findall(path.read_text(encoding="utf-8")):
            assert (sentences.REPO / "book" / "results" / f"{name}.json").exists(), f"{path.name} cites {name}"
