"""`slim eval`: accuracy on the test split, of a checkpoint in torch or of an exported file in onnxruntime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from slimcli.data.sources import check_fits, open_data
from slimcli.deploy.onnx import OnnxNetwork
from slimcli.pipeline.subject import open_subject
from slimcli.records import Score
from slimcli.settings import DataSettings, FitSettings
from slimcli.training.engine import Engine


def evaluate_checkpoint(model: str, settings: DataSettings, **options: Any) -> tuple[Score, list[str]]:
    """Score of a checkpoint, and what the user should know about it; `options` are `open_subject`'s."""
    subject = open_subject(model, settings, **options)
    engine = Engine(FitSettings(device=options.get("device", "auto")))
    return engine.evaluate(subject.model, subject.data.test), [note for note in (subject.data.note,) if note]


def evaluate_onnx(path: Path, settings: DataSettings, batch_size: int = 500) -> tuple[Score, list[str]]:
    """The same for an ONNX file; normalisation comes from its metadata where `slim export` wrote it."""
    network = OnnxNetwork(path)
    data = open_data(settings, {"name": network.data}, batch_size=batch_size, seed=0, normalisation=network.normalisation)
    check_fits(data, str(path), network.classes or data.classes, network.input_shape)
    engine = Engine(FitSettings(device="cpu"))
    return engine.evaluate(network, data.test), [note for note in (data.note,) if note]
