"""Keys: what changes them, what does not, and that a stale result can say why."""

from __future__ import annotations

import functools
import importlib
import os
import sys
import textwrap
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from hcmae import keys
from hcmae.config import load_profile
from hcmae.keys import Key, Reads, code_of, pick, source_of


def module(tmp_path: Path, text: str, name: str = "users_own") -> ModuleType:
    """A user's own module, freshly imported from a file."""
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(text))
    sys.modules.pop(name, None)
    sys.path.insert(0, str(tmp_path))
    try:
        importlib.invalidate_caches()
        sys.dont_write_bytecode, before = True, sys.dont_write_bytecode
        return importlib.import_module(name)
    finally:
        sys.dont_write_bytecode = before
        sys.path.pop(0)
        importlib.import_module("linecache").checkcache()


NETWORK = """
    import torch

    SCALE = 2.0

    def helper(x):
        return x * SCALE

    class Base(torch.nn.Module):
        def risk(self, x):
            return helper(x)

    class Network(Base):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def forward(self, x):
            return self.risk(self.layer(x))

    def build(sizes, profile):
        return Network()

    def make(flag):
        return lambda sizes, profile: (Network(), flag)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SCALE = 2.0", "SCALE = 3.0"),
        ("return x * SCALE", "return x + SCALE"),
        ("torch.nn.Linear(3, 1)", "torch.nn.Linear(3, 1, bias=False)"),
        ("return helper(x)", "return -helper(x)"),
        ("return Network()", "return Network().double()"),
    ],
)
def test_code_follows_what_a_function_uses(tmp_path: Path, old: str, new: str) -> None:
    before = code_of(module(tmp_path, NETWORK).build)
    assert code_of(module(tmp_path, NETWORK).build) == before
    assert code_of(module(tmp_path, NETWORK.replace(old, new)).build) != before


def test_comments_docstrings_and_other_functions_do_not_count(tmp_path: Path) -> None:
    before = code_of(module(tmp_path, NETWORK).build)
    more = NETWORK.replace(
        "def helper(x):", 'def unused():\n        pass\n\n    def helper(x):\n        "Twice."  # really'
    )
    assert code_of(module(tmp_path, more).build) == before


def test_what_a_function_has_closed_over_counts(tmp_path: Path) -> None:
    made = module(tmp_path, NETWORK)
    assert code_of(made.make(1)) == code_of(made.make(1)) != code_of(made.make(2))
    assert code_of(functools.partial(made.build, 1)) != code_of(functools.partial(made.build, 2))


def test_code_typed_into_a_shell_counts() -> None:
    def typed(text: str) -> Any:
        space: dict[str, Any] = {"__name__": "__main__"}
        exec(text, space)
        return space["f"]

    assert code_of(typed("def f(x):\n return x + 1")) != code_of(typed("def f(x):\n return x + 2"))


def test_packages_count_by_name_only() -> None:
    import torch

    assert code_of(torch.nn.Linear) == code_of(torch.nn.Linear) != code_of(torch.nn.Identity)


def test_source_of_modules_and_packages() -> None:
    found = source_of(["hcmae.slides.*", "hcmae_core.losses"])
    assert {"hcmae.slides", "hcmae.slides.tissue", "hcmae_core.losses"} <= set(found)
    with pytest.raises(ModuleNotFoundError, match="hcmae_none"):
        source_of(["hcmae_none"])


def test_settings_are_picked_by_dotted_name() -> None:
    profile = load_profile("smoke")
    assert pick(profile, ["compute.precision"]) == {"compute.precision": profile.compute.precision}
    assert pick(profile, ["geometry"])["geometry.region"] == profile.geometry.region
    with pytest.raises(AttributeError):
        pick(profile, ["geometry.colour"])


def test_a_key_says_what_changed() -> None:
    profile = load_profile("smoke")
    reads = Reads(("geometry",), ("hcmae_core.losses",))
    old = reads.key("slides", profile, {"P001": "a", "P002": "b"}, seed=0)
    assert old.changes(old.record()) == []
    new = reads.key("slides", load_profile("smoke", {"geometry.thumbnail": 16}), {"P001": "c", "P003": "d"}, seed=1)
    assert new.digest != old.digest
    assert new.changes(old.record()) == [
        f"setting geometry.thumbnail: {profile.geometry.thumbnail} -> 16",
        "setting seed: 0 -> 1",
        "input P001: changed",
        "input P002: gone",
        "input P003: new",
    ]
    assert Key("x").changes({"key": "of another version"}) == ["made in another way than now"]


@pytest.mark.parametrize(
    ("text", "old", "new"),
    [
        ("import helpers_of_mine\ndef build():\n    return helpers_of_mine.scale(1)\n", "x * 2", "x * 3"),
        ("def build():\n    from helpers_of_mine import scale\n    return scale(1)\n", "x * 2", "x * 3"),
        ("import helpers_of_mine as h\ndef build():\n    return h.TABLE.sum()\n", "[1.0, 2.0]", "[1.0, 3.0]"),
        ("from helpers_of_mine import louder\n@louder\ndef build():\n    return 1\n", "+ 1", "+ 2"),
        ("from helpers_of_mine import Cached\ndef build():\n    return Cached().value\n", "return 4", "return 5"),
    ],
    ids=["through its module", "imported inside", "an array", "a decorator", "a cached property"],
)
def test_code_follows_helpers_wherever_they_are(tmp_path: Path, text: str, old: str, new: str) -> None:
    helpers = """
        import functools
        import numpy as np

        TABLE = np.array([1.0, 2.0])

        def scale(x):
            return x * 2

        def louder(function):
            @functools.wraps(function)
            def inner():
                return function() + 1
            return inner

        class Cached:
            @functools.cached_property
            def value(self):
                return 4
    """
    module(tmp_path, helpers, "helpers_of_mine")
    before = code_of(module(tmp_path, text).build)
    assert code_of(module(tmp_path, text).build) == before
    module(tmp_path, helpers.replace(old, new), "helpers_of_mine")
    assert code_of(module(tmp_path, text).build) != before


def test_a_reloaded_module_is_read_again(tmp_path: Path) -> None:
    own = module(tmp_path, "def build():\n    return 1\n")
    before = code_of(own.build)
    path = tmp_path / "users_own.py"
    path.write_text("def build():\n    return 2\n")
    os.utime(path, ns=(0, 10**18))
    sys.path.insert(0, str(tmp_path))
    try:
        importlib.reload(own)
    finally:
        sys.path.pop(0)
    assert code_of(own.build) != before


def test_a_file_younger_than_the_session_is_kept_as_made_by_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    import hcmae_core.losses  # noqa: F401

    before = source_of(["hcmae_core.losses"])
    monkeypatch.setattr(keys, "_STARTED_NS", 0)
    with pytest.warns(UserWarning, match=r"losses\.py was changed after this session began"):
        assert source_of(["hcmae_core.losses"]) != before
