"""One answer to "is it done already?": a key of all that a kept result depends on.

A result is kept under the settings that made it, the content of what it was made from and the code that made it.
Stages, stores, vectors, omics selections, checkpoints and predictions carry such a key, so that they cannot disagree.
"""

from __future__ import annotations

import ast
import functools
import gc
import hashlib
import importlib
import importlib.machinery
import importlib.util
import json
import linecache
import sys
import sysconfig
import time
import types
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from hcmae.config import Profile

LENGTH = 20
_STARTED_NS = time.time_ns()
# Packages whose source is followed wherever it is installed; __main__ is a notebook or a script.
OURS = ("hcmae", "hcmae_core", "__main__")
# Settings that change how fast something is done, or how it is called, and never what comes out. No key holds them.
NEUTRAL = (
    "name",
    # Acts through what is read: the stores of the pool are inputs.
    "pool",
    *(f"compute.{name}" for name in ("workers", "compile", "decoders", "memory_gib")),
    "survival.micro_batch",
)


@dataclass(frozen=True)
class Key:
    """What one kept result depends on, by kind; ``digest`` is the key itself.

    settings: name -> value. inputs: what was read -> hash of its content. code: module or function -> hash of its
    source. All three are kept beside the result, so that a stale one can say what has changed.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    code: Mapping[str, str] = field(default_factory=dict)

    @functools.cached_property
    def digest(self) -> str:
        text = json.dumps(
            [self.name, self.settings, self.inputs, self.code], sort_keys=True, default=str, ensure_ascii=False
        )
        return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]

    def record(self) -> dict[str, Any]:
        """The parts as plain JSON, to be kept beside the result."""
        plain = {"settings": self.settings, "inputs": self.inputs, "code": self.code}
        return json.loads(json.dumps({"key": self.digest, **plain}, default=str))

    def changes(self, kept: Mapping[str, Any]) -> list[str]:
        """What differs from a kept ``record``, one line each; empty where nothing does."""
        now, lines = self.record(), []
        if kept.get("key") == now["key"]:
            return []
        for kind, word in (("settings", "setting"), ("inputs", "input"), ("code", "code")):
            before, after = kept.get(kind, {}), now[kind]
            for name in sorted({*before, *after}):
                if before.get(name) != after.get(name):
                    lines.append(_change(word, name, before, after, values=kind == "settings"))
        return lines or ["made in another way than now"]


def _change(word: str, name: str, before: Mapping[str, Any], after: Mapping[str, Any], *, values: bool) -> str:
    if name not in before:
        return f"{word} {name}: new"
    if name not in after:
        return f"{word} {name}: gone"
    return f"{word} {name}: {before[name]} -> {after[name]}" if values else f"{word} {name}: changed"


@dataclass(frozen=True)
class Reads:
    """What a piece of work reads beside its inputs: settings of the profile by dotted name, source by module name.

    ``hcmae.slides.*`` stands for all modules of a package. A test follows the work and fails where it reads a setting
    or runs a module that is not declared.
    """

    settings: tuple[str, ...] = ()
    code: tuple[str, ...] = ()

    def key(
        self,
        name: str,
        profile: Profile,
        inputs: Mapping[str, str] | None = None,
        *,
        code: Mapping[str, str] | None = None,
        **facts: Any,
    ) -> Key:
        """The key of this work under a profile; ``facts`` are settings from elsewhere (seed, variant), ``code`` more
        source.
        """
        return Key(
            name,
            {**pick(profile, self.settings), **facts},
            dict(inputs or {}),
            {**source_of(self.code), **(code or {})},
        )


def whole_library(name: str, profile: Profile, inputs: Mapping[str, str], **facts: Any) -> Key:
    """The key of work that was asked for outside the road: every setting of the profile, the source of both packages.

    Settings that change only how fast something is done are left out.
    """
    reads = Reads((*Profile.model_fields, *(f"-{setting}" for setting in NEUTRAL)), ("hcmae.*", "hcmae_core.*"))
    return reads.key(name, profile, inputs, **facts)


def derived(key: str, reads: str | None, held: Mapping[str, str]) -> str:
    """Key of vectors that were made from other vectors of the same store: the content of those is part of it.

    reads: name of the other vectors (None: there are none); held: name -> content of what the store holds.
    """
    return key if reads is None else f"{key}-{held.get(reads, 'none')[:8]}"


def pick(profile: Profile, names: Iterable[str]) -> dict[str, Any]:
    """Settings by dotted name, sections spelt out to their last field; a leading minus takes one out again.

    Raises AttributeError for an unknown name.
    """
    found: dict[str, Any] = {}
    for name in names:
        if name.startswith("-"):
            found = {key: value for key, value in found.items() if not f"{key}.".startswith(f"{name[1:]}.")}
            continue
        value: Any = profile
        for part in name.split("."):
            value = getattr(value, part)
        plain = value.model_dump(mode="json") if hasattr(value, "model_dump") else json.loads(json.dumps(value))
        found.update(_flat(name, plain))
    return found


def _flat(prefix: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, item in value.items():
        found.update(_flat(f"{prefix}.{key}", item))
    return found


# --- code: modules ----------------------------------------------------------------------------------------------------


def source_of(modules: Iterable[str]) -> dict[str, str]:
    """Hash of the source of each module, comments and docstrings left out; ``package.*`` means all below a package.

    Raises ModuleNotFoundError for a module that does not exist.
    """
    found: dict[str, str] = {}
    for name in modules:
        if name.endswith(".*"):
            package = _file_of(name[:-2]).parent
            for path in sorted(package.rglob("*.py")):
                dotted = ".".join([name[:-2], *path.relative_to(package).with_suffix("").parts])
                found[dotted.removesuffix(".__init__")] = _module_source(dotted.removesuffix(".__init__"), path)
        else:
            found[name] = _module_source(name, _file_of(name))
    return found


def _module_source(name: str, path: Path) -> str:
    """Hash of a module's file; marked where the file is younger than this process, which then runs older code."""
    changed = path.stat().st_mtime_ns
    source = _file_source(path, changed)
    if changed > _STARTED_NS and name in sys.modules:
        warnings.warn(
            f"{path.name} was changed after this session began: what it runs is the older code, so results are kept "
            "as made by neither; restart to use the new one",
            stacklevel=2,
        )
        return f"{source}+older"
    return source


@functools.cache
def _file_of(module: str) -> Path:
    """The file of a module, found without importing the packages it lies in: a key must not cost an import of torch."""
    where: Sequence[str] | None = None
    parts, origin = module.split("."), None
    for number in range(len(parts)):
        dotted = ".".join(parts[: number + 1])
        spec = importlib.machinery.PathFinder.find_spec(dotted, where)
        if spec is None and number == 0:  # a package that is installed in another way than on the path
            spec = importlib.util.find_spec(dotted)
        if spec is None:
            break
        where, origin = spec.submodule_search_locations or [], spec.origin
    else:
        if origin is not None:
            return Path(origin)
    raise ModuleNotFoundError(f"no module {module}: what does this step run?")


@functools.cache
def _file_source(path: Path, mtime_ns: int) -> str:
    return _tree_hash(ast.parse(path.read_text(encoding="utf-8")))


def _tree_hash(tree: ast.AST) -> str:
    # Half a million small lists: the collector would go through all that torch has loaded, time and again, for nothing.
    collecting = gc.isenabled()
    gc.disable()
    try:
        return hashlib.sha256(json.dumps(_plain_tree(tree)).encode()).hexdigest()[:LENGTH]
    finally:
        if collecting:
            gc.enable()


def _plain_tree(node: Any) -> Any:
    """A syntax tree as lists, without docstrings and without what differs between versions of Python."""
    if isinstance(node, ast.AST):
        parts = [
            [name, _plain_tree(value)]
            for name, value in ast.iter_fields(node)
            if value is not None and value != [] and name not in ("kind", "type_comment", "ctx")
        ]
        return [type(node).__name__, parts]
    if isinstance(node, list):
        return [_plain_tree(item) for item in node if not _is_docstring(item)]
    return repr(node)


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


# --- code: functions and classes, those of a notebook too -----------------------------------------------------------


def code_of(*objects: Any) -> str:
    """Hash of the source of functions, classes and all that they use, as far as it belongs to the project or the user.

    Follows the names that a function looks up and the values that it has closed over, through functions, classes,
    partials and data classes. Of installed packages only the name counts. So a network edited in a notebook, a helper
    that it calls and a constant that it reads change the hash; a comment or a docstring does not.
    """
    seen: dict[int, int] = {}
    parts = [_describe(item, seen) for item in objects]
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:LENGTH]


def _describe(item: Any, seen: dict[int, int]) -> Any:
    if item is None or isinstance(item, bool | int | float | complex | str | bytes):
        return repr(item)
    if id(item) in seen:
        return ["again", seen[id(item)]]
    if isinstance(item, list | tuple):
        return [type(item).__name__, [_describe(part, seen) for part in item]]
    if isinstance(item, set | frozenset):
        return ["set", sorted(json.dumps(_describe(part, seen), default=str) for part in item)]
    if isinstance(item, Mapping):
        return ["mapping", [[str(key), _describe(part, seen)] for key, part in item.items()]]
    seen[id(item)] = len(seen)
    if isinstance(item, types.ModuleType):
        return ["module", item.__name__]
    if hasattr(item, "dtype") and isinstance(getattr(item, "shape", None), tuple):
        return ["array", str(item.dtype), list(item.shape), _array_hash(item)]
    if isinstance(item, functools.partial):
        return ["partial", _describe([item.func, item.args, item.keywords], seen)]
    if isinstance(item, types.MethodType):
        return ["method", _describe(item.__func__, seen)]
    if hasattr(item, "py_func"):  # compiled by numba
        return ["compiled", _describe(item.py_func, seen)]
    if isinstance(item, types.FunctionType):
        return _describe_function(item, seen)
    if hasattr(item, "__wrapped__") and not isinstance(item, type):  # a cache
        return ["wrapped", _describe(item.__wrapped__, seen)]
    if isinstance(item, type):
        return _describe_class(item, seen)
    if is_dataclass(item):
        return [type(item).__qualname__, [[f.name, _describe(getattr(item, f.name), seen)] for f in fields(item)]]
    name = f"{type(item).__module__}.{type(item).__qualname__}"
    if _is_ours(type(item).__module__):
        return ["object", name, _describe(vars(item) if hasattr(item, "__dict__") else None, seen)]
    return ["object", name]


def _describe_function(function: types.FunctionType, seen: dict[int, int]) -> Any:
    if not _is_ours(function.__module__, function.__code__.co_filename):
        return ["external", f"{function.__module__}.{function.__qualname__}"]
    names = _names(function.__code__)
    used = [
        [name, _describe_used(function.__globals__[name], names, seen)]
        for name in names
        if name in function.__globals__
    ]
    used += [[name, _describe_used(value, names, seen)] for name, value in _imported_inside(function)]
    closed = [_describe(cell.cell_contents, seen) for cell in function.__closure__ or () if _filled(cell)]
    defaults = _describe([function.__defaults__, function.__kwdefaults__], seen)
    return ["function", _function_source(function), used, closed, defaults]


def _describe_used(item: Any, names: list[str], seen: dict[int, int]) -> Any:
    """A value that a function looks up; of a module of the project or the user, what the function takes from it."""
    if not isinstance(item, types.ModuleType) or not _is_ours(item.__name__):
        return _describe(item, seen)
    return ["module", item.__name__, [[n, _describe(getattr(item, n), seen)] for n in names if hasattr(item, n)]]


def _imported_inside(function: types.FunctionType) -> list[tuple[str, Any]]:
    """What a function imports in its own body, as far as it is the project's or the user's."""
    found: list[tuple[str, Any]] = []
    for node in _nodes_of(function):
        for part in ast.walk(node):
            if isinstance(part, ast.ImportFrom) and part.module and not part.level:
                module = _loaded(part.module)
                found += [(a.name, getattr(module, a.name)) for a in part.names if hasattr(module, a.name)]
            elif isinstance(part, ast.Import):
                modules = [(a.name, _loaded(a.name)) for a in part.names]
                found += [(name, module) for name, module in modules if module is not None]
    return sorted(found, key=lambda item: item[0])


def _loaded(name: str) -> types.ModuleType | None:
    """A module of the project or the user, imported if need be; None for any other."""
    if name.split(".")[0] in OURS or (name in sys.modules and _is_ours(name)):
        return importlib.import_module(name)
    if name not in sys.modules:
        try:
            spec = importlib.util.find_spec(name)
        except (ImportError, ValueError):
            return None
        if spec is not None and spec.origin is not None and not _installed(spec.origin):
            return importlib.import_module(name)
    return None


def _array_hash(item: Any) -> str:
    values = item.detach().cpu().numpy() if hasattr(item, "detach") else item
    return hashlib.sha256(values.tobytes()).hexdigest()[:LENGTH] if hasattr(values, "tobytes") else repr(values)


def _describe_class(kind: type, seen: dict[int, int]) -> Any:
    name = f"{kind.__module__}.{kind.__qualname__}"
    if not _is_ours(kind.__module__):
        return ["external", name]
    parts = []
    for attribute, value in sorted(vars(kind).items()):
        if attribute in ("__doc__", "__module__", "__dict__", "__weakref__", "__annotations__", "__firstlineno__"):
            continue
        if attribute.startswith("__") and not isinstance(value, types.FunctionType | staticmethod | classmethod):
            continue
        if isinstance(value, staticmethod | classmethod):
            value = value.__func__
        elif isinstance(value, property):
            value = value.fget
        elif isinstance(value, functools.cached_property):
            value = value.func
        parts.append([attribute, _describe(value, seen)])
    return ["class", kind.__qualname__, [_describe(base, seen) for base in kind.__bases__], parts]


def _filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _names(code: types.CodeType) -> list[str]:
    """Global names that a function looks up, those of functions inside it too, in a fixed order."""
    found = dict.fromkeys(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found.update(dict.fromkeys(_names(constant)))
    return sorted(found)


def _function_source(function: types.FunctionType) -> str:
    found = _nodes_of(function)
    if not found:
        return _compiled(function.__code__)
    # Two lambdas may begin on one line: both count.
    body: list[Any] = [ast.Expr(n) if isinstance(n, ast.Lambda) else n for n in found]
    return _tree_hash(ast.Module(body, []))


def _nodes_of(function: types.FunctionType) -> list[ast.AST]:
    """The definition of a function in its file or cell, as it stands there now; empty where there is none."""
    code = function.__code__
    kinds = ast.Lambda if code.co_name == "<lambda>" else ast.FunctionDef | ast.AsyncFunctionDef
    linecache.checkcache(code.co_filename)
    return [
        node
        for node in _functions_of(code.co_filename, "".join(linecache.getlines(code.co_filename)))
        if isinstance(node, kinds) and _first_line(node) == code.co_firstlineno
    ]


def _first_line(node: ast.AST) -> int:
    decorators = getattr(node, "decorator_list", [])
    return min([item.lineno for item in decorators] + [node.lineno])  # type: ignore[attr-defined]


@functools.lru_cache(maxsize=256)
def _functions_of(filename: str, text: str) -> list[ast.AST]:
    """All functions in a file or in a cell of a notebook."""
    try:
        tree = ast.parse(text)
    except SyntaxError:
        return []
    return [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)]


def _compiled(code: types.CodeType) -> str:
    """Where no source is left (typed into a shell): the compiled code."""
    constants = [_compiled(c) if isinstance(c, types.CodeType) else repr(c) for c in code.co_consts]
    text = json.dumps([code.co_code.hex(), constants, code.co_names, code.co_varnames])
    return hashlib.sha256(text.encode()).hexdigest()[:LENGTH]


@functools.cache
def _is_ours(module: str | None, filename: str | None = None) -> bool:
    """Whether source belongs to the project or to the user rather than to an installed package.

    filename: where a function was compiled; without it (classes, objects) the module's own file decides.
    """
    if module is not None and module.split(".")[0] in OURS:
        return True
    source = filename or getattr(sys.modules.get(module or ""), "__file__", None)
    return source is not None and not _installed(source)


@functools.cache
def _installed(source: str) -> bool:
    if source.startswith("<frozen"):
        return True
    homes = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return any(home in Path(source).resolve().parents for home in homes)
