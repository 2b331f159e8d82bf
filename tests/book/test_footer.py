"""Below a lesson stand its notebook and its script; repository links only where there is an address."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from docutils import nodes
from sphinx import addnodes

from book._ext import finding, footer


def page(docname: str, repository: str = "") -> nodes.document:
    document = cast(nodes.document, nodes.section("", nodes.title(text="A lesson"), nodes.paragraph(text="Words.")))
    app: Any = SimpleNamespace(
        env=SimpleNamespace(docname=docname), config=SimpleNamespace(hcmae_repository=repository)
    )
    footer.offer_the_lesson(app, document)
    return document


def test_a_lesson_offers_its_notebook_and_its_script() -> None:
    links = [link["reftarget"] for link in page("book/executed/05_mae_patch").findall(addnodes.download_reference)]
    assert links == ["/notebooks/05_mae_patch.ipynb", "/notebooks/05_mae_patch.py"]


def test_other_pages_offer_nothing() -> None:
    assert not list(page("book/glossary").findall(addnodes.download_reference))


@pytest.mark.parametrize(("repository", "count"), [("", 0), ("https://example.org/book/", 2)])
def test_links_to_the_repository_need_its_address(repository: str, count: int) -> None:
    found = page("book/executed/05_mae_patch", repository).findall(nodes.reference)
    links = [link["refuri"] for link in found if "refuri" in link]
    assert len(links) == count
    assert all(link.startswith("https://example.org/book/") and "//" not in link[8:] for link in links)


def test_the_edition_names_version_and_run_where_there_is_one(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finding, "RESULT", tmp_path / "result.json")
    monkeypatch.setattr(finding, "STATUS", tmp_path / "status.json")
    assert "run" not in finding.edition_line()
    (tmp_path / "result.json").write_text(
        '{"provenance": {"profile": "smoke", "source": "synthetic", "seed": 3, "commit": "0123456789abcdef"}}'
    )
    (tmp_path / "status.json").write_text('{"finished": "2026-01-02T03:04:05"}')
    line = finding.edition_line()
    for word in ("smoke", "synthetic", "seed 3", "2026-01-02", "commit 0123456789"):
        assert word in line
