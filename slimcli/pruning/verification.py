"""Proving, before anything is removed, that removing a group's channels is the same as setting them to zero."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from slimcli.networks.cost import layers_of
from slimcli.pruning import surgery
from slimcli.pruning.graph import Graph, cannot_run
from slimcli.records import ChannelGroup


def verify(model: nn.Module, input_shape: Sequence[int], groups: Sequence[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """The same groups, those frozen (and the reason named) whose removal does not equal zeroing.

    All prunable groups are tried together; on a mismatch they are bisected. The model is not touched.
    """
    try:
        probe = _Probe(model, input_shape)
    except Exception as error:
        raise cannot_run(input_shape, error) from error
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
    def _fault(self, removal: surgery.Removal) -> str:
        slim = copy.deepcopy(self._model)
        try:
            graph = Graph(slim, self._input_shape)
            zeroed: dict[str, set[int]] = {}
            for root, units in removal.items():
                for module, own, _ in graph.outputs(graph.group(root, units)):
                    zeroed.setdefault(graph.names[module], set()).update(own)  # a module may belong to several groups
            kept = surgery.remove(slim, self._input_shape, removal)
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
