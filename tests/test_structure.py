"""The house rules that can be read from the source: who imports whom, how long things are, where tests stand.

The order of the packages is in pyproject.toml ([tool.importlinter]), run by `make check`; here is what it cannot say.
"""

from __future__ import annotations

import ast
import functools
import gc
import sys
from collections.abc import Iterator
from pathlib import Path

from hcmae import plots

REPO = Path(__file__).resolve().parent.parent
LIBRARY = ("hcmae", "hcmae_core", "book")

# safetensors is a requirement of timm; published weights come in its files.
CORE_MAY_IMPORT = {"hcmae_core", "torch", "timm", "safetensors"}
CORE_LINES = 3500
MODULE_LINES = 600
FUNCTION_LINES = 100
# Functions that may be longer, with the reason.
LONG_FUNCTIONS = {
    "hcmae.omics.forest._grow_tree": "one compiled kernel: numba inlines nothing across it without a cost per split",
}
# Private names of other packages that one of our modules happens to share.
FOREIGN = {"_version"}  # torch counts what is written into a tensor
# Tests of the project as a whole rather than of one module.
WHOLE_PROJECT = {"structure", "environment", "readme", "fidelity"}


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(REPO).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def below(folder: str) -> dict[str, ast.Module]:
    """Syntax tree of every module below a folder, by dotted name."""
    gc.disable()  # half of the time goes into looking for garbage among nodes that all stay
    try:
        files = sorted((REPO / folder).rglob("*.py"))
        return {module_name(path): ast.parse(path.read_text(encoding="utf-8"), str(path)) for path in files}
    finally:
        gc.enable()


@functools.cache
def sources(*folders: str) -> dict[str, ast.Module]:
    """Syntax tree of every module below these folders, by dotted name."""
    return {name: tree for folder in folders for name, tree in below(folder).items()}


def imported(tree: ast.Module, known: frozenset[str] = frozenset()) -> Iterator[tuple[str, str | None]]:
    """(module, name taken from it or None) of every import, those inside functions and TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, None
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole, None) if whole in known else (node.module or "", alias.name)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def private_names(tree: ast.Module) -> set[str]:
    """Names with one leading underscore that a module defines or sets on an object."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            found.add(node.attr)
    return {name for name in found if is_private(name)}


def trespasses(trees: dict[str, ast.Module]) -> set[str]:
    """Where a module imports another module's private name, or reaches for one through an object or a module."""
    own = {name: private_names(tree) for name, tree in trees.items()}
    everybodys = set().union(*own.values())
    found = set()
    for name, tree in trees.items():
        for source, taken in imported(tree):
            if taken is not None and is_private(taken) and source.split(".")[0] in {key.split(".")[0] for key in trees}:
                found.add(f"{name} imports {source}.{taken}")
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute) or not is_private(node.attr) or node.attr in own[name] | FOREIGN:
                continue
            # A class may use what its base class keeps for its family; sys._getframe and the like are nobody's here.
            if ast.unparse(node.value) not in ("self", "cls", "super()") and node.attr in everybodys:
                found.add(f"{name} reaches for {ast.unparse(node)}")
    return found


def circles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of modules that import each other, directly or by way of others."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in edges.get(waiting.pop(), set()) - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    beyond = {name: reached(name) for name in edges}
    groups = [{other for other in beyond[name] if name in beyond.get(other, set())} for name in edges]
    return [set(group) for group in {frozenset(group) for group in groups if group}]


def import_edges(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    known = frozenset(trees)
    return {
        name: {source for source, _ in imported(tree, known) if source in known and source != name}
        for name, tree in trees.items()
    }


def test_core_imports_torch_timm_and_itself() -> None:
    allowed = CORE_MAY_IMPORT | set(sys.stdlib_module_names)
    strangers = {
        f"{name}: {source}"
        for name, tree in sources("hcmae_core").items()
        for source, _ in imported(tree)
        if source.split(".")[0] not in allowed
    }
    assert not strangers


def test_library_imports_neither_tests_nor_benchmarks() -> None:
    wrong = {
        f"{name}: {source}"
        for name, tree in sources(*LIBRARY).items()
        for source, _ in imported(tree)
        if source.split(".")[0] in ("tests", "benchmarks")
    }
    assert not wrong


def test_tests_and_benchmarks_share_through_support_only() -> None:
    wrong = {
        f"{name}: {source}"
        for name, tree in sources("tests", "benchmarks").items()
        for source, _ in imported(tree, frozenset(sources("tests", "benchmarks")))
        if source.split(".")[0] in ("tests", "benchmarks") and not source.startswith("tests.support")
        # A benchmark may use another one's parts, and its own test looks at it.
        if source.split(".")[0] != name.split(".")[0] and not name.startswith("tests.benchmarks.")
    }
    assert not wrong


def test_no_module_uses_anothers_private_names() -> None:
    assert not trespasses(sources(*LIBRARY))


def test_trespasses_are_found() -> None:
    trees = {
        "hcmae.a": ast.parse("def _f(): pass\nclass A:\n    def __init__(self):\n        self._x = 1\n"),
        "hcmae.b": ast.parse("from hcmae.a import A, _f\nimport hcmae.a as m\nm._f()\nA()._x\nself._x\nsys._y()\n"),
    }
    assert trespasses(trees) == {
        "hcmae.b imports hcmae.a._f",
        "hcmae.b reaches for m._f",
        "hcmae.b reaches for A()._x",
    }


def test_no_circle_of_imports_type_checking_included() -> None:
    assert not circles(import_edges(sources("hcmae", "hcmae_core")))


def test_circles_are_found_behind_type_checking_and_inside_functions() -> None:
    trees = {
        "p.a": ast.parse("def f():\n    from p import b\n"),
        "p.b": ast.parse("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from p.a import f\n"),
        "p.c": ast.parse("import p.a\n"),
    }
    assert circles(import_edges(trees)) == [{"p.a", "p.b"}]


def test_core_can_be_read_in_an_evening() -> None:
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in (REPO / "hcmae_core").rglob("*.py"))
    assert lines <= CORE_LINES


def test_no_module_is_too_long() -> None:
    long = {
        module_name(path): count
        for folder in LIBRARY
        for path in (REPO / folder).rglob("*.py")
        if (count := len(path.read_text(encoding="utf-8").splitlines())) > MODULE_LINES
    }
    assert not long


def test_no_function_is_too_long_but_those_with_a_reason() -> None:
    long = {
        f"{name}.{node.name}"
        for name, tree in sources(*LIBRARY).items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        if (node.end_lineno or 0) - node.lineno + 1 > FUNCTION_LINES
    }
    assert long == set(LONG_FUNCTIONS)


def test_every_figure_is_named_plot() -> None:
    found = {name for name in plots.__all__ if name != "style"}
    assert all(name.startswith("plot_") for name in found)
    public = {
        node.name
        for name, tree in sources("hcmae/plots").items()
        if name != "hcmae.plots.style"
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
    }
    assert public == found, "every public function of hcmae/plots is a figure, and is listed in hcmae.plots"


def test_tests_mirror_the_tree() -> None:
    """Each package has its folder of tests and each test at the top its module."""
    packages = {path.parent.name for path in (REPO / "hcmae").glob("*/__init__.py")}
    folders = {path.parent.name for path in (REPO / "tests").glob("*/test_*.py")}
    assert folders == packages | {"core", "book", "benchmarks"}
    modules = {path.stem for path in (REPO / "hcmae").glob("*.py")}
    at_the_top = {path.stem.removeprefix("test_") for path in (REPO / "tests").glob("test_*.py")}
    assert at_the_top <= modules | WHOLE_PROJECT
