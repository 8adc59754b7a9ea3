"""`enable` and `disable`: idempotent, reversible to the very same objects, loud about what is missing."""

from __future__ import annotations

import dataclasses
import importlib.util
import subprocess
import sys
import types

import pytest

import magr_gptq
from magr_gptq import toolkits
from magr_gptq.toolkits.patching import Patches

NAME = "gptqmodel" if importlib.util.find_spec("gptqmodel") else "auto-gptq"


def symbol(path: str):
    """The owner and the attribute's name of a dotted path."""
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        module = sys.modules.get(".".join(parts[:length]))
        if module is not None:
            owner = module
            for part in parts[length:-1]:
                owner = getattr(owner, part)
            return owner, parts[-1]
    raise AssertionError(path)


@pytest.fixture(autouse=True)
def _switched_off():
    yield
    magr_gptq.disable()


@pytest.mark.parametrize("toolkit", toolkits.installed())
def test_disable_puts_back_the_very_same_objects(toolkit: str) -> None:
    missing = object()
    touched = magr_gptq.enable(toolkit)
    places = [symbol(path) for path in touched]
    magr_gptq.disable()
    before = [vars(owner).get(name, missing) for owner, name in places]
    magr_gptq.enable(toolkit)
    during = [vars(owner)[name] for owner, name in places]
    assert all(new is not old for new, old in zip(during, before, strict=True))
    magr_gptq.disable()
    assert all(
        vars(owner).get(name, missing) is old for (owner, name), old in zip(places, before, strict=True)
    )


def test_enable_twice_is_enable_once() -> None:
    touched = magr_gptq.enable(NAME)
    owner, name = symbol(touched[-1])
    first = getattr(owner, name)
    assert magr_gptq.enable(NAME) == touched
    assert getattr(owner, name) is first
    magr_gptq.disable()
    magr_gptq.disable()


def test_enabled_leaves_an_outer_enable_alone() -> None:
    magr_gptq.enable(NAME)
    with magr_gptq.enabled(NAME):
        pass
    assert NAME in toolkits._enabled
    magr_gptq.disable()
    with magr_gptq.enabled(NAME):
        assert NAME in toolkits._enabled
    assert NAME not in toolkits._enabled


def test_a_failing_adapter_leaves_nothing_behind(monkeypatch) -> None:
    magr_gptq.enable(NAME)
    magr_gptq.disable()
    wrap, calls = Patches.wrap, []

    def failing(self, owner, name, *rest):
        calls.append((owner, name, vars(owner).get(name)))
        if len(calls) == 3:
            raise magr_gptq.SeamError("gone")
        wrap(self, owner, name, *rest)

    monkeypatch.setattr(Patches, "wrap", failing)
    with pytest.raises(magr_gptq.SeamError, match="gone"):
        magr_gptq.enable(NAME)
    assert NAME not in toolkits._enabled
    assert all(vars(owner).get(name) is original for owner, name, original in calls)


@pytest.fixture
def dependent(monkeypatch) -> str:
    """A toolkit that rounds through another one, as optimum does; its `apply` changes nothing."""
    adapter = types.ModuleType("dependent_adapter")
    adapter.apply = id
    monkeypatch.setitem(sys.modules, adapter.__name__, adapter)
    known = toolkits.TOOLKITS[NAME]
    entry = dataclasses.replace(known, adapter=adapter.__name__, requires=NAME)
    monkeypatch.setitem(toolkits.TOOLKITS, "dependent", entry)
    return "dependent"


def test_a_required_toolkit_is_adapted_first_and_keeps_its_own_switch(dependent: str) -> None:
    assert magr_gptq.enable(dependent) == magr_gptq.enable(NAME)
    assert list(toolkits._enabled) == [NAME, dependent]
    magr_gptq.disable(dependent)
    assert list(toolkits._enabled) == [NAME]
    magr_gptq.enable(dependent)
    magr_gptq.disable(NAME)
    assert not toolkits._enabled
    with magr_gptq.enabled(dependent):
        pass
    assert not toolkits._enabled


def test_a_toolkit_without_the_required_one_is_not_installed(dependent: str, monkeypatch) -> None:
    assert dependent in toolkits.installed()
    gone = dataclasses.replace(toolkits.TOOLKITS[NAME], module="no_such_package.gptq")
    monkeypatch.setitem(toolkits.TOOLKITS, NAME, gone)
    assert dependent not in toolkits.installed()
    with pytest.raises(ModuleNotFoundError, match=f"{NAME} is not installed"):
        magr_gptq.enable(dependent)


def test_a_failing_adapter_leaves_others_enabled(dependent: str, monkeypatch) -> None:
    magr_gptq.enable(NAME)
    monkeypatch.delattr(sys.modules["dependent_adapter"], "apply")
    with pytest.raises(AttributeError, match="apply"):
        magr_gptq.enable(dependent)
    assert list(toolkits._enabled) == [NAME]


def test_unknown_and_missing_toolkits_are_named(monkeypatch) -> None:
    with pytest.raises(ValueError, match="'gptq-model'"):
        magr_gptq.enable("gptq-model")
    other = next(name for name in toolkits.TOOLKITS if name != NAME)
    with pytest.raises(ModuleNotFoundError, match=f"{other} is not installed"):
        magr_gptq.enable(other)
    monkeypatch.setattr(toolkits, "TOOLKITS", {})
    with pytest.raises(ModuleNotFoundError, match="no supported toolkit"):
        magr_gptq.enable()


def test_an_unverified_release_warns(monkeypatch) -> None:
    known = toolkits.TOOLKITS[NAME]
    other = toolkits.Toolkit(known.module, known.distribution, known.adapter, verified=("0.0.1",))
    monkeypatch.setitem(toolkits.TOOLKITS, NAME, other)
    with pytest.warns(UserWarning, match=r"tested with .* 0\.0\.1, not"):
        magr_gptq.enable(NAME)


class Seam:
    def quantize(self, blocksize=128):
        return blocksize


def test_missing_symbols_and_other_signatures_are_named() -> None:
    patches = Patches("toolkit 1.2")
    with pytest.raises(magr_gptq.SeamError, match=r"toolkit 1\.2 has no .*Seam\.gone"):
        patches.wrap(Seam, "gone", lambda original: original)
    with pytest.raises(magr_gptq.SeamError, match=r"Seam\.quantize takes \('self', 'blocksize'\)"):
        patches.wrap(Seam, "quantize", lambda original: original, ("self", "block"))
    with pytest.raises(magr_gptq.SeamError, match="no dataclass"):
        patches.add_magr_field(Seam, lambda original: original)


def test_import_imports_no_toolkit() -> None:
    code = (
        "import sys, magr_gptq; "
        "print([m for m in ('gptqmodel', 'auto_gptq', 'transformers', 'optimum') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
