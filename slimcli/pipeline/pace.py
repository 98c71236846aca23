"""A budget in milliseconds: what networks take when they are exported, and which widths would take no longer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from slimcli.deploy.bench import bench
from slimcli.deploy.layer_times import LayerTimes
from slimcli.deploy.onnx import export_onnx
from slimcli.networks.blocks import Block, Chain
from slimcli.networks.shapes import shapes_of
from slimcli.pipeline.budget import Budget
from slimcli.pipeline.state import Network
from slimcli.pruning.outlook import TimeOutlook
from slimcli.pruning.pacing import widths_in_time
from slimcli.pruning.rounding import choices_of
from slimcli.records import Timed

_SECONDS, _FEWEST, _MOST = 3.0, 50, 300
"""For how long a network is timed, and in how many calls."""
_QUANTILE = 10
"""Which percentile of their calls two networks are compared by: on a busy machine most of a slow network's calls are interrupted,
and few of a fast one's, so that a ratio of medians says more of the machine than of the two.
"""
_TRIALS = 8
"""How many widths are tried."""
_RUNG = 0.98
"""Widths are looked for by what is foretold for them, in steps of so much of the present network's time: two runs try the same
widths, and differ only where two of them are as near to the budget as the noise.
"""
_MARGIN, _CENTRE = 0.99, 0.98
"""Which share of the budget is used at most (the same widths are timed again later), and which is looked for."""
_FAR = 10.0
"""What uses more of the budget is told in times of it."""
_LEAST = 1e-3
"""The smallest share of the present time that is ever looked for."""
_ANY_ERROR = 1e9
"""What a file is off by is looked at when it is handed over, not while it is timed."""


class Pace:
    """Times networks as they would be deployed: exported, in onnxruntime, one image, one thread, in turn with the dense one."""

    def __init__(self, dense: nn.Module, input_shape: Sequence[int], say: Callable[[str], None] = lambda line: None) -> None:
        self._dense, self._shape, self._say = dense, input_shape, say
        self._folder: TemporaryDirectory[str] | None = None
        self._runs = 0
        self._layers = LayerTimes()
        self.least: float | None = None
        """The share of the dense network's time that the narrowest network takes, once that was tried."""

    def time(self, model: nn.Module) -> Timed:
        """What one image takes. Raises `ParityError` for a network that cannot be exported."""
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="slim-pace-")
            self._export(self._dense, "dense")
        paths = [Path(self._folder.name) / "dense.onnx", self._export(model, "slim")]
        if not self._runs:
            once = sum(latency.p50 for _, latency in bench(paths, runs=20).latencies)
            self._runs = min(_MOST, max(_FEWEST, round(1000 * _SECONDS / once)))
        result = bench(paths, runs=self._runs)
        dense, slim = (float(np.percentile(result.samples[:, :, model], _QUANTILE)) for model in (0, 1))
        (_, usual), _ = result.latencies
        return Timed(usual.p50 * slim / dense, usual.p50)

    def aim(self, network: Network, budget: Budget, chains: Sequence[Chain] = ()) -> dict[str, int] | None:
        """Units of each group, and blocks of each chain, that keep the timed network within the budget; None where not even the
        narrowest do.

        What is foretold from the times of single layers is tried: a copy is cut and timed, and where it was too slow, or much
        faster than need be, a narrower or wider one is looked for. Of a network within the budget everything stays.
        """
        assert network.latency is not None
        present = network.latency.slim / budget.milliseconds(network.latency)
        if present <= 1:
            return {group.name: group.channels for group in network.prunable} | {
                chain.name: len(chain.blocks) for chain in chains
            }
        with self._layers.remembering():
            return self._narrower(network, budget, present, chains)

    def _narrower(self, network: Network, budget: Budget, present: float, chains: Sequence[Chain]) -> dict[str, int] | None:
        """The widest units that fit; `present` is the share of the budget that the network uses now."""
        assert network.latency is not None
        channels = {group.name: group.channels for group in network.prunable}
        all_of_it = channels | {chain.name: len(chain.blocks) for chain in chains}
        whole = network.latency.slim
        self._say(f"looking for widths that take {budget.milliseconds(network.latency):.3g} ms: {whole:.3g} ms now")
        outlook = TimeOutlook(shapes_of(network.model, self._shape), network.wirings(self._shape), self._layers.of, whole)
        narrowest = {group.name: choices_of(group, budget.multiples[group.name])[0] for group in network.prunable}
        narrowest |= {chain.name: 0 for chain in chains}

        def gone(units: Mapping[str, int]) -> dict[str, int]:
            return {name: channels[name] - units[name] for name in channels}

        def left_out(units: Mapping[str, int]) -> list[Block]:
            return [block for chain in chains for block in chain.without(units[chain.name])]

        def foretold(units: Mapping[str, int]) -> float:
            return outlook.after(gone(units), {layer for block in left_out(units) for layer in block.layers})

        @cache
        def on(rung: int) -> dict[str, int]:
            limit = whole * _RUNG**rung
            found = widths_in_time(network.prunable, budget.multiples, budget.dense_units, foretold, limit, chains)
            return found or narrowest

        shares = {tuple(all_of_it.values()): present}
        points = [(1.0, present)]  # what was foretold, and what was used, as shares of the present time and of the budget

        def fits(units: dict[str, int]) -> bool:
            key = tuple(units.values())
            if key not in shares:
                timed = self.time(network.narrowed(gone(units), self._shape, [block.name for block in left_out(units)]))
                shares[key] = timed.slim / budget.milliseconds(timed)
                points.append((foretold(units) / whole, shares[key]))
                used = f"{shares[key]:.1%} of" if shares[key] < _FAR else f"{shares[key]:,.0f} times"
                self._say(f"widths that use {used} the budget: {timed.slim:.3g} ms, dense {timed.dense:.3g} ms")
            return shares[key] <= _MARGIN

        too_slow, fast_enough = 0, None
        while len(shares) <= _TRIALS and (fast_enough is None or fast_enough - too_slow > 1):
            rung = max(too_slow + 1, math.ceil(math.log(_where(points)) / math.log(_RUNG)))
            rung = rung if fast_enough is None else min(rung, fast_enough - 1)
            if fits(on(rung)):
                fast_enough = rung
            elif on(rung) == narrowest:
                break
            else:
                too_slow = rung
        if fast_enough is not None:
            return on(fast_enough)
        fits(narrowest)  # or is known
        self.least = shares[tuple(narrowest.values())] * budget.milliseconds(network.latency) / network.latency.dense
        return narrowest if shares[tuple(narrowest.values())] <= 1 else None

    def _export(self, model: nn.Module, name: str) -> Path:
        assert self._folder is not None
        image = torch.zeros(1, *self._shape)
        return export_onnx(model, Path(self._folder.name) / f"{name}.onnx", image, tolerance=_ANY_ERROR).path


def _where(points: Sequence[tuple[float, float]]) -> float:
    """What must be foretold for the budget to be used as it should be: on the line through the two points that are nearest to it,
    as part of the time is fixed.
    """
    (one, at_one), (other, at_other), *_ = [*sorted(points, key=lambda point: abs(point[1] - _CENTRE)), points[0]]
    if at_one == at_other or one == other or (at_one - at_other) * (one - other) < 0:  # noise
        return one * _CENTRE / at_one
    return max(_LEAST, one + (_CENTRE - at_one) * (other - one) / (at_other - at_one))
