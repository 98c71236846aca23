"""Where a network's time goes: onnxruntime's own profile, by layer."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import onnx

from slimcli.deploy.sessions import feed, open_session

WARM_UP = 20
OVERHEAD = "between the operators"
_FOLLOWS = {"Relu", "Clip", "Add", "Sum", "Sigmoid", "HardSwish", "HardSigmoid", "Mul", "LeakyRelu", "BatchNormalization"}
"""What onnxruntime computes along with the layer before it, where it can: the fused operator has the name of the last one."""
_OPTIMIZED = re.compile(r"^fused |(_nchwc|_token_\d+)+$")
"""What onnxruntime adds to the name of what it has fused or laid out anew."""
_WEIGHTED = {"Conv", "Gemm", "MatMul", "ConvTranspose"}


@dataclass(frozen=True)
class Cost:
    """What a layer, or all operators of one kind that belong to no layer, take in one call, in milliseconds.

    `op` is empty for a layer, `name` for what is none.
    """

    name: str
    op: str
    milliseconds: float


def profile(path: Path, batch: int = 1, threads: int = 1, provider: str = "cpu", runs: int = 200) -> list[Cost]:
    """The layers in the order in which they run, then what is no layer by its kind, then what is left between the operators.

    Each operator's time is the median over the calls. Writing the profile takes time itself, which is found between the
    operators: the sum is more than a call takes without it. Raises `InputError` as `open_session` does.
    """
    with TemporaryDirectory(prefix="slim-profile-") as folder:
        session = open_session(path, threads, provider, Path(folder) / "calls")
        given = feed(session, batch, np.random.default_rng(0))
        for _ in range(WARM_UP + runs):
            session.run(None, given)
        events = json.loads(Path(session.end_profiling()).read_text())
    calls = [event["dur"] for event in events if event["name"] == "model_run"][-runs:]
    costs = _by_layer(_nodes(events, runs), _layers_of(path))
    rest = median(calls) / 1000 - sum(cost.milliseconds for cost in costs)
    return [*costs, Cost("", OVERHEAD, rest)]


def _nodes(events: list[dict[str, object]], runs: int) -> list[tuple[str, str, float]]:
    """Name, kind and milliseconds a call of every operator, over the last `runs` calls."""
    times: dict[tuple[str, str], list[float]] = defaultdict(list)
    for event in events:
        arguments = event.get("args")
        if event.get("cat") == "Node" and isinstance(arguments, dict) and "op_name" in arguments:
            name = str(event["name"]).removesuffix("_kernel_time")
            times[name, arguments["op_name"]].append(float(str(event["dur"])))
    return [(name, op, median(each[-runs:]) / 1000) for (name, op), each in times.items()]


def _by_layer(nodes: list[tuple[str, str, float]], layers: dict[str, str]) -> list[Cost]:
    known: dict[tuple[str, str], float] = defaultdict(float)
    for name, op, milliseconds in nodes:
        layer = layers.get(_OPTIMIZED.sub("", name), "")
        known[(layer, "") if layer else ("", op)] += milliseconds
    found = [Cost(layer, op, milliseconds) for (layer, op), milliseconds in known.items()]
    kinds = sorted((cost for cost in found if not cost.name), key=lambda cost: -cost.milliseconds)
    return [*(cost for cost in found if cost.name), *kinds]


def _layers_of(path: Path) -> dict[str, str]:
    """For the name of every operator with weights, and of every value that it may be fused into: the layer's name."""
    graph = onnx.load(path).graph
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for value in node.input:
            readers[value].append(node)
    found: dict[str, str] = {}
    for node in graph.node:
        weight = node.input[1].removesuffix("_DequantizeLinear_Output") if node.op_type in _WEIGHTED else ""
        if not weight.endswith(".weight"):
            continue
        layer = weight.removesuffix(".weight")
        found[node.name] = layer
        value = node.output[0]
        found.setdefault(value, layer)
        while len(readers[value]) == 1 and readers[value][0].op_type in _FOLLOWS:
            value = readers[value][0].output[0]
            found.setdefault(value, layer)
    return found
