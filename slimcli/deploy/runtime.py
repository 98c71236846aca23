"""An ONNX file as a network: it runs in onnxruntime, and is called like a torch module."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime as ort
import torch
from torch import Tensor, nn

from slimcli.deploy.ready import PROBABILITIES, pixels_of
from slimcli.errors import InputError


class OnnxNetwork(nn.Module):
    """An ONNX file that can be called like a torch module; it runs in onnxruntime on the CPU. Several outputs come as the network
    gave them: as a tuple, or as a dictionary by their names; with `first_alone` only the first of them does.
    """

    first_alone = False

    def __init__(self, path: Path) -> None:
        super().__init__()
        if not path.is_file():
            raise InputError(f"there is no file {path}", "check the path")
        try:
            self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:
            raise InputError(f"onnxruntime cannot open {path}: {str(error).splitlines()[0][:200]}", "export it again") from error
        entry, outputs = self._session.get_inputs()[0], self._session.get_outputs()
        self._outputs, output = [each.name for each in outputs], outputs[0]
        self._takes_pixels = entry.type == "tensor(uint8)" and len(entry.shape) == 4
        fits = (entry.type == "tensor(float)" and len(entry.shape) >= 3) or self._takes_pixels
        if not fits or not all(isinstance(side, int) for side in entry.shape[1:]):
            raise InputError(f"{path} takes {entry.type} {entry.shape}, not images", "name a file that `slim export` wrote")
        self._input = entry.name
        sides = entry.shape[1:]
        self.input_shape = (sides[-1], *sides[:-1]) if self._takes_pixels else tuple(sides)
        self.classes = output.shape[-1] if isinstance(output.shape[-1], int) else None
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.normalisation = _normalisation(metadata.get("preprocessing", "{}"))
        self.data = metadata.get("data", "")
        if self._takes_pixels and self.normalisation is None:
            raise InputError(f"{path} takes pixels and does not say how they were normalised", "export it again with slim")
        self._fixed_batch = entry.shape[0] if isinstance(entry.shape[0], int) else None

    def forward(self, images: Tensor) -> Any:
        """Normalised images (N, C, H, W) to what the network gives; for a classifier logits (N, classes), or the logarithms of
        its probabilities. A file that takes pixels gets those that the images were made of.
        """
        images = self.feed(images)
        chunks = [images] if self._fixed_batch is None else images.split(self._fixed_batch)  # type: ignore[no-untyped-call]
        runs = [self._run(chunk) for chunk in chunks]
        outputs = [torch.cat(parts) for parts in zip(*runs, strict=True)]
        if len(outputs) == 1 or self.first_alone:
            return outputs[0].log() if self._outputs[0] == PROBABILITIES else outputs[0]
        unnamed = self._outputs == [f"output_{number}" for number in range(len(outputs))]
        return tuple(outputs) if unnamed else dict(zip(self._outputs, outputs, strict=True))

    def feed(self, images: Tensor) -> Tensor:
        """Normalised images as the file takes them: themselves, or the pixels that they were made of."""
        if self._takes_pixels and self.normalisation is not None:
            return pixels_of(images, *self.normalisation)
        return images

    def _run(self, images: Tensor) -> list[Tensor]:
        """All outputs for these images, which are filled up where the file wants more."""
        missing = (self._fixed_batch or len(images)) - len(images)
        filled = torch.cat([images, images.new_zeros(missing, *images.shape[1:])]) if missing else images
        return [torch.from_numpy(each)[: len(images)] for each in self._session.run(None, {self._input: filled.cpu().numpy()})]


def _normalisation(text: str) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Mean and std as `slim export` writes them; None for other tools' metadata."""
    try:
        facts = json.loads(text)
        return tuple(map(float, facts["mean"])), tuple(map(float, facts["std"]))
    except (ValueError, TypeError, KeyError):
        return None
