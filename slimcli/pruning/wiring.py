"""Who makes a group's channels, and who reads them: what merging follows, and what can be heard there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slimcli.networks.modes import evaluating
from slimcli.networks.shortcut import ChannelPad
from slimcli.pruning.graph import Graph
from slimcli.records import ChannelGroup, Maker, Reader, Wiring

_SCALING = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.PReLU)


def wiring_of(model: nn.Module, input_shape: Sequence[int], groups: Sequence[ChannelGroup]) -> dict[str, Wiring]:
    """For each of these groups by name: who makes its units, who reads them. The model is left as it is."""
    graph = Graph(model, input_shape)
    return {group.name: _wiring(graph, group) for group in groups}


def _wiring(graph: Graph, group: ChannelGroup) -> Wiring:
    tied = graph.group(group.name, range(group.channels))
    made: dict[nn.Module, list[list[int]]] = {}
    read: dict[nn.Module, list[list[int]]] = {}
    sources: list[list[Any]] = [[] for _ in range(group.channels)]
    for module, own, units in graph.outputs(tied):
        if isinstance(module, ChannelPad):
            for unit, row in zip(units, own, strict=True):
                sources[unit].append((graph.names[module], module.selects[row].tolist()))
        elif any(True for _ in (*module.parameters(recurse=False), *module.buffers(recurse=False))):
            _collect(made.setdefault(module, [[] for _ in range(group.channels)]), own, units)
    for module, own, units in graph.inputs(tied):
        _collect(read.setdefault(module, [[] for _ in range(group.channels)]), own, units)
    fed = [unit for unit, given in enumerate(sources) if any(any(row) for _, row in given)]
    if graph.has_loose_parameters(tied):
        sources, fed = [[unit] for unit in range(group.channels)], list(range(group.channels))
    layers = set(graph.layers.values())
    norms = {module: norm for module in made if module in layers and (norm := graph.norm_of(module)) in made}
    makers = tuple(
        Maker(
            graph.names[module],
            tuple(map(tuple, rows)),
            graph.names[norms[module]] if module in norms else "",
            isinstance(module, _SCALING),
        )
        for module, rows in made.items()
        if module not in norms.values()
    )
    readers = tuple(Reader(graph.names[module], tuple(map(tuple, inputs))) for module, inputs in read.items())
    return Wiring(makers, readers, tuple(sources.index(source) for source in sources), tuple(fed))


def _collect(found: list[list[int]], own: Sequence[int], units: Sequence[int]) -> None:
    """Put each of a module's channels to the unit that it belongs to, once."""
    for unit, channel in zip(units, own, strict=True):
        if channel not in found[unit]:
            found[unit].append(channel)


@torch.no_grad()
def listen(model: nn.Module, images: Tensor, readers: Sequence[Reader], heard: Callable[[int, Tensor], Any]) -> None:
    """Call `heard(number, values)` whenever the reader of that number is reached, with (units, channels of each, images, ...
    positions). Nothing is held: what is heard at one layer may go before the next one computes.
    """

    def watch(number: int, reader: Reader) -> torch.utils.hooks.RemovableHandle:
        def hook(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            tensor = next(each for each in (*inputs, *named.values()) if isinstance(each, Tensor))
            index = torch.tensor(reader.inputs, device=tensor.device)
            heard(number, tensor.movedim(-1 if isinstance(module, nn.Linear) else 1, 0)[index])

        return model.get_submodule(reader.module).register_forward_pre_hook(hook, with_kwargs=True)

    handles = [watch(number, reader) for number, reader in enumerate(readers)]
    try:
        with evaluating(model):
            model(images.to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
