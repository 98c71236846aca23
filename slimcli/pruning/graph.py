"""torch-pruning's dependency graph: which layers lose channels together. The sole importer of torch_pruning."""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch_pruning._helpers import _HybridIndex
from torch_pruning.dependency import index_mapping as inferred_mapping

from slimcli.errors import ArchError
from slimcli.networks.layers import filters, inputs, layers_of
from slimcli.networks.modes import evaluating
from slimcli.networks.shortcut import ChannelPad
from slimcli.pruning import index_mapping


class _ChannelPadPruner(tp.BasePruningFunc):  # type: ignore[misc]
    """Tells torch-pruning how an option-A shortcut loses channels: inputs and outputs independently of each other."""

    def prune_out_channels(self, layer: ChannelPad, idxs: Sequence[int]) -> ChannelPad:
        layer.remove_outputs(list(idxs))
        return layer

    def prune_in_channels(self, layer: ChannelPad, idxs: Sequence[int]) -> ChannelPad:
        layer.remove_inputs(list(idxs))
        return layer

    def get_out_channels(self, layer: ChannelPad) -> int:
        return layer.selects.shape[0]

    def get_in_channels(self, layer: ChannelPad) -> int:
        return layer.selects.shape[1]


@dataclass(frozen=True)
class Item:
    """Channels that one module loses on one side: torch-pruning's dependency, which knows how, and the root's unit of each."""

    dep: Any
    channels: list[int]
    units: list[int]

    @property
    def module(self) -> Any:
        """The module: the user's, a parameter, or one that stands for an operation."""
        return self.dep.target.module


class _Chunks(TorchFunctionMode):
    """Notes which splits of a forward pass are into a number of parts: these follow the width, splits into sizes do not."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[Any] = set()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Every call of a function of torch's."""
        found = function(*args, **(kwargs or {}))
        if function in (torch.chunk, Tensor.chunk):
            self.seen.add(found[0].grad_fn)
        return found


class Graph:
    """torch-pruning's dependency graph of one network, in its present shape.

    A unit of a layer is one output channel; where a conv in G groups of channels is tied to it, G of them: the channels that have
    the same place in each group, since all groups must stay equally wide. So it is where channels are chunked into G equal parts.
    """

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.layers = layers_of(model)
        self._groups: dict[str, tuple[int, list[Item]]] = {}
        self.joined: set[str] = set()
        """Layers of which units were found to share a channel of something that depends on them."""
        # A concatenation may be wider than any layer; what is far wider was not followed but made up.
        self._widest = 4 * max(max(inputs(layer), filters(layer)) for layer in self.layers.values())
        reference = next(model.parameters())
        example = torch.zeros(2, *input_shape, device=reference.device, dtype=reference.dtype)
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)  # tracing follows gradients; frozen parameters would go unseen
            with evaluating(model), torch.enable_grad(), warnings.catch_warnings(), _unknown_widths(), _Chunks() as chunks:
                warnings.simplefilter("ignore")
                self.graph = tp.DependencyGraph().build_dependency(
                    model,
                    [example],
                    forward_fn=lambda network, inputs: network(*inputs),  # left out, an error would be tried away and lost
                    customized_pruners={ChannelPad: _ChannelPadPruner()},
                    # An operation behind the last layer is what torch-pruning marks as the network's output.
                    output_transform=lambda output: [
                        leaf * 1 for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad
                    ],
                    verbose=False,
                )
            splits = index_mapping.correct(self.graph, self.names)
            self._chunks = {node: parts for node, parts in splits.items() if node.grad_fn in chunks.seen}
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    def units(self, root: str) -> int:
        """How many units the layer has."""
        return self._whole(root)[0]

    def group(self, root: str, units: Sequence[int]) -> list[Item]:
        """What goes with these units of the layer `root`."""
        wanted, items = set(units), []
        for item in self._whole(root)[1]:
            kept = [(channel, unit) for channel, unit in zip(item.channels, item.units, strict=True) if unit in wanted]
            if kept:
                items.append(Item(item.dep, [channel for channel, _ in kept], [unit for _, unit in kept]))
        return items

    def _whole(self, root: str) -> tuple[int, list[Item]]:
        """How many units the layer has, and what depends on all of them: looked for once."""
        if root not in self._groups:
            channels = filters(self.layers[root])
            items = self._reached(root, channels)
            together = math.lcm(*{self._equal_parts(item)[0] for item in items})
            units = channels // together if channels % together == 0 else channels
            if units < channels:
                self.joined.discard(root)  # of channels, not of units
                items = self._reached(root, units)
            self._groups[root] = units, items
        return self._groups[root]

    def _reached(self, root: str, count: int) -> list[Item]:
        """All that depends on the channels of a layer of so many units, found in time proportional to the channels there are.

        torch-pruning's own search follows a channel again on every way that leads to it. Raises `IndexError` for channels that no
        layer has: what lies in between is not what torch-pruning takes it for.
        """
        layer = self.layers[root]
        node, remove = self.graph.module2node[layer], self.graph.get_pruner_of_module(layer).prune_out_channels
        start = tp.dependency.Dependency(remove, remove, source=node, target=node)
        # What is nearest first: where channels cannot be followed, that shows before all else was.
        ahead = deque([(start, [_HybridIndex(idx=channel, root_idx=channel) for channel in range(filters(layer))])])
        found: dict[tuple[Any, Any], tuple[Any, dict[int, int]]] = {}
        while ahead:
            dep, indices = ahead.popleft()
            _, known = found.setdefault((dep.target, dep.handler), (dep, {}))
            new = [index for index in indices if index.idx not in known]
            if any(known.get(index.idx, index.root_idx % count) != index.root_idx % count for index in indices):
                self.joined.add(root)
            known.update((index.idx, index.root_idx % count) for index in new)
            for further in dep.target.dependencies if new else ():
                if further.is_triggered_by(dep.handler):
                    mapped = new
                    onward = further.target in further.source.outputs
                    for mapping in further.index_mapping if onward else reversed(further.index_mapping):
                        mapped = mapping(mapped) if mapping is not None else mapped
                    widest = self._width(further)
                    if any(index.idx >= widest for index in mapped):
                        raise IndexError("channels are reshaped in a way that cannot be followed")
                    ahead.append((further, mapped))
        return [Item(dep, list(known), list(known.values())) for dep, known in found.values() if known]

    def _width(self, dep: Any) -> int:
        """How many channels there are on the side on which the dependency's target loses some; no less where that is unknown."""
        known = None
        if dep.target.module in self.names:
            of = self.graph.get_out_channels if self.graph.is_out_channel_pruning_fn(dep.handler) else self.graph.get_in_channels
            known = of(dep.target)
        return known or self._widest

    def prune(self, items: Sequence[Item]) -> None:
        """Remove these channels, of several layers together. The graph is of no use afterwards."""
        together: dict[tuple[Any, Any], tuple[Any, set[int]]] = {}
        for item in items:
            if item.module not in self.names and not isinstance(item.module, nn.Parameter):
                continue  # what stands for an operation only keeps books, of sizes that it may not know
            together.setdefault((item.dep.target, item.dep.handler), (item.dep, set()))[1].update(item.channels)
        group = tp.dependency.Group()
        group._DG = self.graph
        for dep, channels in together.values():
            group.add_dep(dep, sorted(channels))
        group.prune(record_history=False)

    def outputs(self, items: Sequence[Item]) -> Iterator[tuple[nn.Module, list[int], list[int]]]:
        """Modules that lose output channels: (module, its channels, the root's unit of each)."""
        for item in items:
            if self.graph.is_out_channel_pruning_fn(item.dep.handler) and item.module in self.names:
                yield item.module, item.channels, item.units

    def inputs(self, items: Sequence[Item]) -> Iterator[tuple[nn.Module, list[int], list[int]]]:
        """Modules that lose input channels, and no outputs with them: (module, its input channels, the root's unit of each)."""
        for item in items:
            through = self.graph.is_out_channel_pruning_fn(item.dep.handler)  # a norm's channels are inputs and outputs
            if self.graph.is_in_channel_pruning_fn(item.dep.handler) and not through and item.module in self.names:
                yield item.module, item.channels, item.units

    def uneven(self, items: Sequence[Item]) -> str:
        """What cuts channels into equal parts and would not lose those with the same place in each together, if anything."""
        for item in items:
            if len(set(self._chunks.get(item.dep.target, ()))) > 1:
                return "the parts into which they are split"
            parts, width = self._equal_parts(item)
            if parts == 1:
                continue
            of_unit: dict[int, list[tuple[int, int]]] = {}
            for channel, unit in zip(item.channels, item.units, strict=True):
                of_unit.setdefault(unit, []).append(divmod(channel, width))
            for places in of_unit.values():
                if sorted(part for part, _ in places) != list(range(parts)) or len({place for _, place in places}) > 1:
                    name = self.names.get(item.module)
                    return f"the groups of {name}" if name else "the parts into which they are split"
        return ""

    def _equal_parts(self, item: Item) -> tuple[int, int]:
        """Into how many parts of several channels the item's target cuts its channels, and how many each has."""
        module, parts = item.module, self._chunks.get(item.dep.target, [0])
        if isinstance(module, nn.modules.conv._ConvNd) and 1 < module.groups < module.out_channels:
            out = self.graph.is_out_channel_pruning_fn(item.dep.handler)
            return module.groups, (module.out_channels if out else module.in_channels) // module.groups
        return (len(parts), parts[0]) if len(set(parts)) == 1 else (1, 0)

    def norm_of(self, module: nn.Module) -> nn.Module | None:
        """The batch norm that alone reads the module's output."""
        readers = [node.module for node in self.graph.module2node[module].outputs]
        alone = len(readers) == 1 and isinstance(readers[0], nn.modules.batchnorm._BatchNorm)
        return readers[0] if alone else None

    def touched(self, items: Sequence[Item]) -> list[nn.Module]:
        """The network's modules that lose channels."""
        return [item.module for item in items if item.module in self.names]

    @staticmethod
    def has_loose_parameters(items: Sequence[Item]) -> bool:
        """Whether parameters that no module owns lose channels."""
        return any(isinstance(item.module, nn.Parameter) for item in items)

    @staticmethod
    def reaches_output(items: Sequence[Item]) -> bool:
        """Whether the network's own output would lose channels."""
        return any(isinstance(item.module, tp.ops._OutputOp) for item in items)

    @staticmethod
    def normalised_over(items: Sequence[Item]) -> str:
        """The kind of module that normalises over the channels: what it computes of the others changes when some go."""
        kinds = (type(item.module) for item in items)
        return next((kind.__name__ for kind in kinds if issubclass(kind, nn.LayerNorm | nn.GroupNorm)), "")


@contextmanager
def _unknown_widths() -> Iterator[None]:
    """torch-pruning fails at a reshape (a channel shuffle) or a concatenation (behind many blocks, or of parts of a split) whose
    width it cannot infer: let it stand as one that moves no channels. Where that is wrong, the check of a removal finds it.
    """
    names = ("update_reshape_index_mapping", "update_concat_index_mapping")
    right = {name: getattr(inferred_mapping, name) for name in names}

    def tolerant(update: Callable[[Any, Any], None]) -> Callable[[Any, Any], None]:
        def updated(graph: Any, node: Any) -> None:
            with suppress(ZeroDivisionError, TypeError, IndexError):
                update(graph, node)

        return updated

    for name, update in right.items():
        setattr(inferred_mapping, name, tolerant(update))
    try:
        yield
    finally:
        for name, update in right.items():
            setattr(inferred_mapping, name, update)


def cannot_run(input_shape: Sequence[int], error: Exception) -> ArchError:
    """What is told of a network that cannot be traced."""
    first_line = str(error).splitlines()[0] if str(error) else ""
    first = ", an image's channels first (3,32,32)" if len(input_shape) == 2 else ""
    return ArchError(
        f"the network cannot be traced on images of {tuple(input_shape)} ({type(error).__name__}: {first_line})",
        "--debug shows where; slim inspect takes images of another size with --input-shape" + first,
    )
