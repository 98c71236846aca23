"""Export to ONNX, with proof: the file computes what the network computes, and has its shapes."""

from __future__ import annotations

import copy
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import slimcli
from slimcli.deploy.ready import PROBABILITIES, Ready
from slimcli.disk import write_atomically
from slimcli.errors import ParityError, SettingsError
from slimcli.networks.cost import count
from slimcli.networks.layers import layers_of
from slimcli.networks.shapes import constant_layers

INPUT, OUTPUT = "input", "logits"

MOST_FLIPPED = 0.01
"""Of whole numbers (which class it is), the share that rounding may turn into others."""


@dataclass(frozen=True)
class Export:
    """An exported file: its size, and the largest absolute difference of its outputs from torch's over `samples` inputs."""

    path: Path
    file_bytes: int
    max_error: float
    samples: int
    opset: int | None
    input_shape: tuple[int, ...]


def export_onnx(
    model: nn.Module,
    path: str | Path,
    images: Tensor,
    metadata: Mapping[str, Any] | None = None,
    tolerance: float = 1e-4,
    opset: int | None = None,
    half: bool = False,
) -> Export:
    """Write the model as one ONNX file with a dynamic batch (input `input`, output `logits`), and check it. Several outputs are
    called `output_0`, `output_1`, ... in the order in which the network gives them, those of a dictionary by their keys.

    `images` (N, C, H, W), normalised, are what parity is measured on, at batch size N and 1. Raises `ParityError`, and leaves
    no file (an older one stays), when an output differs by more than `tolerance` times the largest output (or 1), or when a
    weight in the file has another shape than in the network; `SettingsError` where this network cannot be written in the
    `opset`. With `half` it computes in fp16, between inputs and outputs in float32. A `Ready` network takes pixels, (N, H, W,
    C), and may give `probabilities`.
    """
    path = Path(path)
    network = copy.deepcopy(model).cpu().eval()
    images = images.detach().cpu()
    try:
        proto = _exported(network, images, opset)
    except Exception as error:
        reason = first_reason(error)
        hint = "where computed values decide, use torch.where, not if" if "data-dependent" in reason else "--debug shows where"
        raise ParityError(f"the network cannot be exported to ONNX ({reason})", hint) from error
    if opset not in (None, opset_of(proto)):
        raise SettingsError(
            f"this network cannot be written in ONNX opset {opset}: the exporter gives {opset_of(proto)}",
            f"use --opset {opset_of(proto)}",
        )
    if half:
        try:
            proto = _in_half(proto)
        except Exception as error:
            raise ParityError(f"the network cannot be written in fp16 ({first_reason(error)})", "--debug shows where") from error
    onnx.helper.set_model_props(proto, metadata_of(network, images, metadata or {}))
    result: list[Export] = []
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(
        path, proto.SerializeToString(), lambda temporary: result.append(_checked(network, temporary, images, tolerance))
    )
    return replace(result[0], path=path)


def _exported(network: nn.Module, images: Tensor, opset: int | None = None) -> onnx.ModelProto:
    with quiet(), torch.no_grad():
        program = torch.onnx.export(
            network,
            (images[:2] if len(images) > 1 else torch.cat([images, images]),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            input_names=[INPUT],
            output_names=list(outputs_of(network, images[:1])),
            opset_version=opset,
        )
    assert program is not None
    proto = program.model_proto
    if isinstance(network, Ready):  # weights are called as in the network that it holds
        for tensor in proto.graph.initializer:
            tensor.name = tensor.name.removeprefix("network.")
        for node in proto.graph.node:
            node.input[:] = [name.removeprefix("network.") for name in node.input]
    # The exporter's notes (stack traces, source paths) can outweigh a slim network's weights.
    for part in (
        proto.graph,
        *proto.graph.node,
        *proto.graph.input,
        *proto.graph.output,
        *proto.graph.value_info,
        *proto.graph.initializer,
    ):
        del part.metadata_props[:]
    return proto


def _in_half(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same in fp16, by onnxruntime's own tool."""
    del proto.graph.value_info[:]  # shapes that the exporter found for its example: the tool would take them for all
    with quiet():
        converted = OnnxModel(convert_float_to_float16(proto, keep_io_types=True))
    converted.topological_sort()  # the tool puts the casts at the end
    model: onnx.ModelProto = converted.model
    return model


def outputs_of(network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """What the network gives, under the names that the file has; what is None is left out."""
    output = network(images)
    if isinstance(network, Ready) and network.probabilities:
        return {PROBABILITIES: output}
    if isinstance(output, Tensor):
        return {OUTPUT: output}
    named = output if isinstance(output, Mapping) else dict(enumerate(tree_leaves(output)))
    named = {key: value for key, value in named.items() if value is not None}
    if not named or not all(isinstance(value, Tensor) for value in named.values()):
        raise TypeError(f"its output is nested or holds more than tensors: {type(output).__name__}")
    if INPUT in named:
        raise TypeError(f"an output is called {INPUT!r}, as the input is")
    if len(named) == 1:
        return {OUTPUT: next(iter(named.values()))}
    return {key if isinstance(key, str) else f"output_{key}": value for key, value in named.items()}


def first_reason(error: BaseException) -> str:
    """The first line of what lies at the bottom of an error: the exporter wraps it in advice on its own steps."""
    while error.__cause__ is not None:
        error = error.__cause__
    first_line = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {first_line[:160]}"


@contextmanager
def quiet() -> Iterator[None]:
    """Without what exporter and quantiser narrate, and warn of their own internals: neither helps the user."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)


def metadata_of(network: nn.Module, images: Tensor, extra: Mapping[str, Any]) -> dict[str, str]:
    cost = count(*_alone(network, images))
    facts = {"slimcli_version": slimcli.__version__, "macs": cost.macs, "params": cost.params, **extra}
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in facts.items()}


@contextmanager
def check_named() -> Iterator[None]:
    """Whatever goes wrong while a written file is checked is a `ParityError`."""
    try:
        yield
    except ParityError:
        raise
    except Exception as error:
        raise ParityError(
            f"the exported file cannot be checked ({first_reason(error)}); no file was left", "--debug shows where"
        ) from error


@check_named()
def _checked(network: nn.Module, path: Path, images: Tensor, tolerance: float) -> Export:
    loaded = onnx.load(path)
    onnx.checker.check_model(loaded, full_check=True)
    _check_shapes(network, loaded, images)
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def run(batch: Tensor, names: Sequence[str]) -> list[np.ndarray]:
        return list(session.run(names, {INPUT: batch.numpy()}))

    worst = largest_error(network, run, images, tolerance)
    return Export(path, path.stat().st_size, worst, len(images), opset_of(loaded), tuple(images.shape[1:]))


@torch.no_grad()
def largest_error(
    network: nn.Module, run: Callable[[Tensor, Sequence[str]], Sequence[np.ndarray]], images: Tensor, tolerance: float
) -> float:
    """The largest error of a file's outputs, which `run` gives by their names, at batch size N and 1.

    Raises `ParityError` where that is more than `tolerance` of the largest value (or of 1), or an output is another.
    """
    worst = 0.0
    for batch in (images, images[:1]):
        outputs = outputs_of(network, batch)
        for found, (name, output) in zip(run(batch, list(outputs)), outputs.items(), strict=True):
            if found.shape != tuple(output.shape):
                raise ParityError(f"the exported file gives {found.shape}, torch {tuple(output.shape)}", "report this network")
            if output.is_floating_point():
                worst = max(worst, _difference(name, found, output.numpy(), tolerance))
            elif found.size and (others := float(np.mean(found != output.numpy()))) > MOST_FLIPPED:
                raise ParityError(
                    f"of {name}, {others:.1%} are other whole numbers than torch's; no file was left", "report this"
                )
    return worst


def opset_of(proto: onnx.ModelProto) -> int:
    """The version of ONNX's own operators that a file is written in."""
    return next(int(entry.version) for entry in proto.opset_import if entry.domain == "")


def _difference(name: str, found: Any, expected: Any, tolerance: float) -> float:
    """The largest error of an output; `ParityError` where it is more than `tolerance` of the largest value (or 1)."""
    difference = float(np.abs(found - expected).max(initial=0.0))
    most = tolerance * max(1.0, float(np.abs(expected).max(initial=0.0)))
    if not difference <= most:
        raise ParityError(
            f"the exported file differs from torch by {difference:.3g} in {name}, more than {most:.3g}; no file was left",
            "raise --tolerance if that is acceptable",
        )
    return difference


def _alone(network: nn.Module, images: Tensor) -> tuple[nn.Module, Sequence[int]]:
    """The network without what was put around it, and the shape of an image for it."""
    if not isinstance(network, Ready):
        return network, images.shape[1:]
    return network.network, images.movedim(-1, 1).shape[1:] if network.takes_pixels else images.shape[1:]


def _check_shapes(network: nn.Module, loaded: onnx.ModelProto, images: Tensor) -> None:
    """Every conv's and linear's weight that images pass must be in the file (a linear one may be transposed). Of what no image
    passes the exporter writes down the result.
    """
    inside = [tuple(tensor.dims) for tensor in loaded.graph.initializer]
    network, shape = _alone(network, images)
    used = {layer.name for layer in count(network, shape).layers if layer.macs} - constant_layers(network, shape)
    for name, layer in layers_of(network).items():
        shape = tuple(layer.weight.shape)
        if isinstance(layer, nn.Linear) and shape not in inside:
            shape = shape[::-1]
        if name in used and shape not in inside:
            raise ParityError(
                f"the exported file has no weight of {name}'s shape {tuple(layer.weight.shape)}", "report this network"
            )
        if shape in inside:
            inside.remove(shape)
