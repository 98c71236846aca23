"""The house: who may import whom, read from the source; and what must be importable without torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import slimcli

ROOT = Path(slimcli.__file__).parent
FLOORS = (
    {"__main__"},
    {"cli"},
    {"api"},
    {"pipeline"},
    {"report"},
    {"pruning", "training", "deploy", "data"},
    {"networks"},
    {"rundir", "disk", "processes", "records", "measures", "errors", "settings", "progress", "environment", "foreign"},
)
"""From the top. A file imports from its own part and from lower floors; on the ground floor also from its neighbours."""

GROUND = FLOORS[-1]
FILES = sorted(ROOT.rglob("*.py"))


def part(path: Path) -> str:
    """The part of the house that a file belongs to: `pruning` or `rundir`; empty for the front door."""
    return path.relative_to(ROOT).with_suffix("").parts[0].removesuffix("__init__")


def floor(name: str) -> int:
    return next(number for number, names in enumerate(FLOORS) if name in names)


def imported(path: Path) -> Iterator[str]:
    """The full names of the modules that a file imports, wherever in it."""
    package = ["slimcli", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def parts_imported(path: Path) -> set[str]:
    names = [name.split(".")[1] for name in imported(path) if name.startswith("slimcli.")]
    return {name for name in names if (ROOT / name).is_dir() or (ROOT / f"{name}.py").is_file()}


def test_every_file_has_its_floor() -> None:
    assert {part(path) for path in FILES} - {""} <= set().union(*FLOORS)


@pytest.mark.parametrize("path", [p for p in FILES if part(p)], ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_imports_from_lower_floors_only(path: Path) -> None:
    own = part(path)
    for other in parts_imported(path) - {own}:
        assert floor(other) > floor(own) or {own, other} <= GROUND, f"{path.relative_to(ROOT)} imports {other}"


def test_the_ground_floor_goes_round_in_no_circle() -> None:
    needs: dict[str, set[str]] = {
        name: set().union(*(parts_imported(path) for path in FILES if part(path) == name)) & GROUND - {name} for name in GROUND
    }
    assert needs["settings"] == {"errors"}
    while free := {name for name, others in needs.items() if not others & needs.keys()}:
        needs = {name: others for name, others in needs.items() if name not in free}
    assert not needs


def test_the_check_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    (tmp_path / "training").mkdir()
    (tmp_path / "data").mkdir()
    bad = tmp_path / "training" / "engine.py"
    for line in (
        "import slimcli.data.memory",
        "from slimcli import data",
        "from ..data import memory",
        "from slimcli.data.memory import x",
    ):
        bad.write_text(f"def late():\n    {line}\n")
        with pytest.raises(AssertionError, match="imports data"):
            test_a_file_imports_from_lower_floors_only(bad)


@pytest.mark.parametrize(("library", "file"), [("torch_pruning", "pruning/graph.py"), ("lightning_fabric", "training/group.py")])
def test_each_engine_is_known_to_one_file(library: str, file: str) -> None:
    knowing = {str(path.relative_to(ROOT)) for path in FILES for name in imported(path) if name.split(".")[0] == library}
    assert knowing == {file}


@pytest.mark.parametrize(
    "module",
    [
        "slimcli",
        "slimcli.cli.main",
        "slimcli.pruning.methods",
        "slimcli.networks",
        "slimcli.data",
        *(f"slimcli.{name}" for name in sorted(GROUND)),
    ],
)
def test_importing_it_loads_no_torch(module: str) -> None:
    code = f"import sys, {module}; print(sorted({{'torch', 'torchvision', 'onnxruntime', 'matplotlib'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_public_names_are_all_there() -> None:
    assert all(getattr(slimcli, name) is not None for name in slimcli.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        slimcli.no_such_name  # noqa: B018
