"""The latency measurement: what it reports, and what it refuses."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimcli.deploy import bench as module
from slimcli.deploy.bench import bench
from slimcli.deploy.onnx import export_onnx
from slimcli.deploy.providers import available
from slimcli.deploy.ready import Ready
from slimcli.errors import InputError
from slimcli.networks.resolve import build


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "lenet5.onnx"
    export_onnx(build("lenet5", 10, (1, 28, 28)).eval(), path, torch.randn(2, 1, 28, 28))
    return path


def test_a_bench_says_what_it_measured(file: Path) -> None:
    result = bench([file, file], runs=30, batch=2, names=["a", "b"], memory=True).to_json()
    assert [entry["path"] for entry in result["models"]] == ["a", "b"]
    for entry in result["models"]:
        ms, samples = entry["latency_ms"], np.array(entry["samples_ms"])
        assert samples.shape == (3, 10)
        assert ms["p50"] == pytest.approx(np.median(samples), abs=1e-4)
        assert ms["min"] == pytest.approx(samples.min(), abs=1e-4)
        assert entry["cold_start_ms"] > 0
        assert file.stat().st_size / 2 < entry["memory_bytes"] < 2e9
        assert 0 < ms["min"] <= ms["p50"] <= ms["p90"] <= ms["p99"]
        assert (ms["runs"], ms["threads"], ms["batch"], ms["provider"]) == (30, 1, 2, "CPUExecutionProvider")
    (ratio,) = result["ratios"]
    assert ratio["low"] <= ratio["ratio"] <= ratio["high"]
    assert (ratio["of"], ratio["to"]) == ("a", "b")
    assert result["environment"]["processor"]
    assert {"affinity", "governor", "load"} <= set(result["environment"])


def test_calls_are_interleaved(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[Any] = []
    monkeypatch.setattr(module, "_milliseconds", lambda session, feed: called.append(session) or 1.0)
    bench([file, file], runs=40)
    rounds = np.array([id(session) for session in called]).reshape(4, -1, 2)
    for stretch in rounds.tolist():
        assert all(len(set(each)) == 2 for each in stretch)  # every round calls each model once
        assert len({tuple(each) for each in stretch}) == 2  # in both orders
    assert len(set(rounds.flatten().tolist())) == 8  # each stretch has sessions of its own


def test_the_ratio_is_of_the_medians(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.onnx").write_bytes(file.read_bytes())
    honest, speeds = module.open_session, {}

    def named(path: Path, *options: Any) -> Any:
        session = honest(path, *options)
        speeds[id(session)] = 3.0 if path == file else 1.5
        return session

    monkeypatch.setattr(module, "open_session", named)
    monkeypatch.setattr(module, "_milliseconds", lambda session, feed: speeds[id(session)])
    (ratio,) = bench([file, tmp_path / "other.onnx"], runs=20).ratios
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx((2.0, 2.0, 2.0))


@given(st.integers(0, 2**32 - 1), st.integers(2, 10))
def test_the_interval_is_that_of_independent_stretches(seed: int, stretches: int) -> None:
    """Against the formula written out: the mean of the log ratios, and its standard error times Student's t."""
    times = np.random.default_rng(seed).lognormal(0.0, 0.3, (stretches, 7, 2))
    logs = [math.log(np.median(each[:, 0]) / np.median(each[:, 1])) for each in times]
    mean = sum(logs) / stretches
    error = math.sqrt(sum((each - mean) ** 2 for each in logs) / (stretches - 1) / stretches)
    quantile = {2: 12.7062, 3: 4.3027, 4: 3.1824, 5: 2.7764, 6: 2.5706, 7: 2.4469, 8: 2.3646, 9: 2.3060, 10: 2.2622}[stretches]
    ratio = module._ratio(times, 1, ["a", "b"])
    expected = (math.exp(mean), math.exp(mean - quantile * error), math.exp(mean + quantile * error))
    assert (ratio.ratio, ratio.low, ratio.high) == pytest.approx(expected, rel=1e-3)


def test_the_interval_covers_differences_between_sessions(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two equal models each session is by chance some percent faster, for as long as it lives: most intervals hold 1."""
    generator, honest, factors = np.random.default_rng(0), module.open_session, {}

    def lucky(*arguments: Any) -> Any:
        session = honest(*arguments)
        factors[id(session)] = float(generator.normal(1.0, 0.02))
        return session

    monkeypatch.setattr(module, "open_session", lucky)
    monkeypatch.setattr(module, "_milliseconds", lambda session, feed: factors[id(session)] + generator.exponential(0.005))
    held = sum(ratio.low <= 1 <= ratio.high for seed in range(40) for ratio in bench([file, file], runs=100, seed=seed).ratios)
    assert held >= 34


def test_files_that_take_pixels_are_measured_too(tmp_path: Path) -> None:
    network = Ready(build("lenet5", 10, (1, 28, 28)).eval(), (0.5,), (0.5,))
    export_onnx(network, tmp_path / "pixels.onnx", torch.zeros(2, 28, 28, 1, dtype=torch.uint8))
    export_onnx(network.network, tmp_path / "float.onnx", torch.zeros(2, 1, 28, 28))
    assert bench([tmp_path / "pixels.onnx", tmp_path / "float.onnx"], runs=10).ratios[0].ratio > 0
    export_onnx(build("lenet5", 10, (1, 32, 32)).eval(), tmp_path / "larger.onnx", torch.zeros(2, 1, 32, 32))
    with pytest.raises(InputError, match="different inputs"):
        bench([tmp_path / "larger.onnx", tmp_path / "float.onnx"], runs=10)


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
