"""A budget in milliseconds: what networks take when they are exported, and which widths would take no longer."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from slimcli.deploy.bench import bench
from slimcli.deploy.layer_times import LayerTimes
from slimcli.deploy.onnx import export_onnx
from slimcli.networks.shapes import shapes_of
from slimcli.pipeline.budget import Budget
from slimcli.pipeline.state import Network
from slimcli.pruning import surgery
from slimcli.pruning.outlook import TimeOutlook
from slimcli.pruning.pacing import widths_in_time
from slimcli.pruning.rounding import choices_of
from slimcli.records import Timed

_SECONDS, _FEWEST, _MOST = 3.0, 50, 300
"""For how long a network is timed, and in how many calls."""
_TRIALS, _NEAR, _CENTRE = 6, 0.95, 0.98
"""How many widths are tried, from which share of the budget on one is good enough, and which is looked for."""
_ANY_ERROR = 1e9
"""What a file is off by is looked at when it is handed over, not while it is timed."""


class Pace:
    """Times networks as they would be deployed: exported, in onnxruntime, one image, one thread, in turn with the dense one."""

    def __init__(self, dense: nn.Module, input_shape: Sequence[int]) -> None:
        self._dense, self._shape = dense, input_shape
        self._folder: TemporaryDirectory[str] | None = None
        self._layers = LayerTimes()

    def time(self, model: nn.Module) -> Timed:
        """What one image takes. Raises `ParityError` for a network that cannot be exported."""
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="slim-pace-")
            self._export(self._dense, "dense")
        paths = [Path(self._folder.name) / "dense.onnx", self._export(model, "slim")]
        once = sum(latency.p50 for _, latency in bench(paths, runs=20).latencies)
        runs = min(_MOST, max(_FEWEST, round(1000 * _SECONDS / once)))
        (_, dense), (_, slim) = bench(paths, runs=runs).latencies
        return Timed(slim.p50, dense.p50)

    def aim(self, network: Network, budget: Budget) -> dict[str, int] | None:
        """Units of each group that keep the timed network within the budget; None where not even the narrowest do.

        What is foretold from the times of single layers is tried: a copy is cut and timed, and where it was too slow, or much
        faster than need be, a narrower or wider one is looked for. Of a network within the budget everything stays.
        """
        assert network.latency is not None
        channels = {group.name: group.channels for group in network.prunable}
        present = network.latency.slim / budget.milliseconds(network.latency)
        if present <= 1:
            return channels
        shapes = shapes_of(network.model, self._shape)
        outlook = TimeOutlook(shapes, network.wirings(self._shape), self._layers.of, network.latency.slim)

        def gone(units: Mapping[str, int]) -> dict[str, int]:
            return {name: channels[name] - units[name] for name in channels}

        def foretold(units: Mapping[str, int]) -> float:
            return outlook.after(gone(units))

        def used(units: Mapping[str, int]) -> float:
            timed = self.time(self._cut(network, gone(units)))
            return timed.slim / budget.milliseconds(timed)

        narrowest = {group.name: choices_of(group, budget.multiples[group.name])[0] for group in network.prunable}
        known = [(foretold(channels), present)]  # what was foretold, and the share of the budget that was used
        limit, best, widest = budget.milliseconds(network.latency), None, 0.0
        tried = [channels]
        for _ in range(_TRIALS):
            units = widths_in_time(network.prunable, budget.multiples, budget.dense_units, foretold, limit) or narrowest
            if units in tried:
                break
            tried.append(units)
            share = used(units)
            known.append((foretold(units), share))
            if widest < share <= 1:
                best, widest = units, share
            if _NEAR <= share <= 1:
                break
            limit = _where(known)
        if best is None and narrowest not in tried and used(narrowest) <= 1:
            return narrowest
        return best

    def _cut(self, network: Network, counts: Mapping[str, int]) -> nn.Module:
        model = copy.deepcopy(network.model)
        surgery.remove(model, self._shape, {name: tuple(range(count)) for name, count in counts.items()})
        return model

    def _export(self, model: nn.Module, name: str) -> Path:
        assert self._folder is not None
        image = torch.zeros(1, *self._shape)
        return export_onnx(model, Path(self._folder.name) / f"{name}.onnx", image, tolerance=_ANY_ERROR).path


def _where(known: Sequence[tuple[float, float]]) -> float:
    """What must be foretold for the budget to be used as it should be: on the line through the two points that are nearest to it,
    as part of the time is fixed.
    """
    (one, at_one), (other, at_other) = sorted(known, key=lambda point: abs(point[1] - _CENTRE))[:2]
    if at_one == at_other or one == other or (at_one - at_other) * (one - other) < 0:  # noise
        return one * _CENTRE / at_one
    return max(0.0, one + (_CENTRE - at_one) * (other - one) / (at_other - at_one))
