"""The package's rooms stand on one another: nothing is imported upward, nor in a circle."""

from __future__ import annotations

import ast
from graphlib import TopologicalSorter

import pytest
from places import ROOT

# each may import those before it
ROOMS = ("errors", "config", "reduction", "rounding", "allocation", "tuning", "toolkits", "app")


def modules(package: str) -> dict[str, ast.Module]:
    """Every module of a package by its dotted name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text(encoding="utf-8"))
    return found


def imports(tree: ast.Module, known: set[str]) -> set[str]:
    """The modules that a module imports, wherever it does so; a name in a module counts as the module."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & known) or {node.module}
    return found


PACKAGE = modules("magr_gptq")
GRAPH = {name: imports(tree, set(PACKAGE)) & (set(PACKAGE) - {name}) for name, tree in PACKAGE.items()}


def test_the_root_has_no_other_rooms() -> None:
    here = {path.stem for path in (ROOT / "magr_gptq").iterdir() if path.name != "__pycache__"}
    assert here == {"__init__", "py", *ROOMS}


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_those_below_it_alone(room: str) -> None:
    allowed = ROOMS[: ROOMS.index(room) + 1]
    for name in (name for name in PACKAGE if name.startswith(f"magr_gptq.{room}")):
        # the package itself is what users import
        above = {
            found for found in GRAPH[name] if found.split(".")[1:2] and found.split(".")[1] not in allowed
        }
        assert not above, f"{name} imports {above}"


def test_no_module_imports_itself_in_a_circle() -> None:
    graph = {name: found - {"magr_gptq"} for name, found in GRAPH.items()}
    assert len(tuple(TopologicalSorter(graph).static_order())) == len(graph)


def test_the_scorer_never_imports_the_package() -> None:
    for name, tree in modules("magr_score").items():
        assert not {found for found in imports(tree, set()) if found.split(".")[0] == "magr_gptq"}, name
