"""`slim eval`: accuracy on the test split, of a checkpoint in torch or of an exported file in onnxruntime."""

from __future__ import annotations

from pathlib import Path

from slimcli.data.loaders import Data
from slimcli.data.sources import check_fits, open_data
from slimcli.deploy.runtime import OnnxNetwork
from slimcli.measures import Score
from slimcli.networks import checkpoint
from slimcli.pipeline.subject import open_subject
from slimcli.settings import DataSettings, FitSettings
from slimcli.training.engine import Engine


def evaluate_checkpoint(
    model: str, settings: DataSettings, *, arch: str | None, trust_pickle: bool, batch_size: int, device: str
) -> tuple[Score, list[str]]:
    """Score of a checkpoint, and what the user should know about it."""
    loaded = checkpoint.load(model, arch, trust_pickle)
    subject = open_subject(loaded, settings, batch_size=batch_size, device=device)
    engine = Engine(FitSettings(device=device))
    return engine.evaluate(subject.model, subject.data.test), list(subject.data.notes)


def evaluate_onnx(path: Path, settings: DataSettings, batch_size: int = 500) -> tuple[Score, list[str]]:
    """The same for an ONNX file; normalisation comes from its metadata where `slim export` wrote it."""
    network = OnnxNetwork(path)
    data = open_data(settings, {"name": network.data}, batch_size=batch_size, seed=0, normalisation=network.normalisation)
    check_fits(data, str(path), network.classes or data.classes, network.input_shape)
    return score_of_file(network, data), list(data.notes)


def score_of_file(network: OnnxNetwork, data: Data) -> Score:
    """Score of an ONNX file on the data's test split, in onnxruntime on the CPU."""
    network.first_alone = data.task.classifies  # other tools' classifiers may give more than logits
    return Engine(FitSettings(device="cpu")).evaluate(network, data.test)
