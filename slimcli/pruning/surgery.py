"""Removing channels for real, and proving that it was right. The sole importer of torch_pruning.

A removal is right when the network computes what the dense one computes with the outputs of those channels (and of every
channel tied to them) set to zero. `verify` holds every group to that on a copy before a method may choose from it.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from slimcli.errors import ArchError
from slimcli.networks.cost import evaluating, layers_of
from slimcli.networks.shortcut import ChannelPad
from slimcli.records import ChannelGroup, Maker, Member, Reader, Wiring

Removal = Mapping[str, Sequence[int]]
"""For each group by name: the units (of the group's present numbering) to remove."""


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


class _Graph:
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


def find_groups(model: nn.Module, input_shape: Sequence[int], linear: bool = False) -> tuple[ChannelGroup, ...]:
    """The channel groups of all conv and linear layers, in definition order; those that must stay name their reason.

    `linear` lets hidden linear layers take part. Nothing is verified yet: see `verify`.
    """
    try:
        graph = _Graph(model, input_shape)
    except Exception as error:
        raise _cannot_run(input_shape, error) from error
    groups: list[ChannelGroup] = []
    seen: set[str] = set()
    order = {name: position for position, name in enumerate(graph.layers)}
    for root, layer in graph.layers.items():
        if root in seen:
            continue
        channels = layer.weight.shape[0]
        if layer not in graph.graph.module2node:
            groups.append(
                ChannelGroup(root, (Member(root, tuple(range(channels))),), channels, False, "not seen in a forward pass")
            )
            continue
        group = graph.group(root, range(channels))
        members: list[Member] = []
        one_to_one = True
        for module, own, units in graph.outputs(group):
            name = graph.names[module]
            if name not in graph.layers:
                continue
            seen.add(name)
            by_unit = dict(zip(units, own, strict=True))
            one_to_one &= len(by_unit) == len(own) == channels
            member = Member(name, tuple(by_unit.get(unit, -1) for unit in range(channels)))
            one_to_one &= all(other == member for other in members if other.layer == name)
            if member not in members:
                members.append(member)
        members.sort(key=lambda member: order[member.layer])
        reason = ""
        if graph.reaches_output(group):
            reason = "the network's output"
        elif not one_to_one:
            reason = "its channels are not tied one to one"
        elif not linear and all(isinstance(graph.layers[m.layer], nn.Linear) for m in members):
            reason = "linear (takes part with --linear)"
        groups.append(ChannelGroup(root, tuple(members), channels, not reason, reason))
    return tuple(groups)


def verify(model: nn.Module, input_shape: Sequence[int], groups: Sequence[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """The same groups, those frozen (and the reason named) whose removal does not equal zeroing.

    All prunable groups are tried together; on a mismatch they are bisected. The model is not touched.
    """
    try:
        probe = _Probe(model, input_shape)
    except Exception as error:
        raise _cannot_run(input_shape, error) from error
    failed: dict[str, str] = {}

    def bisect(candidates: list[ChannelGroup]) -> None:
        fault = probe.fault(candidates)
        if not fault:
            return
        if len(candidates) == 1:
            failed[candidates[0].name] = fault
            return
        middle = len(candidates) // 2
        bisect(candidates[:middle])
        bisect(candidates[middle:])

    remaining = [group for group in groups if group.prunable]
    while remaining and probe.fault(remaining):
        known = len(failed)
        bisect(remaining)
        if len(failed) == known:  # each half is right alone and wrong together: nothing here can be trusted
            failed |= {group.name: "wrong together with other groups" for group in remaining}
        remaining = [group for group in remaining if group.name not in failed]
    return tuple(replace(g, prunable=False, reason=failed[g.name]) if g.name in failed else g for g in groups)


def wiring_of(model: nn.Module, input_shape: Sequence[int], groups: Sequence[ChannelGroup]) -> dict[str, Wiring]:
    """For each of these groups by name: who makes its units, who reads them. The model is left as it is."""
    graph = _Graph(model, input_shape)
    return {group.name: _wiring(graph, group) for group in groups}


def _wiring(graph: _Graph, group: ChannelGroup) -> Wiring:
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
    if graph.has_loose_parameters(tied):
        sources = [[unit] for unit in range(group.channels)]
    layers = set(graph.layers.values())
    norms = {module: norm for module in made if module in layers and (norm := graph.norm_of(module)) in made}
    makers = tuple(
        Maker(graph.names[module], tuple(map(tuple, rows)), graph.names[norms[module]] if module in norms else "")
        for module, rows in made.items()
        if module not in norms.values()
    )
    readers = tuple(Reader(graph.names[module], tuple(map(tuple, inputs))) for module, inputs in read.items())
    return Wiring(makers, readers, tuple(sources.index(source) for source in sources))


def _collect(found: list[list[int]], own: Sequence[int], units: Sequence[int]) -> None:
    """Put each of a module's channels to the unit that it belongs to, once."""
    for unit, channel in zip(units, own, strict=True):
        if channel not in found[unit]:
            found[unit].append(channel)


def remove(model: nn.Module, input_shape: Sequence[int], removal: Removal) -> dict[str, list[int]]:
    """Remove the units from the model, in place. Returns, for every conv and linear layer that lost any, the filters it keeps.

    Parameters are replaced by new ones: build the optimizer anew.
    """
    graph = _Graph(model, input_shape)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    kept: dict[str, list[int]] = {}
    for root, units in removal.items():
        if not units:
            continue
        group = graph.group(root, sorted(units))
        for module, own, _ in graph.outputs(group):
            name = graph.names[module]
            if name in graph.layers:
                # Behind a concatenation a layer loses channels with several groups, each time in its present numbering.
                before = kept.get(name) or list(range(graph.layers[name].weight.shape[0]))
                gone = set(own)
                kept[name] = [filter_ for position, filter_ in enumerate(before) if position not in gone]
        group.prune()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])
    model.zero_grad(set_to_none=True)
    return kept


def _cannot_run(input_shape: Sequence[int], error: Exception) -> ArchError:
    first_line = str(error).splitlines()[0] if str(error) else ""
    return ArchError(
        f"the network cannot be traced on images of {tuple(input_shape)} ({type(error).__name__}: {first_line})",
        "--debug shows where",
    )


class _Probe:
    """A copy of a network on which removal is compared with zeroing.

    The copy is in float64 and has random weights, batch-norm parameters included, with batch-norm statistics fitted to the
    probe images: so every channel is alive, a wrong removal shows as an error as large as the signal, and a right one as
    rounding (1e-16). Dead filters or degenerate statistics of the real weights could hide a fault, never cause one.
    """

    TOLERANCE = 1e-7

    def __init__(self, model: nn.Module, input_shape: Sequence[int]) -> None:
        self._input_shape = input_shape
        self._generator = torch.Generator().manual_seed(0)
        self._images = torch.randn(4, *input_shape, generator=self._generator, dtype=torch.float64)
        self._model = copy.deepcopy(model).cpu().double()
        self._randomise()

    @torch.no_grad()
    def _randomise(self) -> None:
        norms = [m for m in self._model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for parameter in self._model.parameters():
            fan_in = max(1, parameter[0].numel()) if parameter.ndim > 1 else 1
            noise = torch.randn(parameter.shape, generator=self._generator, dtype=torch.float64)
            parameter.copy_(noise * (2 / fan_in) ** 0.5 if parameter.ndim > 1 else noise * 0.3)
        for norm in norms:
            if norm.affine:
                norm.weight.copy_(1 + norm.weight.abs())
            norm.momentum = None  # cumulative: the statistics become those of the probe images
            norm.reset_running_stats()
        if norms:
            self._model.train()
            with _deterministic_dropout(self._model):
                self._model(self._images)
        self._model.eval()

    def fault(self, groups: Sequence[ChannelGroup]) -> str:
        """Empty where removing each third of the groups' channels equals zeroing them, else what is wrong.

        The thirds of a group are always the same ones, so that a fault found among many groups is found again alone.
        """
        return next(filter(None, (self._fault({g.name: self._third(g, n) for g in groups}) for n in range(3))), "")

    @torch.no_grad()
    def _fault(self, removal: Removal) -> str:
        slim = copy.deepcopy(self._model)
        try:
            graph = _Graph(slim, self._input_shape)
            zeroed: dict[str, set[int]] = {}
            for root, units in removal.items():
                for module, own, _ in graph.outputs(graph.group(root, units)):
                    zeroed.setdefault(graph.names[module], set()).update(own)  # a module may belong to several groups
            kept = remove(slim, self._input_shape, removal)
            after = _activations(slim, self._images, {})
        except Exception as error:
            return f"removal breaks the network ({type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''})"
        dense = _activations(self._model, self._images, {})
        expected = _activations(self._model, self._images, zeroed)
        if max(float((expected[name] - dense[name]).abs().max()) for name in dense) == 0:
            return "zeroing its channels changes nothing, so removal cannot be checked"
        for name, reference in expected.items():
            if name in kept:
                axis = _channel_axis(self._model.get_submodule(name))
                reference = reference.index_select(axis, torch.tensor(kept[name]))
            if after[name].shape != reference.shape:
                return f"{name or 'the output'} has another shape than expected"
            scale = float(reference.std()) + float(dense[name].std()) + 1e-30
            if not float((after[name] - reference).abs().max()) <= self.TOLERANCE * scale:
                return f"{name or 'the output'} computes something else than with the channels at zero"
        return ""

    @staticmethod
    def _third(group: ChannelGroup, number: int) -> list[int]:
        if group.channels < 2:
            return []
        order = torch.randperm(group.channels, generator=torch.Generator().manual_seed(group.channels)).tolist()
        parts = [part for part in (order[start::3] for start in range(3)) if part]
        return sorted(parts[number % len(parts)])


def _channel_axis(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear | nn.LayerNorm) else 1


def _activations(model: nn.Module, images: Tensor, zeroed: Mapping[str, Collection[int]]) -> dict[str, Tensor]:
    """The outputs of every conv and linear layer and of the network (under the name ""), with some channels at zero."""
    found: dict[str, Tensor] = {}

    def record(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if name in zeroed:
                index: list[Any] = [slice(None)] * output.ndim
                index[_channel_axis(module)] = list(zeroed[name])
                output = output.clone()
                output[tuple(index)] = 0
            if name in watched:
                found[name] = output
            return output

        return hook

    watched = layers_of(model)
    handles = [m.register_forward_hook(record(n)) for n, m in model.named_modules() if n and (n in watched or n in zeroed)]
    try:
        output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return found | {f" {number}" if number else "": leaf for number, leaf in enumerate(leaves)}


@contextmanager
def _deterministic_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout layers off while the rest of the network is in training mode."""
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    yield
