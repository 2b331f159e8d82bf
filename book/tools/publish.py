"""An executed notebook becomes a page of the book: the same run gives the same bytes, and a failed run gives none.

``python -m book.tools.publish runs/smoke/LIHC/notebooks/03.ipynb book/executed/03_slides.ipynb`` writes the page and,
beside it, ``03_slides.status.json`` with the time, machine and packages of the run (these may differ between runs) and,
where the lesson kept a results file of its own name (``results/slides.json``), ``03_slides.results.json``.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from hcmae.files import read_json, write_json, write_text

PACKAGES = (
    "hcmae-core",
    "h5py",
    "lifelines",
    "matplotlib",
    "mudata",
    "numba",
    "numpy",
    "opencv-python-headless",
    "openslide-python",
    "pandas",
    "pydeseq2",
    "scikit-learn",
    "scikit-survival",
    "scipy",
    "tifffile",
    "timm",
    "torch",
)
_CELL_METADATA = ("tags", "mystnb", "slideshow", "render", "editable")
_WIDGET = "application/vnd.jupyter.widget-view+json"
_PROGRESS = re.compile(r"\d+%\||\d+(\.\d+)?\s*(it|s)/(s|it)|\b\w+/s\]|\[\d+:\d\d<")
# What a stage says of itself: seconds and "up to date" depend on what ran before, not on the notebook.
_STAGE = re.compile(r"^\w+: (done in [\d.]+ s|up to date, skipped( \(\w+\))?|again, because .*)$")
_MACHINE_PATH = re.compile(r"(?<![\w.])/(?:[^\s:'\"/]+/)+(?=site-packages/|hcmae_core/|hcmae/|notebooks/)")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
# pandas gives each styled table a random name; without the class the theme takes it for something without a dark side.
_STYLER = re.compile(r"\bT_[0-9a-f]{5,}(?=\b|_)")
_STYLED_TABLE = re.compile(r'<table id="(T_\w+)"(?: class="([^"]*)")?')
_SVG_DATE = re.compile(r"\s*<dc:date>.*?</dc:date>", re.DOTALL)


class PublishError(ValueError):
    """A notebook that must not become a page; the message names the file, the cell and the cure."""


def publish(source: str | Path, target: str | Path) -> Path:
    """Write the executed notebook ``source`` as the page ``target`` and its run status beside it; return ``target``.

    Raises PublishError when the source is missing, is not a notebook, was never run, or holds a failed cell.
    """
    source, target = Path(source), Path(target)
    notebook = _read(source)
    status = run_status(notebook, target.stem)
    write_text(target, json.dumps(normalise(notebook, source), indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    write_json(target.with_suffix(".status.json"), status)
    # The run's folder has notebooks/ and results/ beside each other; pages quote the numbers of the run that they show.
    kept = source.parent.parent / "results" / f"{target.stem.partition('_')[2]}.json"
    if kept.exists():
        write_json(target.with_suffix(".results.json"), read_json(kept))
    else:
        target.with_suffix(".results.json").unlink(missing_ok=True)
    return target


def normalise(notebook: dict[str, Any], name: str | Path = "notebook") -> dict[str, Any]:
    """Return a copy without anything that differs between two equal runs or that a reader must not see.

    Dropped: papermill, execution and widget metadata, interpreter version, progress bars, how long a stage took,
    memory addresses, folders of the machine, dates in SVG. Cell ids are numbered. The injected parameters are tagged
    ``remove-cell``. Links to ``../book/`` are turned to where the page lives. Raises PublishError on a cell that failed
    or never ran.
    """
    kernel = notebook.get("metadata", {}).get("kernelspec", {})
    cells = []
    ran = any(cell.get("execution_count") for cell in notebook["cells"] if cell["cell_type"] == "code")
    for number, cell in enumerate(notebook["cells"]):
        tags = list(cell.get("metadata", {}).get("tags", []))
        kept = {key: value for key, value in cell.get("metadata", {}).items() if key in _CELL_METADATA}
        if "injected-parameters" in tags and "remove-cell" not in tags:
            tags.append("remove-cell")
        if tags:
            kept["tags"] = tags
        clean = {"cell_type": cell["cell_type"], "id": f"cell-{number:03d}", "metadata": kept}
        text = _joined(cell["source"])
        if cell["cell_type"] == "markdown":
            clean["source"] = text.replace("](../book/", "](../").replace('src="../book/', 'src="../')
            if cell.get("attachments"):
                clean["attachments"] = cell["attachments"]
        elif cell["cell_type"] == "code":
            clean["source"] = text
            clean["execution_count"] = cell.get("execution_count")
            clean["outputs"] = [
                done
                for place, output in enumerate(cell["outputs"])
                if (done := _output(output, name, number, place)) is not None
            ]
        else:
            clean["source"] = text
        cells.append(clean)
    if not ran:
        raise PublishError(f"{name}: no cell was ever run; execute it with papermill first")
    return {
        "cells": cells,
        "metadata": {
            "kernelspec": {
                "display_name": "Python 3",
                "language": "python",
                "name": kernel.get("name", "python3"),
            },
            "language_info": {"name": "python", "file_extension": ".py", "pygments_lexer": "ipython3"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def run_status(notebook: dict[str, Any], name: str) -> dict[str, Any]:
    """Time, parameters, machine and package versions of a run, for the status page.

    Seconds are papermill's, or None for a notebook that something else executed.
    """
    run = notebook.get("metadata", {}).get("papermill", {})
    parameters = run.get("parameters", {}) or {}
    seconds = run.get("duration")
    return {
        "notebook": name,
        "cancer": parameters.get("cancer"),
        "profile": parameters.get("profile"),
        "source": parameters.get("source"),
        "seed": parameters.get("seed"),
        "seconds": None if seconds is None else round(float(seconds), 1),
        "finished": run.get("end_time"),
        "machine": machine(),
        "packages": {package: version for package in PACKAGES if (version := _version(package))},
    }


def machine() -> dict[str, Any]:
    """Processor, cores, memory, graphics processors and Python of this machine, in words."""
    cpu = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    found: dict[str, Any] = {"processor": cpu, "cores": os.cpu_count(), "python": platform.python_version()}
    try:
        import psutil

        found["memory_GiB"] = round(psutil.virtual_memory().total / 2**30, 1)
    except ImportError:
        pass
    found["graphics"] = _gpus() or "none"
    return found


def _gpus() -> str:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return ""
    try:
        answer = subprocess.run(
            [tool, "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return ", ".join(answer.stdout.split("\n")).strip(", ") if answer.returncode == 0 else ""


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise PublishError(f"{path}: no such notebook; run it with papermill first")
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise PublishError(f"{path}: not a notebook ({error}); run it again") from None
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise PublishError(f"{path}: not a notebook (no list of cells); run it again")
    return notebook


def _joined(text: str | list[str]) -> str:
    return text if isinstance(text, str) else "".join(text)


def _output(output: dict[str, Any], name: str | Path, number: int, place: int) -> dict[str, Any] | None:
    kind = output["output_type"]
    if kind == "error":
        raise PublishError(
            f"{name}: cell {number} failed with {output.get('ename')}: {output.get('evalue')}; repair it and run again"
        )
    if kind == "stream":
        text = _joined(output["text"])
        text = _without_progress(text) if output["name"] == "stderr" else _without_stages(text)
        text = _MACHINE_PATH.sub("…/", _ADDRESS.sub("0x…", text))
        return {"output_type": kind, "name": output["name"], "text": text} if text else None
    data = dict(output.get("data", {}))
    if _WIDGET in data:
        return None
    for mime, value in data.items():
        if mime == "image/svg+xml":
            data[mime] = _SVG_DATE.sub("", _joined(value))
        elif mime == "text/html":
            data[mime] = _named_tables(_ADDRESS.sub("0x…", _joined(value)), f"T_cell{number:03d}_{place}")
        elif mime.startswith("text/"):
            data[mime] = _ADDRESS.sub("0x…", _joined(value))
        elif mime.startswith("image/"):
            # The final newline of base64 differs between front ends.
            data[mime] = _joined(value).strip() + "\n"
    clean = {"output_type": kind, "data": data, "metadata": output.get("metadata", {})}
    if kind == "execute_result":
        clean["execution_count"] = output.get("execution_count")
    return clean


def _named_tables(text: str, stem: str) -> str:
    names = {name: f"{stem}_{position}" for position, name in enumerate(dict.fromkeys(_STYLER.findall(text)))}
    text = _STYLER.sub(lambda match: names[match.group()], text)
    return _STYLED_TABLE.sub(
        lambda match: f'<table id="{match[1]}" class="{" ".join(["dataframe", *(match[2] or "").split()])}"', text
    )


def _without_progress(text: str) -> str:
    lines = re.split(r"[\r\n]+", text)
    kept = [line for line in lines if line.strip() and not _PROGRESS.search(line)]
    return "\n".join(kept) + "\n" if kept else ""


def _without_stages(text: str) -> str:
    lines = text.splitlines(keepends=True)
    return "".join(line for line in lines if not _STAGE.match(line.strip()))


def pair(folder: str | Path) -> list[Path]:
    """Write the .ipynb beside every percent-format .py of ``folder``; returns those that changed.

    Both carry the same cells and no outputs. Raises PublishError for a folder without notebooks.
    """
    sources = sorted(Path(folder).glob("[0-9][0-9]_*.py"))
    if not sources:
        raise PublishError(f"{folder}: no NN_name.py here; name the folder that holds the notebooks")
    changed = []
    for source in sources:
        text = paired_text(source.read_text(encoding="utf-8"))
        target = source.with_suffix(".ipynb")
        if not target.exists() or target.read_text(encoding="utf-8") != text:
            write_text(target, text)
            changed.append(target)
    return changed


def paired_text(source: str) -> str:
    """The .ipynb (JSON text) of a percent-format script: numbered cell ids, no outputs, the script's own metadata."""
    import jupytext

    notebook = jupytext.reads(source, fmt="py:percent")
    notebook.metadata.setdefault("kernelspec", {"display_name": "Python 3", "language": "python", "name": "python3"})
    # Which jupytext wrote the script is not a property of the notebook.
    jupytext_metadata = dict(notebook.metadata.get("jupytext", {}))
    jupytext_metadata.pop("text_representation", None)
    jupytext_metadata.setdefault("formats", "ipynb,py:percent")
    notebook.metadata["jupytext"] = jupytext_metadata
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number:03d}"
    return json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n"


def main(arguments: list[str] | None = None) -> int:
    """Command line: ``SRC DST``, or ``pair FOLDER``. Returns 0, or 1 with the reason on stderr."""
    words = sys.argv[1:] if arguments is None else arguments
    if len(words) != 2:
        print("usage: python -m book.tools.publish EXECUTED.ipynb book/executed/NN_name.ipynb", file=sys.stderr)
        print("   or: python -m book.tools.publish pair notebooks", file=sys.stderr)
        return 2
    try:
        if words[0] == "pair":
            for path in pair(words[1]):
                print(path)
        else:
            publish(words[0], words[1])
    except PublishError as error:
        print(f"publish: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
