"""The book's sources: contents, settings that pages name, references, the local extension, figures' style."""

from __future__ import annotations

import json
import re
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
import yaml

from book._ext import quiz, reference, results, settings
from hcmae.config import PROFILES, load_profile

ROOT = Path(__file__).resolve().parents[2]
BOOK = ROOT / "book"
PAGES = sorted(path for path in BOOK.rglob("*.md") if "executed" not in path.parts)


def toc_files() -> list[str]:
    return re.findall(r"(?:root|file): (\S+)", (ROOT / "_toc.yml").read_text(encoding="utf-8"))


def test_contents_list_every_page_once():
    listed = toc_files()
    assert len(listed) == len(set(listed))
    pages = {path.relative_to(ROOT).with_suffix("").as_posix() for path in PAGES}
    assert {name for name in listed if "/executed/" not in name} == pages


def test_config_keeps_the_strict_settings():
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
    assert config["execute"]["execute_notebooks"] == "off"
    for folder in ("_build", ".*", "data", "runs", "tests"):
        assert folder in config["exclude_patterns"]
    sphinx = config["sphinx"]["config"]
    assert "sphinx_thebe" not in sphinx["extensions"]
    assert (BOOK / "_static" / sphinx["mathjax_path"]).is_file()
    assert "://" not in sphinx["mathjax_path"]
    assert set(sphinx["suppress_warnings"]) <= {"myst.domains", "etoc.glob", "mystnb.unknown_mime_type"}


def test_vendored_mathjax_is_complete_and_licensed():
    folder = BOOK / "_static" / "mathjax"
    assert "Apache License" in (folder / "LICENSE").read_text(encoding="utf-8")
    assert len(list((folder / "output/chtml/fonts/woff-v2").glob("*.woff"))) >= 20


def test_every_citation_has_an_entry_and_every_entry_a_year():
    bibliography = (BOOK / "references.bib").read_text(encoding="utf-8")
    keys = set(re.findall(r"@\w+\{(\w+),", bibliography))
    entries = re.split(r"\n(?=@)", bibliography)
    assert all("year" in entry for entry in entries)
    texts = PAGES + sorted((ROOT / "notebooks").glob("*.py"))
    for path in texts:
        for cited in re.findall(r"\{cite(?::\w+)?\}`([^`]+)`", path.read_text(encoding="utf-8")):
            for key in cited.split(","):
                assert key.strip() in keys, f"{path.name} cites {key.strip()}, which book/references.bib does not have"


def test_every_switch_that_a_page_names_exists():
    named = [
        (path.name, match)
        for path in PAGES
        for match in re.findall(r"\{switch\}`([^`]+)`", path.read_text(encoding="utf-8"))
    ]
    assert len(named) > 20
    for page, text in named:
        section, _, field = text.partition(".")
        assert field in settings.model_of(section).model_fields, f"{page}: {text}"


def test_every_setting_that_a_page_or_lesson_names_is_a_profiles():
    named = [
        (path.name, match)
        for path in [*PAGES, *sorted((ROOT / "notebooks").glob("*.py"))]
        for match in re.findall(r"\{setting\}`([^`]+)`", path.read_text(encoding="utf-8"))
    ]
    assert len(named) > 10
    for page, text in named:
        profile, _, dotted = text.partition(":")
        assert profile in PROFILES, f"{page}: {text} names no profile before the colon"
        value = load_profile(profile)
        for part in dotted.split("."):
            assert hasattr(value, part), f"{page}: {text}"
            value = getattr(value, part)


def test_every_fidelity_switch_is_explained():
    from hcmae.config import Fidelity

    text = (BOOK / "paper_vs_release.md").read_text(encoding="utf-8")
    for field in Fidelity.model_fields:
        assert f"Fidelity.{field}`" in text, f"paper_vs_release.md has no row for Fidelity.{field}"


def test_a_wrong_section_is_an_error():
    from sphinx.errors import ExtensionError

    with pytest.raises(ExtensionError, match="has a section 'Fidelty'"):
        settings.model_of("Fidelty")


def test_choices_are_read_from_the_annotation():
    from hcmae.config import Fidelity, Protocol

    assert settings.choices(Protocol.model_fields["select_on"].annotation) == "train | all"
    assert settings.choices(Fidelity.model_fields["extract_depth"].annotation) == "whole number | none"
    assert settings.choices(bool) == "on | off"


def test_stray_markup_in_docstrings_is_kept_as_text():
    lines = ["Sum over ``x_`` and n_ of a * b | c.", "* a bullet *", ":func:`f_` stays"]
    reference.plain_docstrings(None, "function", "f", None, None, lines)
    assert lines == ["Sum over ``x_`` and n\\_ of a \\* b \\| c.", "* a bullet \\*", ":func:`f_` stays"]


def test_a_broken_hanging_indent_becomes_a_paragraph():
    lines = ["Shapes:", "  a: one", "    and more", " b: two"]
    reference.plain_docstrings(None, "function", "f", None, None, lines)
    assert lines == ["Shapes:", "a: one", "and more", "b: two"]


def test_quiz_options_are_recognised():
    match = quiz.OPTION.match("- (x) Four :: Two and two.")
    assert match
    assert (match["right"], match["text"], match["reply"]) == ("x", "Four", "Two and two.")
    assert quiz.OPTION.match("- ( ) Five")
    assert not quiz.OPTION.match("How many?")


def test_sparse_columns_of_measurements_share_one():
    rows = [{"": "a", "seconds": 1.0, "note": "exact"}, {"": "b", "seconds": 2.0}, {"": "c", "seconds": 1234.5}]
    text = results.records_table(rows, None).astext().split("\n\n")
    assert [word for word in text if word] == ["seconds", "details", "a", "1", "note: exact", "b", "2", "c", "1,234"]


def test_minutes_of_every_lesson_are_found():
    sources = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.py"))
    for source in sources:
        title, minutes = results.lesson(source)
        assert not title.startswith("#"), source.name
        assert 5 <= int(minutes) <= 120, source.name


@pytest.mark.parametrize("seconds", [(59.4, "59 s"), (61.0, "1 min 01 s"), (None, "not recorded")])
def test_durations_in_words(seconds):
    assert results.duration(seconds[0]) == seconds[1]


def test_result_files_are_readable_tables():
    for path in (BOOK / "results").glob("*.json"):
        value = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(value, (dict, list)), path


def test_prose_names_no_folder_of_a_machine():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"(?<![\w.])/(work|tmp|home|root|Users)/", text), path


def test_licences_and_citation():
    assert "Apache License" in (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Attribution 4.0 International" in (ROOT / "LICENSE-text").read_text(encoding="utf-8")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    paper = citation["references"][0]
    assert [author["family-names"] for author in paper["authors"]] == ["Wang", "Hu", "Zhang"]
    assert paper["year"] == 2023
    assert paper["doi"] in (BOOK / "references.bib").read_text(encoding="utf-8")


# --- the look of figures ---------------------------------------------------------------------------------------------


def test_equal_figures_are_equal_files(tmp_path):
    from hcmae.plots import style

    for name in ("a.svg", "b.svg"):
        fig, ax = style.figure(width="narrow")
        ax.plot([0, 1], [0, 1], label="line")
        ax.legend()
        style.save(fig, tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert b"<dc:date>" not in (tmp_path / "a.svg").read_bytes()


def test_making_a_figure_changes_no_global_state():
    import matplotlib.pyplot as plt

    from hcmae.plots import style

    before = dict(mpl.rcParams)
    numbers = plt.get_fignums()
    style.figure(2, 2)
    style.image_figure(1, 3)
    assert dict(mpl.rcParams) == before
    assert plt.get_fignums() == numbers


def test_colours_have_names_and_unknown_ones_are_stable():
    from hcmae.config import CANCERS, MODALITIES
    from hcmae.plots import style

    assert len({style.colour(name) for name in CANCERS}) == len(CANCERS)
    assert len({style.colour(name) for name in MODALITIES}) == len(MODALITIES)
    assert style.colour("High risk") == style.RISK_GROUPS["high"]
    assert style.colour("some new method") == style.colour("some new method")
    assert style.palette(["hcmae", "x", "y"])["x"] != style.palette(["hcmae", "x", "y"])["y"]


def test_colours_are_readable_on_white():
    """WCAG: 3 to 1 against the ground for graphical objects."""
    from hcmae.plots import style

    for table in (style.CANCERS, style.MODALITIES, style.RISK_GROUPS, style.PROTOCOLS):
        for name, value in table.items():
            channels = np.array(mpl.colors.to_rgb(value))
            linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
            contrast = 1.05 / (linear @ [0.2126, 0.7152, 0.0722] + 0.05)
            assert contrast >= 3.0, f"{name}: {contrast:.2f}"


def test_an_unknown_width_is_named():
    from hcmae.plots import style

    with pytest.raises(ValueError, match="unknown figure width 'huge'"):
        style.figure(width="huge")


def test_plots_are_gathered_without_name_clashes():
    from hcmae import plots

    assert "style" in plots.__all__
    assert len(plots.__all__) == len(set(plots.__all__))
    assert all(hasattr(plots, name) for name in plots.__all__)


def test_records_inside_a_record_become_rows():
    rows = [{"": "tiled", "mib": 3.0, "readers": {"our_own": {"speed": 2.0}, "other": {"speed": 1.0, "peak": 5}}}]
    assert results.spread(rows) == [
        {"": "tiled", "mib": 3.0, "readers": "our own", "speed": 2.0},
        {"": "tiled", "mib": 3.0, "readers": "other", "speed": 1.0, "peak": 5},
    ]
    assert results.spread([{"a": {"x": 1}, "b": {}}]) == [{"a": {"x": 1}, "b": {}}]
