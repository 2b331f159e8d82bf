"""Tables of the book: numbers, blocks and provenance, in every format."""

from __future__ import annotations

import io

import pandas as pd

from hcmae.evaluation import compare, tables
from hcmae.evaluation.kaplan_meier import risk_groups
from hcmae.evaluation.permutation import PermutationTest
from tests.support.predictions import predictions


def test_table2_and_its_renderings() -> None:
    ours = {"hcmae": {"LIHC": tables.Score(0.71, 0.04, 0.66, 0.76)}}
    table = tables.table2(ours, cancers=("LIHC", "STAD"), provenance={"profile": "smoke", "source": "synthetic"})
    frame = table.frame()
    assert frame.loc[("Deep learning", "HC-MAE"), "LIHC paper"] == "0.737 ± 0.031"
    assert frame.loc[("Deep learning", "HC-MAE"), "LIHC ours"] == "0.710 ± 0.040"
    assert frame.loc[("Deep learning", "MCAT"), "LIHC ours"] == tables.NOT_RUN
    assert "profile smoke, source synthetic" in table.caption
    page = table.to_html()
    assert page.count("<tr>") == len(tables.TABLE2_ROWS) + 1
    # The paper's best on STAD is HIPT (Integration), not HC-MAE.
    assert "<strong>0.631 ± 0.048</strong>" in page
    assert r"\textbf{0.737 $\pm$ 0.031}" in table.to_latex()
    read = pd.read_csv(io.StringIO(table.to_csv()), comment="#")
    assert list(read.columns) == ["data", "method", *table.columns]
    assert len(read) == len(tables.TABLE2_ROWS)


def test_six_cancers_are_two_blocks_with_intervals_on_a_line_of_their_own() -> None:
    ours = {"hcmae": {"LIHC": tables.Score(0.71, 0.04, 0.66, 0.76)}}
    table = tables.table2(ours, interval=True)
    page = table.to_html()
    assert page.count("<table") == 2
    assert page.count("<tr>") == 2 * (len(tables.TABLE2_ROWS) + 1)
    assert page.index("LUAD ours") < page.index("continued") < page.index("COAD paper")
    assert "0.710 ± 0.040<br><small>(0.660 to 0.760)</small>" in page
    assert "0.737<br><small>± 0.031</small>" in page
    assert page.count('<tr class="group">') == 6
    tex = table.to_latex()
    assert tex.count(r"\begin{tabular}{llllllll}") == tex.count(r"\end{tabular}") == 2
    assert tex.count(r"\caption") == 1
    assert r"\shortstack[l]{\textbf{0.710 $\pm$ 0.040} \\ (0.660 to 0.760)}" in tex
    read = pd.read_csv(io.StringIO(table.to_csv()), comment="#")
    assert len(read.columns) == 14
    assert "0.710 ± 0.040 (0.660 to 0.760)" in set(read["LIHC ours"])
    assert "0.737 ± 0.031" in set(read["LIHC paper"])


def test_table3_and_figure2() -> None:
    table = tables.table3({"trans_mo": tables.Score(0.7, 0.05, 0.65, 0.75)})
    assert table.frame().loc[("Multi-omics", "Trans-MO"), "ours"] == "0.700 ± 0.050 (0.650 to 0.750)"
    assert table.frame().loc[("Image", "MAE-Pat"), "ours"] == tables.NOT_RUN
    named = tables.table3({}, variant="HC-MAE here is a variant.")
    assert ("Multimodal", "HC-MAE, this book's variant") in named.rows
    assert ("Multimodal", "HC-MAE, paper's reading") in named.rows
    both = (named, tables.table2({}, variant="HC-MAE here is a variant."))
    for said in (table.caption for table in both):
        assert "HC-MAE here is a variant. What the paper measured as HC-MAE stands beside the variant." in said
        assert "Bold: the first of a column." in said
    assert "stands beside" not in tables.table3({}).caption


def test_a_table_of_several_cancers_is_not_said_to_be_of_one() -> None:
    origin = {"cancer": "LIHC", "profile": "smoke"}
    assert "cancer LIHC" not in tables.table2({}, provenance=origin).caption
    assert "cancer LIHC" in tables.table2({}, cancers=("LIHC",), provenance=origin).caption


def test_figure2_has_both_p_values() -> None:
    groups = risk_groups(predictions())
    tested = groups.tested(PermutationTest(9.0, (1.0,) * 19))
    table = tables.figure2_table({"hcmae": groups, "cox_clinical": tested})
    figure = table.frame()
    assert figure.loc[("Deep learning", "HC-MAE"), "p, paper (naive)"] == "2.1e-07"
    assert figure.loc[("Deep learning", "MCAT"), "p, ours (naive)"] == tables.NOT_RUN
    assert figure.loc[("Deep learning", "HC-MAE"), "ours, permuted"] == ""
    assert "19 permutations" in figure.loc[("Added here", "Cox on age, sex, stage"), "ours, permuted"]
    assert "small p-values come too often" in table.caption


def test_difference_frame_names_both_intervals() -> None:
    frame = predictions()
    rows = compare.compare({"hcmae": frame, "x": frame.assign(risk=frame["risk"][::-1].to_numpy())}, "hcmae", draws=20)
    shown = tables.difference_frame(rows, {"hcmae": "HC-MAE"})
    assert shown.loc[0, "first"] == "HC-MAE"
    assert shown.loc[0, "minus"] == "x"
    assert shown.loc[0, "95 %, other training sets"] == f"{rows['nb_low'][0]:+.3f} to {rows['nb_high'][0]:+.3f}"
    assert shown.loc[0, "95 %, other test patients"] == f"{rows['low'][0]:+.3f} to {rows['high'][0]:+.3f}"


def test_rendered_tables_escape() -> None:
    table = tables.ResultTable("T_1 & co", ["a<b"], [("g", "m%")], [["<i>"]], "50 %")
    assert "<i>" not in table.to_html()
    assert r"T\_1 \& co" in table.to_latex()
    odd = tables.ResultTable("a\\b{c}~d^e", ["x"], [("g", "m")], [["1"]]).to_latex()
    assert r"a\textbackslash{}b\{c\}\textasciitilde{}d\textasciicircum{}e" in odd


def test_tables_carry_their_provenance_in_every_format(tmp_path) -> None:
    origin = {
        "cancer": "LGG",
        "profile": "smoke",
        "source": "synthetic",
        "seeds": [0, 1, 2],
        "protocol": "honest",
        "commit": "abc1234",
    }
    score = tables.Score(0.7, 0.05, 0.65, 0.75)
    for number, table in enumerate(
        (
            tables.table2({"hcmae": {"LIHC": score}}, cancers=("LIHC",), provenance=origin),
            tables.table3({"hcmae": score}, provenance=origin),
            tables.figure2_table({"hcmae": risk_groups(predictions())}, provenance=origin),
        )
    ):
        for path in table.write(tmp_path, f"table{number}"):
            text = path.read_text()
            for part in ("cancer LGG", "profile smoke", "source synthetic", "seeds 0 1 2", "commit abc1234"):
                assert part in text, (path.name, part)


def test_commit_of_the_checkout_stands_in_for_a_missing_one(repo, tmp_path, monkeypatch) -> None:
    named = tables.provenance_text({"profile": "smoke", "commit": "abc"})
    assert "commit abc" in named
    checkout = tmp_path / "x"
    (checkout / ".git" / "refs" / "heads").mkdir(parents=True)
    (checkout / ".git" / "HEAD").write_text("ref: refs/heads/main\n")
    (checkout / ".git" / "refs" / "heads" / "main").write_text("0123456789abcdef\n")
    monkeypatch.setattr(tables, "__file__", str(checkout / "hcmae" / "evaluation" / "tables.py"))
    assert tables.source_commit() == "0123456789"
    assert "commit 0123456789" in tables.provenance_text({"profile": "smoke"})
    (checkout / ".git" / "refs" / "heads" / "main").unlink()
    (checkout / ".git" / "packed-refs").write_text("# pack\nfedcba98765 refs/heads/main\n")
    assert tables.source_commit() == "fedcba9876"
    (checkout / ".git" / "HEAD").unlink()
    assert tables.source_commit() is None
