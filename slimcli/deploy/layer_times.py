"""How long single layers take in onnxruntime, and which widths this machine runs fast."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import platformdirs
from filelock import FileLock, Timeout
from onnx import TensorProto, helper, numpy_helper

from slimcli.disk import write_atomically
from slimcli.environment import environment
from slimcli.errors import StorageError
from slimcli.records import LayerShape

WIDTHS = range(33, 97)
"""The widths that the sweep times: each multiple occurs in them at least twice."""
MULTIPLES = (1, 2, 4, 8, 16)
_NO_WORSE = 1.03
"""Of two multiples whose times differ by less than this, the smaller one leaves more of a choice."""
_TYPICAL = {
    "spatial": LayerShape(64, 64, (14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "pointwise": LayerShape(64, 64, (14, 14), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "depthwise": LayerShape(64, 64, (14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 64),
    "linear": LayerShape(1024, 64, (1,)),
}
_LEAST_SECONDS, _LEAST_CALLS, _MOST_CALLS = 0.005, 5, 200
_OPSET, _IR = 18, 10
_PATIENCE = 60
"""Seconds to wait for another process that measures."""


class LayerTimes:
    """Milliseconds of single layers in onnxruntime on the CPU, for one input; each layer is timed once.

    The time is the least of many calls: what other programs do meanwhile only adds to it.
    """

    def __init__(self, threads: int = 1) -> None:
        self._threads = threads
        self._known: dict[LayerShape, float] = {}

    def of(self, shape: LayerShape) -> float:
        """What one call of the layer takes."""
        if shape not in self._known:
            self._known[shape] = self._timed(shape)
        return self._known[shape]

    def _timed(self, shape: LayerShape) -> float:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = self._threads, 1, 3
        model, feed = _model_of(shape)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        session.run(None, feed)
        times: list[float] = []
        started = time.perf_counter()
        while len(times) < _LEAST_CALLS or (time.perf_counter() - started < _LEAST_SECONDS and len(times) < _MOST_CALLS):
            before = time.perf_counter_ns()
            session.run(None, feed)
            times.append((time.perf_counter_ns() - before) / 1e6)
        return min(times)


def fast_multiples() -> dict[str, int]:
    """For each kind of layer (`LayerShape.kind`) the multiple of channels that this machine runs fast: measured once (in two
    seconds), then remembered.

    It is the one whose multiples take the least time for their size.
    """
    path, key = cached_multiples(), this_machine()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_suffix(".lock"), timeout=_PATIENCE):  # a run in several processes measures in one of them
            known = _read(path)
            if key not in known:
                known[key] = _swept()
                write_atomically(path, json.dumps(known, indent=1).encode())
            return known[key]
    except (OSError, Timeout, StorageError):  # nowhere to remember it
        return _swept()


def cached_multiples() -> Path:
    """The file that `fast_multiples` remembers in: by machine, by kind of layer."""
    return Path(platformdirs.user_cache_dir("slimcli")) / "multiples.json"


def this_machine() -> str:
    """What the times of layers depend on."""
    where = environment()
    return f"{where['processor']}, onnxruntime {where['versions']['onnxruntime']}"


def _read(path: Path) -> dict[str, dict[str, int]]:
    try:
        known = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    entries = known.items() if isinstance(known, dict) else ()
    return {key: each for key, each in entries if isinstance(each, dict) and set(each) == set(_TYPICAL)}


def _swept() -> dict[str, int]:
    times = LayerTimes()
    found = {}
    for kind, typical in _TYPICAL.items():
        by_width = {}
        for width in WIDTHS:
            inputs = typical.inputs if kind == "linear" else width
            by_width[width] = times.of(replace(typical, inputs=inputs, outputs=width, groups=width if kind == "depthwise" else 1))
        found[kind] = best_multiple(by_width)
    return found


def best_multiple(times: Mapping[int, float], multiples: Sequence[int] = MULTIPLES) -> int:
    """The multiple whose widths take the least time, against a parabola through the times of all widths (in any unit)."""
    widths = np.array(list(times))
    relative = np.array(list(times.values())) / np.polyval(np.polyfit(widths, list(times.values()), 2), widths)
    costs = {multiple: float(relative[widths % multiple == 0].mean()) for multiple in multiples}
    return min(multiple for multiple, each in costs.items() if each <= _NO_WORSE * min(costs.values()))


def _model_of(shape: LayerShape) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """An ONNX model of the one layer with random weights, and an input for it."""
    generator = np.random.default_rng(0)
    attributes: dict[str, Any] = {}
    if shape.kernel:
        fan = (shape.inputs, shape.outputs // shape.groups) if shape.transposed else (shape.outputs, shape.inputs // shape.groups)
        weight = generator.standard_normal((*fan, *shape.kernel), dtype=np.float32)
        attributes = {"kernel_shape": shape.kernel, "strides": shape.strides, "pads": shape.pads, "dilations": shape.dilations}
        attributes |= {"group": shape.groups}
        entry: tuple[int, ...] = (1, shape.inputs, *shape.size)
        op = "ConvTranspose" if shape.transposed else "Conv"
    else:
        weight = generator.standard_normal((shape.inputs, shape.outputs), dtype=np.float32)
        entry, op = (*shape.size, shape.inputs), "Gemm"
    bias = generator.standard_normal(shape.outputs, dtype=np.float32)
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w", "b"], ["y"], **attributes)],
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, entry)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w"), numpy_helper.from_array(bias, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    return model, {"x": generator.standard_normal(entry, dtype=np.float32)}
