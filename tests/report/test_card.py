"""The result card."""

from __future__ import annotations

from pathlib import Path

import pytest

from slimcli.report import card


@pytest.mark.parametrize(
    ("gpu", "said"),
    [
        ({}, "Measured on A CPU, 2 cores, Linux; torch 2."),
        ({"gpu": "A GPU"}, "Measured on A CPU, 2 cores, A GPU, Linux; torch 2."),
    ],
)
def test_it_says_where_it_was_measured(tmp_path: Path, gpu: dict[str, str], said: str) -> None:
    machine = {"processor": "A CPU", "cores": 2, "platform": "Linux", "versions": {"torch": "2", "onnx": None}} | gpu
    metrics = {"environment": machine, "dense": {"top1": 90.0, "macs": 100, "params": 10}, "layers": [], "epochs": 1}
    step = {"step": "train", "seconds": 60.0, "metrics": metrics, "shortfall": ""}
    path = card.write(tmp_path / "card.md", {}, tmp_path / "recipe.toml", [step])
    assert said in path.read_text()
