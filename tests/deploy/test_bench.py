"""The latency measurement: what it reports, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from slimcli.deploy import bench as module
from slimcli.deploy.bench import bench
from slimcli.deploy.onnx import export_onnx
from slimcli.deploy.providers import available
from slimcli.errors import InputError
from slimcli.networks.resolve import build


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "lenet5.onnx"
    export_onnx(build("lenet5", 10, (1, 28, 28)).eval(), path, torch.randn(2, 1, 28, 28))
    return path


def test_a_bench_says_what_it_measured(file: Path) -> None:
    result = bench([file, file], runs=30, batch=2, names=["a", "b"]).to_json()
    assert [entry["path"] for entry in result["models"]] == ["a", "b"]
    for entry in result["models"]:
        ms = entry["latency_ms"]
        assert 0 < ms["min"] <= ms["p50"] <= ms["p90"] <= ms["p99"]
        assert (ms["runs"], ms["threads"], ms["batch"], ms["provider"]) == (30, 1, 2, "CPUExecutionProvider")
    (ratio,) = result["ratios"]
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert (ratio["of"], ratio["to"]) == ("a", "b")
    assert result["environment"]["processor"]


def test_calls_are_interleaved(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    monkeypatch.setattr(module, "_milliseconds", lambda session, feed: called.append(id(session)) or 1.0)
    bench([file, file], runs=20)
    rounds = np.array(called).reshape(-1, 2)
    assert all(len(set(each)) == 2 for each in rounds.tolist())  # every round calls each model once
    assert len({tuple(each) for each in rounds.tolist()}) == 2  # in both orders


def test_the_ratio_is_of_the_medians(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[int] = []

    def fixed(session: object, feed: object) -> float:
        if id(session) not in sessions:
            sessions.append(id(session))
        return 3.0 if sessions.index(id(session)) == 0 else 1.5

    monkeypatch.setattr(module, "_milliseconds", fixed)
    (ratio,) = bench([file, file], runs=20).ratios
    assert (ratio.ratio, ratio.low, ratio.high) == (2.0, 2.0, 2.0)


def test_a_provider_that_is_not_there_is_refused(file: Path) -> None:
    assert "there" in available()["cpu"]
    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(InputError, match="CUDAExecutionProvider"):
            bench([file], provider="cuda")
    with pytest.raises(InputError, match="cpi"):
        bench([file], provider="cpi")


def test_a_provider_that_fell_back_is_refused(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    monkeypatch.setattr(
        module.ort, "InferenceSession", lambda *_, **__: type("S", (), {"get_providers": lambda self: ["CPUExecutionProvider"]})()
    )
    with pytest.raises(InputError, match="fell back"):
        bench([file], provider="cuda")


def test_a_file_that_is_no_network_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(InputError, match="cannot open"):
        bench([tmp_path / "text.onnx"], runs=10)
