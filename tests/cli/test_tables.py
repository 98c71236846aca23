"""The tables that commands print."""

from __future__ import annotations

import pytest

from slimcli.cli import tables
from slimcli.records import JsonDict


def step(name: str, shortfall: str = "", **side: float) -> JsonDict:
    network: JsonDict = {"top1": 98.5, "macs": 317_000, "params": 127_530, **side}
    return {"label": name, "seed": 3, "seconds": 150.0, "shortfall": shortfall, "metrics": {"epochs": 7, "dense": network}}


def test_each_step_of_a_recipe_has_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    slim = step("slim")
    slim["metrics"]["slim"] = slim["metrics"]["dense"] | {"top1": 91.25}
    tables.show(tables.steps([step("dense"), slim]))
    out = capsys.readouterr().out
    assert "dense, seed 3" in out
    assert "98.50 %" in out
    assert "91.25 %" in out
    assert "2 min" in out
    assert "fell short" not in out


def test_a_step_that_fell_short_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(tables.steps([step("dense"), step("slim", "it lost too much")]))
    assert "fell short" in capsys.readouterr().out
