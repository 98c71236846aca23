"""How long single layers take in onnxruntime, and which widths this machine runs fast."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from slimcli.deploy.remembered import Remembered
from slimcli.records import LayerShape

WIDTHS = range(33, 97)
"""The widths that the sweep times: each multiple occurs in them at least twice."""
MULTIPLES = (1, 2, 4, 8, 16)
MULTIPLES_FILE, LAYERS_FILE = "multiples.json", "layers.json"
_NO_WORSE = 1.03
"""Of two multiples whose times differ by less than this, the smaller one leaves more of a choice."""
_TYPICAL = {
    "spatial": LayerShape(64, 64, (14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1)),
    "pointwise": LayerShape(64, 64, (14, 14), (1, 1), (1, 1), (0, 0, 0, 0), (1, 1)),
    "depthwise": LayerShape(64, 64, (14, 14), (3, 3), (1, 1), (1, 1, 1, 1), (1, 1), 64),
    "linear": LayerShape(1024, 64, (1,)),
}
_LEAST_SECONDS, _LEAST_CALLS, _MOST_CALLS = 0.01, 5, 300
_OPSET, _IR = 18, 10


class LayerTimes:
    """Milliseconds of single layers in onnxruntime on the CPU, for one input and one thread.

    The time is the least of many calls: what other programs do meanwhile only adds to it. Each layer is timed once on a
    machine and then remembered (`remembering`), so that what follows from the times is the same in every run.
    """

    def __init__(self) -> None:
        self._kept = Remembered(LAYERS_FILE)
        self._known: dict[LayerShape, float] = {}

    @cached_property
    def _before(self) -> dict[str, float]:
        return {key: time for key, time in self._kept.here().items() if isinstance(time, float) and time > 0}

    def of(self, shape: LayerShape) -> float:
        """What one call of the layer takes."""
        if shape not in self._known:
            before = self._before.get(_key(shape))
            self._known[shape] = _timed(shape) if before is None else before
        return self._known[shape]

    @contextmanager
    def remembering(self) -> Iterator[None]:
        """Remember what is timed meanwhile, whatever comes of it."""
        try:
            yield
        finally:
            found = {_key(shape): time for shape, time in self._known.items()}
            if new := {key: time for key, time in found.items() if key not in self._before}:
                self._kept.add(new)
                self._before.update(new)


def _key(shape: LayerShape) -> str:
    return json.dumps(astuple(shape))


def _timed(shape: LayerShape) -> float:
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = 1, 1, 3
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
    multiples = Remembered(MULTIPLES_FILE)

    def with_all(known: dict[str, Any]) -> dict[str, Any]:
        return known if set(known) == set(_TYPICAL) else _swept()

    return multiples.update(with_all)


def _swept() -> dict[str, int]:
    found = {}
    for kind, typical in _TYPICAL.items():
        by_width = {}
        for width in WIDTHS:
            inputs = typical.inputs if kind == "linear" else width
            by_width[width] = _timed(replace(typical, inputs=inputs, outputs=width, groups=width if kind == "depthwise" else 1))
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
