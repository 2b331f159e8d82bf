"""Tables II and III and the numbers of Fig. 2 as objects: the paper's values beside ours, as HTML, LaTeX or CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from hcmae.config import CANCERS
from hcmae.evaluation.kaplan_meier import NAIVE
from hcmae.evaluation.metrics import bootstrap, mean_concordance
from hcmae.files import write_text

NOT_RUN = "not run yet"


@dataclass(frozen=True)
class Score:
    """A C-index as printed: mean, sd over folds, and for ours a bootstrap interval over patients."""

    mean: float
    sd: float
    low: float | None = None
    high: float | None = None

    def text(self, *, interval: bool = False, between: str = " ") -> str:
        shown = f"{self.mean:.3f} ± {self.sd:.3f}"
        if interval and self.low is not None and self.high is not None:
            shown += f"{between}({self.low:.3f} to {self.high:.3f})"
        return shown


def _scores(text: str) -> dict[str, Score]:
    pairs = [value.split("±") for value in text.split()]
    return {cancer: Score(float(mean), float(sd)) for cancer, (mean, sd) in zip(CANCERS, pairs, strict=True)}


# Table II of the paper, in the order LIHC BRCA LUAD COAD LGG STAD.
PAPER_TABLE2: dict[str, dict[str, Score]] = {
    "GPDBN": _scores("0.643±0.019 0.636±0.047 0.615±0.053 0.593±0.081 0.844±0.025 0.587±0.025"),
    "CAMR": _scores("0.691±0.052 0.656±0.072 0.647±0.059 0.606±0.074 0.803±0.044 0.587±0.029"),
    "DeepCorrSurv": _scores("0.700±0.048 0.659±0.018 0.662±0.032 0.549±0.026 0.828±0.034 0.609±0.049"),
    "MCAT": _scores("0.711±0.029 0.663±0.041 0.664±0.026 0.691±0.132 0.844±0.032 0.622±0.034"),
    "HIPT (WSI only)": _scores("0.668±0.031 0.640±0.055 0.635±0.045 0.612±0.033 0.810±0.031 0.612±0.053"),
    "HIPT (Integration)": _scores("0.694±0.042 0.651±0.075 0.653±0.042 0.635±0.026 0.842±0.028 0.631±0.048"),
    "HC-MAE": _scores("0.737±0.031 0.695±0.026 0.691±0.044 0.703±0.083 0.851±0.033 0.623±0.045"),
}
# Table III of the paper: ablation on LIHC.
PAPER_TABLE3: dict[str, Score] = {
    "MAE-Pat": Score(0.649, 0.055),
    "MAE-Reg": Score(0.614, 0.025),
    "MAE-PatReg": Score(0.674, 0.042),
    "HC-RegSli": Score(0.641, 0.066),
    "HC-PatRegSli": Score(0.711, 0.032),
    "Trans-MO": Score(0.700, 0.045),
    "HC-MAE": Score(0.737, 0.031),
}
# Log-rank p-values of Fig. 2 (BRCA); DeepCorrSurv's is not given in the text.
PAPER_FIGURE2: dict[str, float] = {
    "GPDBN": 0.0048,
    "CAMR": 0.0035,
    "MCAT": 0.0056,
    "HIPT (Integration)": 0.0079,
    "HC-MAE": 2.1e-7,
}
# Row -> (name in METHODS, group of the table). The order is the paper's; below it what a reviewer asks for.
TABLE2_ROWS: tuple[tuple[str, str, str], ...] = (
    ("GPDBN", "gpdbn", "Hand-crafted images"),
    ("CAMR", "camr", "Hand-crafted images"),
    ("DeepCorrSurv", "deepcorrsurv", "Deep learning"),
    ("MCAT", "mcat", "Deep learning"),
    ("HIPT (WSI only)", "hipt", "Deep learning"),
    ("HIPT (Integration)", "hipt_integration", "Deep learning"),
    ("HC-MAE", "hcmae", "Deep learning"),
    ("HC-MAE, paper's reading", "hcmae_paper", "Deep learning"),
    ("HC-MAE, images only", "hcmae_image", "Added here"),
    ("Trans-MO", "trans_mo", "Added here"),
    ("CLAM-SB", "clam_sb", "Added here"),
    ("ABMIL on patches", "abmil_patch", "Added here"),
    ("Elastic net on omics", "coxnet_omics", "Added here"),
    ("Cox on age, sex, stage", "cox_clinical", "Added here"),
)
TABLE3_ROWS: tuple[tuple[str, str, str], ...] = (
    ("MAE-Pat", "mae_pat", "Image"),
    ("MAE-Reg", "mae_reg", "Image"),
    ("MAE-PatReg", "mae_patreg", "Image"),
    ("HC-RegSli", "hc_regsli", "Image"),
    ("HC-PatRegSli", "hc_patregsli", "Image"),
    ("Trans-MO", "trans_mo", "Multi-omics"),
    ("HC-MAE without thumbnails", "hcmae_regions", "Multimodal"),
    ("HC-MAE", "hcmae", "Multimodal"),
    ("HC-MAE, paper's reading", "hcmae_paper", "Multimodal"),
)
# The same for features without pixels; "{}" is the encoder's name.
FEATURE_ROWS: tuple[tuple[str, str, str], ...] = (
    ("MAE-PatReg on {}, region token", "mae_patreg", "Image"),
    ("ABMIL on {}", "abmil_patch", "Image"),
    ("CLAM-SB on {}", "clam_sb", "Image"),
    ("HIPT on {}, its second and third stage", "hipt", "Image"),
    ("MCAT on {}", "mcat", "Multimodal"),
    ("HIPT (Integration) on {}", "hipt_integration", "Multimodal"),
    ("HC-MAE on {}, keys from region tokens", "hcmae_regions", "Multimodal"),
    ("Trans-MO", "trans_mo", "No image"),
    ("Elastic net on omics", "coxnet_omics", "No image"),
    ("Cox on age, sex, stage", "cox_clinical", "No image"),
)


@dataclass
class ResultTable:
    """Rows of methods, columns of scores; ``cells[row][column]`` is text.

    ``caption`` carries the provenance, so that a table that is copied out of the book still says what it shows.
    A line break in a cell is one on the page. At most ``beside`` columns stand side by side; the rest follows below,
    with the methods named again.
    """

    title: str
    columns: list[str]
    rows: list[tuple[str, str]]
    cells: list[list[str]]
    caption: str = ""
    best: set[tuple[int, int]] = field(default_factory=set)
    beside: int = 6

    def _blocks(self) -> list[range]:
        count = len(self.columns)
        return [range(start, min(start + self.beside, count)) for start in range(0, count, self.beside)]

    def frame(self) -> pd.DataFrame:
        """As a DataFrame indexed by group and method."""
        index = pd.MultiIndex.from_tuples(self.rows, names=["data", "method"])
        return pd.DataFrame(self.cells, index=index, columns=self.columns)

    def to_csv(self) -> str:
        """Comma separated, the caption as a comment line."""
        out = io.StringIO()
        if self.caption:
            out.write("# " + self.caption.replace("\n", " ") + "\n")
        writer = csv.writer(out, lineterminator="\n")
        writer.writerow(["data", "method", *self.columns])
        for (group, name), cells in zip(self.rows, self.cells, strict=True):
            writer.writerow([group, name, *(cell.replace("\n", " ") for cell in cells)])
        return out.getvalue()

    def to_html(self) -> str:
        """Tables with header scopes and a caption; groups have rows of their own, best values of a column are bold."""
        caption = f"{self.title}. {self.caption}"
        blocks = self._blocks()
        parts = []
        for number, columns in enumerate(blocks):
            parts.append(self._html_block(columns, caption if number == 0 else f"{self.title}, continued."))
        return "\n".join(parts)

    def _html_block(self, columns: range, caption: str) -> str:
        names = ["Method", *(self.columns[column] for column in columns)]
        head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
        body, left = [], 'style="text-align:left"'
        for number, ((_, name), cells) in enumerate(zip(self.rows, self.cells, strict=True)):
            if group := self._group(number):
                heading = f'<th scope="rowgroup" colspan="{len(names)}" {left}>{html.escape(group)}</th>'
                body.append(f'<tr class="group">{heading}</tr>')
            line = f'<th scope="row" {left}>{html.escape(name)}</th>'
            for column in columns:
                text = _html_lines(cells[column])
                line += f"<td>{f'<strong>{text}</strong>' if (number, column) in self.best else text}</td>"
            body.append(f"<tr>{line}</tr>")
        return (
            f'<table class="results"><caption>{html.escape(caption)}</caption><thead><tr>{head}</tr></thead>\n<tbody>'
            + "\n".join(body)
            + "</tbody></table>"
        )

    def _group(self, number: int) -> str:
        """The group of a row; written once, on its first row."""
        return self.rows[number][0] if number == 0 or self.rows[number - 1][0] != self.rows[number][0] else ""

    def to_latex(self) -> str:
        """A booktabs table."""
        lines = [r"\begin{table}", rf"\caption{{{_tex(self.title)}. {_tex(self.caption)}}}"]
        if len(self.columns) > 4:  # else wider than a page
            lines.append(r"\footnotesize\setlength{\tabcolsep}{3pt}")
        for number, columns in enumerate(self._blocks()):
            if number:
                lines += ["", r"\medskip"]
            lines += self._latex_block(columns)
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def _latex_block(self, columns: range) -> list[str]:
        lines = [
            r"\begin{tabular}{ll" + "l" * len(columns) + "}",
            r"\toprule",
            " & ".join(["Data", "Method", *(_tex(self.columns[column]) for column in columns)]) + r" \\",
            r"\midrule",
        ]
        for number, ((_, name), cells) in enumerate(zip(self.rows, self.cells, strict=True)):
            written = [_tex_lines(cells[column], bold=(number, column) in self.best) for column in columns]
            lines.append(" & ".join([_tex(self._group(number)), _tex(name), *written]) + r" \\")
        return [*lines, r"\bottomrule", r"\end{tabular}"]

    def write(self, folder: str | Path, name: str) -> list[Path]:
        """<name>.html, <name>.tex and <name>.csv in ``folder``; returns their paths."""
        paths = []
        for ending, text in (("html", self.to_html()), ("tex", self.to_latex()), ("csv", self.to_csv())):
            paths.append(Path(folder) / f"{name}.{ending}")
            write_text(paths[-1], text)
        return paths

    def _repr_html_(self) -> str:
        return self.to_html()


# One pass over the text: an escape that contains braces or backslashes is not escaped again.
_TEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        **{mark: "\\" + mark for mark in "&%#_$"},
        "±": r"$\pm$",
    }
)


def _tex(text: str) -> str:
    return text.translate(_TEX)


def _tex_lines(cell: str, *, bold: bool) -> str:
    lines = [
        rf"\textbf{{{_tex(line)}}}" if bold and number == 0 else _tex(line)
        for number, line in enumerate(cell.split("\n"))
    ]
    return lines[0] if len(lines) == 1 else r"\shortstack[l]{" + r" \\ ".join(lines) + "}"


def _html_lines(cell: str) -> str:
    first, *rest = (html.escape(line) for line in cell.split("\n"))
    return first + "".join(f"<br><small>{line}</small>" for line in rest)


def score(predictions: pd.DataFrame, *, draws: int = 300) -> Score:
    """Mean and sd of the per-fold C with a bootstrap interval over patients (of the within-fold C)."""
    mean, spread = mean_concordance(predictions)
    interval = bootstrap(predictions, draws=draws)
    return Score(mean, spread, interval.low, interval.high)


def provenance_text(provenance: Mapping[str, Any] | None) -> str:
    """'cancer LIHC, profile smoke, source synthetic, seed 0, commit 1a2b3c4' from a run's provenance.

    A run that does not name its commit is given the checkout's, because the code that draws the table is the code that
    a reader has to look at.
    """
    if not provenance:
        return "provenance unknown"
    keys = ("cancer", "profile", "source", "seed", "seeds", "repeats", "protocol", "commit", "version", "date")
    known = {"commit": source_commit(), **{key: value for key, value in provenance.items() if value is not None}}
    parts = []
    for key in keys:
        value = known.get(key)
        if isinstance(value, list | tuple):
            value = " ".join(map(str, value))
        if value is not None:
            parts.append(f"{key} {value}")
    return ", ".join(parts)


def source_commit() -> str | None:
    """First ten digits of the checkout's commit, read from .git without git; None outside a checkout."""
    git = Path(__file__).resolve().parents[2] / ".git"
    try:
        if git.is_file():  # a work tree points to its folder
            git = (git.parent / git.read_text().split(":", 1)[1].strip()).resolve()
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head[:10]
        name = head.removeprefix("ref: ")
        common = git / "commondir"
        folders = [git] + ([(git / common.read_text().strip()).resolve()] if common.exists() else [])
        for folder in folders:
            if (folder / name).exists():
                return (folder / name).read_text().strip()[:10]
            packed = folder / "packed-refs"
            for line in packed.read_text().splitlines() if packed.exists() else []:
                if line.endswith(f" {name}"):
                    return line[:10]
    except (OSError, IndexError):
        pass
    return None


_PAPERS_ROW = "What the paper measured as HC-MAE stands beside the variant."
_BOLD = "Bold: the first of a column."


def table2(
    ours: Mapping[str, Mapping[str, Score]],
    *,
    cancers: tuple[str, ...] = CANCERS,
    provenance: Mapping[str, Any] | None = None,
    interval: bool = False,
    note: str = "",
    variant: str = "",
) -> ResultTable:
    """Table II: methods by cancers; ``ours`` maps method name -> cancer -> Score.

    ``variant`` says which HC-MAE is ours; its row is then called a variant.
    Each cancer has two columns, the paper's value and ours; with ``interval`` each takes two lines. A method or cancer
    that has not been run says so.
    """
    columns = [f"{cancer} {who}" for cancer in cancers for who in ("paper", "ours")]
    rows, cells, values = [], [], []
    for label, key, group in TABLE2_ROWS:
        rows.append((group, _variant_label(key, label, variant)))
        line, numbers = [], []
        for cancer in cancers:
            paper = PAPER_TABLE2.get(label, {}).get(cancer)
            own = ours.get(key, {}).get(cancer)
            mine = own.text(interval=interval, between="\n") if own else NOT_RUN
            theirs = paper.text() if paper else ""
            # Six columns fit a page when none is wider than it must be.
            line += [theirs.replace(" ±", "\n±") if interval else theirs, mine]
            numbers += [paper.mean if paper else None, own.mean if own else None]
        cells.append(line)
        values.append(numbers)
    caption = (
        "C-index, mean ± sd over folds"
        + ("; ours with a 95 % bootstrap interval over patients" if interval else "")
        + ". Paper: published values on real TCGA. Ours: "
        # Columns of several cancers say them; the run that they were shown in is one of them.
        + provenance_text({k: v for k, v in (provenance or {}).items() if k != "cancer" or len(cancers) == 1})
        + ". "
        + "".join(f"{text} " for text in (variant, _PAPERS_ROW if variant else "", note, _BOLD) if text)
        + "A synthetic cohort cannot confirm or refute a published value."
    )
    return ResultTable("Table II, comparison of methods", columns, rows, cells, caption, _best(values))


def table3(
    ours: Mapping[str, Score],
    *,
    provenance: Mapping[str, Any] | None = None,
    interval: bool = True,
    variant: str = "",
) -> ResultTable:
    """Table III: the ablation; ``ours`` maps method name -> Score, ``variant`` says which HC-MAE is ours."""
    rows, cells, values = [], [], []
    for label, key, group in TABLE3_ROWS:
        own, paper = ours.get(key), PAPER_TABLE3.get(label)
        rows.append((group, _variant_label(key, label, variant)))
        cells.append([paper.text() if paper else "", own.text(interval=interval) if own else NOT_RUN])
        values.append([paper.mean if paper else None, own.mean if own else None])
    caption = (
        "C-index, mean ± sd over folds; ours with a 95 % bootstrap interval over patients. Paper: real LIHC. Ours: "
        + provenance_text(provenance)
        + "."
        + "".join(f" {text}" for text in (variant, _PAPERS_ROW if variant else "", _BOLD) if text)
    )
    return ResultTable("Table III, ablation", ["paper", "ours"], rows, cells, caption, _best(values))


def features_table(
    ours: Mapping[str, Mapping[str, Score]],
    encoder: str,
    *,
    provenance: Mapping[str, Any] | None = None,
    interval: bool = False,
) -> ResultTable:
    """Methods on features without pixels by cancers, each row that rests on the encoder under its name.

    ``ours`` maps method name -> cancer -> Score; a method without a score is no row. The caption says in what the rows
    differ from those of Table II, whose names they bear; there is no value of the paper to stand beside them.
    """
    kept = [(label.format(encoder), key, group) for label, key, group in FEATURE_ROWS if ours.get(key)]
    cancers = list(dict.fromkeys(cancer for _, key, _ in kept for cancer in ours[key]))
    cells, values = [], []
    for _, key, _ in kept:
        own = [ours[key].get(cancer) for cancer in cancers]
        cells.append([item.text(interval=interval, between="\n") if item else NOT_RUN for item in own])
        values.append([item.mean if item else None for item in own])
    caption = (
        f"C-index, mean ± sd over folds. Patch vectors are features of {encoder}, and there are no pixels: a region's "
        "vector is a token that attends over its patch vectors and their places, trained by hiding patch vectors; "
        "HC-MAE's keys are these vectors instead of thumbnails; regions are squares of patches, of which some may not "
        f"be there. {provenance_text(provenance)}."
    )
    rows = [(group, label) for label, _, group in kept]
    return ResultTable(f"Methods on features of {encoder}", cancers, rows, cells, caption, _best(values))


def _variant_label(key: str, label: str, variant: str) -> str:
    return f"{label}, this book's variant" if key == "hcmae" and variant else label


def difference_frame(rows: pd.DataFrame, labels: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Paired differences (``compare.compare``) as a reader's table: printed names, both intervals as text."""
    names = labels or {}
    return pd.DataFrame(
        {
            "first": [names.get(name, name) for name in rows["first"]],
            "minus": [names.get(name, name) for name in rows["second"]],
            "difference": rows["difference"].to_numpy(),
            "95 %, other test patients": _intervals(rows["low"], rows["high"]),
            "95 %, other training sets": _intervals(rows["nb_low"], rows["nb_high"]),
            "p": rows["p"].to_numpy(),
            "p, Holm": rows["p_holm"].to_numpy(),
        }
    )


def _intervals(low: pd.Series, high: pd.Series) -> list[str]:
    return [f"{a:+.3f} to {b:+.3f}" for a, b in zip(low, high, strict=True)]


def figure2_table(ours: Mapping[str, Any], *, provenance: Mapping[str, Any] | None = None) -> ResultTable:
    """The p-values of Fig. 2, naive and of the whole procedure permuted; ``ours`` maps method name -> RiskGroups."""
    rows, cells = [], []
    for label, key, group in TABLE2_ROWS:
        published = PAPER_FIGURE2.get(label)
        groups = ours.get(key)
        if published is None and groups is None:
            continue
        rows.append((group, label))
        cells.append(
            [
                f"{published:.2g}" if published is not None else "",
                f"{groups.log_rank_p:.2g}" if groups else NOT_RUN,
                groups.permutation.text() if groups and groups.permutation else "",
                groups.ratio_text() if groups else "",
            ]
        )
    caption = (
        "Log-rank p of low against high predicted risk. Paper: BRCA, naive too. "
        f"Ours: {provenance_text(provenance)}. "
        f"{NAIVE[0].upper()}{NAIVE[1:]}. Permuted: folds, choice of features, training and groups made again for each "
        "permutation of the outcomes; empty where that was not paid for."
    )
    columns = ["p, paper (naive)", "p, ours (naive)", "ours, permuted", "hazard ratio, ours (naive 95 %)"]
    return ResultTable("Fig. 2, Kaplan-Meier", columns, rows, cells, caption)


def _best(values: list[list[float | None]]) -> set[tuple[int, int]]:
    out = set()
    for column in range(len(values[0]) if values else 0):
        known = [(row[column], number) for number, row in enumerate(values) if row[column] is not None]
        if known:
            out.add((max(known)[1], column))
    return out
