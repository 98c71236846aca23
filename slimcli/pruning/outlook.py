"""What a network will cost with fewer units, from what it costs now and who makes and reads them: nothing is cut for it.

In MACs and parameters exactly; in time as the sum of what its layers take by themselves, scaled to what was measured of all.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping
from dataclasses import replace
from itertools import accumulate

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from slimcli.networks.layers import Layer, layers_of
from slimcli.records import LayerShape, NetworkCost, Wiring

Size = tuple[int, int]
"""MACs and parameters."""


class Outlook:
    """MACs and parameters after removals.

    A layer's share of both is the share of its outputs times that of its inputs; what no layer has (attention's products,
    parameters of no module) is taken to stay. Where that does not hold, `after` is not what a removal gives: compare once.
    """

    def __init__(self, model: nn.Module, cost: NetworkCost, wirings: Mapping[str, Wiring]) -> None:
        self._channels = _Channels(wirings)
        rows, layers = self._channels.rows, layers_of(model)
        self._layers = {name: _Shape(layer) for name, layer in layers.items()}
        self._macs = {layer.name: layer.macs for layer in cost.layers}
        others = {name: module for name, module in model.named_modules() if name in rows and name not in layers}
        self._per_row = {name: _per_row(module, sum(each[-1] for each in rows[name].values())) for name, module in others.items()}
        self._rest = (
            cost.macs - sum(self._macs.values()),
            cost.params - sum(shape.params() for shape in self._layers.values()),
        )

    def after(self, counts: Mapping[str, int]) -> Size:
        """The sizes when the first so many units of each group are gone (which ones they are makes no difference)."""
        macs, params = self._rest
        for name, shape in self._layers.items():
            outputs = shape.outputs - self._channels.outputs_gone(name, counts)
            inputs = shape.inputs - (0 if shape.depthwise else self._channels.inputs_gone(name, counts))
            macs += self._macs[name] * outputs * inputs // (shape.outputs * shape.inputs)
            params += shape.params(outputs, inputs)
        for name, per_row in self._per_row.items():
            params -= per_row * self._channels.outputs_gone(name, counts)
        return macs, params


class TimeOutlook:
    """Milliseconds after removals, from what the network takes now and what `time_of` says of single layers.

    `shapes` are those of the network's layers. What no layer has (activations, additions) is taken to shrink as the layers do.
    """

    def __init__(
        self,
        shapes: Mapping[str, LayerShape],
        wirings: Mapping[str, Wiring],
        time_of: Callable[[LayerShape], float],
        milliseconds: float,
    ) -> None:
        self._channels, self._shapes, self._time_of = _Channels(wirings), shapes, time_of
        self._scale = milliseconds / sum(map(time_of, shapes.values()))

    def after(self, counts: Mapping[str, int], without: Container[str] = ()) -> float:
        """What the network takes when the first so many units of each group are gone, and some layers altogether."""
        left = ((name, shape) for name, shape in self._shapes.items() if name not in without)
        return self._scale * sum(self._time_of(self._narrowed(name, shape, counts)) for name, shape in left)

    def _narrowed(self, name: str, shape: LayerShape, counts: Mapping[str, int]) -> LayerShape:
        outputs = shape.outputs - self._channels.outputs_gone(name, counts)
        if shape.groups > 1 and shape.groups == shape.inputs:
            inputs = outputs * shape.inputs // shape.outputs
            return replace(shape, inputs=inputs, outputs=outputs, groups=inputs)
        return replace(shape, inputs=shape.inputs - self._channels.inputs_gone(name, counts), outputs=outputs)


class _Channels:
    """How many channels of each module go with the first units of each group: of those that it gives, of those that it reads."""

    def __init__(self, wirings: Mapping[str, Wiring]) -> None:
        self.rows: dict[str, dict[str, list[int]]] = {}
        self._columns: dict[str, dict[str, list[int]]] = {}
        for group, wiring in wirings.items():
            for maker in wiring.makers:
                for module in filter(None, (maker.module, maker.norm)):
                    self.rows.setdefault(module, {})[group] = _sums(maker.rows)
            for reader in wiring.readers:
                self._columns.setdefault(reader.module, {})[group] = _sums(reader.inputs)

    def outputs_gone(self, module: str, counts: Mapping[str, int]) -> int:
        return _gone(self.rows.get(module, {}), counts)

    def inputs_gone(self, module: str, counts: Mapping[str, int]) -> int:
        return _gone(self._columns.get(module, {}), counts)


class _Shape:
    def __init__(self, layer: Layer) -> None:
        groups = getattr(layer, "groups", 1)
        transposed = isinstance(layer, _ConvTransposeNd)
        self.outputs = layer.weight.shape[1] * groups if transposed else layer.weight.shape[0]
        self.inputs = layer.weight.shape[0] if transposed else layer.weight.shape[1] * groups
        self.depthwise = groups > 1 and groups == self.inputs
        self._weights, self._biases = layer.weight.numel(), 0 if layer.bias is None else self.outputs

    def params(self, outputs: int | None = None, inputs: int | None = None) -> int:
        outputs, inputs = outputs or self.outputs, inputs or self.inputs
        return self._weights * outputs * inputs // (self.outputs * self.inputs) + (outputs if self._biases else 0)


def _per_row(module: nn.Module, rows: int) -> int:
    """The parameters of a norm (or of what else scales) for one channel, of which it has at least so many."""
    return sum(len(parameter) >= rows for parameter in module.parameters(recurse=False) if parameter.ndim)


def _sums(rows: tuple[tuple[int, ...], ...]) -> list[int]:
    """How many rows the first n units have, for every n."""
    return [0, *accumulate(map(len, rows))]


def _gone(sums: Mapping[str, list[int]], counts: Mapping[str, int]) -> int:
    return sum(each[counts.get(group, 0)] for group, each in sums.items())
