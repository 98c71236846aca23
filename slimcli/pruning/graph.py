"""torch-pruning's dependency graph: which layers lose channels together. The sole importer of torch_pruning."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from slimcli.errors import ArchError
from slimcli.networks.cost import layers_of
from slimcli.networks.modes import evaluating
from slimcli.networks.shortcut import ChannelPad


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


class Graph:
    """torch-pruning's dependency graph of one network, in its present shape."""

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        self.names = {module: name for name, module in model.named_modules()}
        self.layers = layers_of(model)
        reference = next(model.parameters())
        example = torch.zeros(2, *input_shape, device=reference.device, dtype=reference.dtype)
        frozen = [parameter for parameter in model.parameters() if not parameter.requires_grad]
        try:
            for parameter in frozen:
                parameter.requires_grad_(True)  # tracing follows gradients; frozen parameters would go unseen
            with evaluating(model), torch.enable_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.graph = tp.DependencyGraph().build_dependency(
                    model,
                    [example],
                    customized_pruners={ChannelPad: _ChannelPadPruner()},
                    # An operation behind the last layer is what torch-pruning marks as the network's output.
                    output_transform=lambda output: tree_map_only(Tensor, lambda tensor: tensor * 1, output),
                    verbose=False,
                )
        finally:
            for parameter in frozen:
                parameter.requires_grad_(False)

    def group(self, root: str, units: Sequence[int]) -> Any:
        """torch-pruning's group for removing these output channels of the layer `root`."""
        layer = self.layers[root]
        pruner = self.graph.get_pruner_of_module(layer)
        return self.graph.get_pruning_group(layer, pruner.prune_out_channels, list(units))

    def outputs(self, group: Any) -> Iterator[tuple[nn.Module, list[int], list[int]]]:
        """Modules that lose output channels with the group: (module, its channels, the root's unit of each)."""
        for item in group:
            module = item.dep.target.module
            if self.graph.is_out_channel_pruning_fn(item.dep.handler) and module in self.names:
                yield module, item.idxs, item.root_idxs

    def inputs(self, group: Any) -> Iterator[tuple[nn.Module, list[int], list[int]]]:
        """Modules that lose input channels, and no outputs with them: (module, its input channels, the root's unit of each)."""
        for item in group:
            module, handler = item.dep.target.module, item.dep.handler
            through = self.graph.is_out_channel_pruning_fn(handler)  # a norm's channels are inputs and outputs
            if self.graph.is_in_channel_pruning_fn(handler) and not through and module in self.names:
                yield module, item.idxs, item.root_idxs

    def norm_of(self, module: nn.Module) -> nn.Module | None:
        """The batch norm that alone reads the module's output."""
        readers = [node.module for node in self.graph.module2node[module].outputs]
        alone = len(readers) == 1 and isinstance(readers[0], nn.modules.batchnorm._BatchNorm)
        return readers[0] if alone else None

    @staticmethod
    def has_loose_parameters(group: Any) -> bool:
        """Whether parameters that no module owns lose channels with the group."""
        return any(isinstance(item.dep.target.module, nn.Parameter) for item in group)

    def reaches_output(self, group: Any) -> bool:
        """Whether the network's own output would lose channels."""
        return any(isinstance(item.dep.target.module, tp.ops._OutputOp) for item in group)


def cannot_run(input_shape: Sequence[int], error: Exception) -> ArchError:
    """What is told of a network that cannot be traced."""
    first_line = str(error).splitlines()[0] if str(error) else ""
    return ArchError(
        f"the network cannot be traced on images of {tuple(input_shape)} ({type(error).__name__}: {first_line})",
        "--debug shows where",
    )
