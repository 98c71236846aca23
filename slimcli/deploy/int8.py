"""INT8 by static quantisation (QDQ, weights per channel) with onnxruntime's own tools, its ranges taken from real images."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from itertools import count, filterfalse
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Self

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor

from slimcli.deploy.onnx import INPUT, OUTPUT, first_reason, quiet
from slimcli.deploy.ready import NORMALISATION
from slimcli.disk import write_atomically
from slimcli.errors import InputError, ParityError, suggest

METHODS = {
    "percentile": CalibrationMethod.Percentile,
    "entropy": CalibrationMethod.Entropy,
    "minmax": CalibrationMethod.MinMax,
}
"""How the range of an activation follows from what was seen of it: without the outermost 0.001 %, by the least loss of
information, or all of it.
"""
BATCH = 64
"""Images of which all activations are in memory at a time."""
_QUANTIZES = ("QuantizeLinear", "DequantizeLinear")
_ADDED = ("_scale", "_zero_point", "_bias_quantized", "_QuantizeLinear_Output", "_DequantizeLinear_Output")
"""How the names end of what onnxruntime's quantiser adds, those of weights left aside."""
_OF_A_WEIGHT = re.compile(r"\.weight_(?!bias)")
_WITH_WEIGHTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


class Quantizer:
    """Quantises one file, as often as wanted; the ranges of its activations are measured once. A context manager.

    `images` are what the file takes: normalised ones (N, C, H, W), float32, or pixels. Activations become unsigned, weights
    signed 8-bit integers: what CPUs with VNNI compute fastest. Raises `ParityError` where onnxruntime cannot quantise the file.
    """

    def __init__(self, source: Path, images: Tensor, method: str = "percentile") -> None:
        if method not in METHODS:
            raise InputError(f"there is no calibration {method!r}", suggest(method, METHODS))
        self._batches = [batch.numpy() for batch in images.split(BATCH)]  # type: ignore[no-untyped-call]
        self._method = method
        self._folder = TemporaryDirectory()
        self._plain = Path(self._folder.name) / "plain.onnx"
        with _faults_named():
            quant_pre_process(str(source), str(self._plain), skip_symbolic_shape=True)
        self._layers = _layers(onnx.load(self._plain))
        self._around = _around(onnx.load(self._plain))
        self._metadata = {entry.key: entry.value for entry in onnx.load(source).metadata_props}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def matching(self, globs: Sequence[str]) -> list[str]:
        """The layers with weights that any of the patterns names; `InputError` for a pattern that names none."""
        for glob in globs:
            if not any(fnmatch(name, glob) for name in self._layers):
                raise InputError(f"--keep-float {glob} names no layer with weights", suggest(glob, self._layers))
        return [name for name in self._layers if any(fnmatch(name, glob) for glob in globs)]

    def write(self, target: Path, keep_float: Sequence[str] = (), facts: Mapping[str, Any] | None = None) -> None:
        """Write the INT8 file, in full or not at all; the layers named in `keep_float` stay as they are. `facts` go into its
        metadata, in place of what the float file says of itself.
        """
        kept = [node for name in keep_float for node in self._layers[name]]
        quantized = onnx.load_from_string(self._quantized(nodes_to_exclude=[*self._around, *kept]))
        note = f"QDQ, weights per channel, {self._method}, {sum(map(len, self._batches))} images"
        _shorten(quantized.graph)
        own = {key: json.dumps(value) for key, value in (facts or {}).items()}
        onnx.helper.set_model_props(quantized, self._metadata | own | {"int8": note})
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(target, quantized.SerializeToString())

    def noise(self) -> dict[str, float]:
        """For each layer with weights: what quantising it alone changes of the first output, as a share of that (both as root of
        the mean square over the first images), largest first.
        """
        images = self._batches[0]
        wanted = _first_output(self._plain.read_bytes(), images)
        found = {}
        for name, nodes in self._layers.items():
            output = _first_output(self._quantized(nodes_to_quantize=nodes), images)
            found[name] = float(np.sqrt(np.mean((output - wanted) ** 2) / max(np.mean(wanted**2), 1e-30)))
        return dict(sorted(found.items(), key=lambda item: -item[1]))

    def _quantized(self, **which: Any) -> bytes:
        folder = Path(self._folder.name)
        with _faults_named():
            quantize_static(
                str(self._plain),
                str(folder / "quantized.onnx"),
                _Reader(self._batches),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=METHODS[self._method],
                # One batch at a time: together, all activations of all images would be in memory.
                extra_options={"CalibStridedMinMax": 1},
                calibration_cache_path=folder / "ranges.json",
                **which,
            )
        return (folder / "quantized.onnx").read_bytes()


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, batches: Sequence[np.ndarray]) -> None:
        self._batches = batches
        self._rest: Iterator[np.ndarray] = iter(batches)

    def __len__(self) -> int:
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._rest = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._rest, None)
        return None if batch is None else {INPUT: batch}


def _layers(proto: onnx.ModelProto) -> dict[str, list[str]]:
    """The nodes with weights (several where a layer is called again), by the names that the layers have in the network where the
    file still has these.
    """
    weights = {tensor.name for tensor in proto.graph.initializer}
    found: dict[str, list[str]] = {}
    for node in proto.graph.node:
        if node.op_type in _WITH_WEIGHTS and node.input[1] in weights and NORMALISATION not in node.input:
            named = node.input[1].endswith(".weight")
            found.setdefault(node.input[1].removesuffix(".weight") if named else node.name, []).append(node.name)
    return found


def _around(proto: onnx.ModelProto) -> list[str]:
    """The nodes that normalise pixels, and that make probabilities of logits: in 256 steps neither would be worth much."""
    outputs = {each.name for each in proto.graph.output}
    return [
        node.name
        for node in proto.graph.node
        if NORMALISATION in node.input or (node.op_type == "Softmax" and outputs & set(node.output))
    ]


def _shorten(graph: onnx.GraphProto) -> None:
    """Take out what no reader needs: shapes in between, which follow, the optional names of what quantises, and long names of its
    scales, zero points and values. In a network of small layers they are a tenth of the file. Weights keep their names.
    """
    del graph.value_info[:]
    if any(attribute.HasField("g") for node in graph.node for attribute in node.attribute):
        return  # what is inside may name any value
    outer = {each.name for each in (*graph.input, *graph.output)}
    taken = {name for node in graph.node for name in (*node.input, *node.output)} | {each.name for each in graph.initializer}
    unused = filterfalse(taken.__contains__, (f"q{number}" for number in count()))
    short: dict[str, str] = {}
    for node in graph.node:
        if node.op_type in _QUANTIZES:
            node.ClearField("name")
            for name in (*node.input, *node.output):
                if name not in (*outer, *short) and name.endswith(_ADDED) and not _OF_A_WEIGHT.search(name):
                    short[name] = next(unused)
    for node in graph.node:
        node.input[:] = [short.get(name, name) for name in node.input]
        node.output[:] = [short.get(name, name) for name in node.output]
    for tensor in graph.initializer:
        tensor.name = short.get(tensor.name, tensor.name)


def _first_output(model: bytes, images: np.ndarray) -> np.ndarray:
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    outputs = [each.name for each in session.get_outputs()]
    wanted = OUTPUT if OUTPUT in outputs else outputs[0]
    return np.asarray(session.run([wanted], {INPUT: images})[0], dtype=np.float64)


@contextmanager
def _faults_named() -> Iterator[None]:
    """What the quantiser raises is told as any export that cannot be made."""
    try:
        with quiet():
            yield
    except Exception as error:
        raise ParityError(f"onnxruntime cannot quantise this network ({first_reason(error)})", "--debug shows where") from error
