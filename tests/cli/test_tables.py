"""The tables that commands print."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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


@given(st.lists(st.lists(st.sampled_from(["a", "b", "c0", "c1"]), min_size=1, max_size=3).map(".".join), max_size=8, unique=True))
def test_names_in_short_stand_for_the_same_names(names: list[str]) -> None:
    written = tables.in_short(names)
    assert sorted(expanded for part in split(written) for expanded in braces(part)) == sorted(names)


def split(written: str) -> list[str]:
    return written.split(", ") if written else []


def braces(text: str) -> list[str]:
    """As a shell expands them."""
    if "{" not in text:
        return [text]
    before, rest = text.split("{", 1)
    choices, after = rest.split("}", 1)
    return [before + choice + after for choice in choices.split(",")]


def test_names_in_short_by_example() -> None:
    assert (
        tables.in_short(["conv1", "layer1.0.conv2", "layer1.1.conv2", "layer2.conv2"])
        == "conv1, layer1.{0,1}.conv2, layer2.conv2"
    )


def test_a_step_that_fell_short_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    tables.show(tables.steps([step("dense"), step("slim", "it lost too much")]))
    assert "fell short" in capsys.readouterr().out


def test_a_model_twice_has_its_ratio_once(capsys: pytest.CaptureFixture[str]) -> None:
    latency = {"p50": 1.0, "p90": 1.0, "p99": 1.0, "provider": "CPU", "threads": 1, "batch": 1, "runs": 10}
    model = {"path": "a.onnx", "latency_ms": latency, "cold_start_ms": 1.0, "memory_bytes": None}
    ratio = {"of": "a.onnx", "to": "a.onnx", "ratio": 1.01, "low": 0.99, "high": 1.02}
    tables.show(tables.latencies({"models": [model, model], "ratios": [ratio]}))
    assert capsys.readouterr().out.count("1.01 x") == 1


def test_profiles_stand_side_by_side_layers_first(capsys: pytest.CaptureFixture[str]) -> None:
    def cost(name: str, op: str, milliseconds: float) -> JsonDict:
        return {"name": name, "op": op, "milliseconds": milliseconds}

    dense = [cost("conv1", "", 0.5), cost("fc", "", 0.25), cost("", "Relu", 0.1), cost("", "between", 0.2)]
    small = [cost("conv1", "", 0.3), cost("fc", "", 0.15), cost("", "Quantize", 0.1), cost("", "between", 0.4)]
    models = [{"path": "dense", "profile": dense}, {"path": "small", "profile": small}]
    tables.show(tables.profiles({"models": models}))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines() if "│" in line]
    assert lines == [
        ["conv1", "0.5000", "0.3000"],
        ["fc", "0.2500", "0.1500"],
        ["Relu", "0.1000", ""],
        ["Quantize", "", "0.1000"],
        ["between", "0.2000", "0.4000"],
        ["all", "1.0500", "0.9500"],
    ]


@pytest.mark.parametrize(
    ("ratio", "low", "high", "words"),
    [(2.0, 1.9, 2.1, "2.0 times faster"), (0.5, 0.4, 0.6, "2.0 times slower"), (1.01, 0.99, 1.03, "not measurably faster")],
)
def test_the_speedup_is_the_one_whose_interval_is_known(
    ratio: float, low: float, high: float, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not the quotient of two medians over everything that happened meanwhile."""
    side = {"top1": 99.0, "loss": 0.1, "macs": 10, "params": 5, "file_bytes": 9, "latency_ms": {"p50": 1.0}}
    metrics = {"dense": side, "slim": side, "held_out": {"dense": side, "slim": side}, "method": "l1", "arch": "a", "data": "d"}
    tables.show(tables.summary(metrics | {"speedup": {"ratio": ratio, "low": low, "high": high}}))
    assert words in capsys.readouterr().out
