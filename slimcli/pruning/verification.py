"""Proving, before anything is removed, that removing a group's channels is the same as setting them to zero.

The slim network is compared layer by layer, and every layer is given what the reference gave the one before, also where that one
failed: so a wrong removal shows where it is wrong, and there alone, and one pass finds all faults but those between the layers.
If each layer is right whenever those before it are, the network is right.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from slimcli.networks.layers import layers_of
from slimcli.pruning import surgery
from slimcli.pruning.dataflow import OUTPUT, sources_of
from slimcli.pruning.graph import Graph, cannot_run
from slimcli.records import ChannelGroup

PARTS = 3
"""How many different parts of the units are tried: all of them once, and some again."""

NARROWED, MOST = 6, 15
"""Trials (one forward pass of each network) of a round after which no more is done to tell the guilty among the suspected; and of
all rounds, after which whatever has not been found right stays as it is."""

IMAGES = 4
"""On how many random images a removal is compared with zeroing."""

_REMOVAL = "the removal"


def verify(model: nn.Module, input_shape: Sequence[int], groups: Sequence[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """The same groups, those frozen (and the reason named) whose removal does not equal zeroing.

    All prunable groups are tried together, three different parts of each group's units. Where a layer is wrong, the groups
    that it reads or belongs to are told apart by further trials, as many as there is time for. The model is not touched.
    """
    try:
        probe = _Probe(model, input_shape, groups)
    except Exception as error:
        raise cannot_run(input_shape, error) from error
    failed: dict[str, str] = {}
    remaining = [group for group in groups if group.prunable]
    while remaining and (faults := probe.faults(remaining)):
        failed |= faults
        remaining = [group for group in remaining if group.name not in failed]
    return tuple(replace(g, prunable=False, reason=failed[g.name]) if g.name in failed else g for g in groups)


@dataclass
class _Suspicion:
    """A layer that is wrong without one part of the units, what is wrong, and the groups of which one is to blame."""

    layer: str
    reason: str
    part: int
    suspects: list[ChannelGroup]


@dataclass
class _Trial:
    """What a trial found: the layers that are wrong, and what is wrong with each; and all that it came to."""

    wrong: dict[str, str]
    reached: set[str]


class _Probe:
    """A copy of a network on which removal is compared with zeroing.

    The copy is in float64 and has random weights, batch-norm parameters included, with batch-norm statistics fitted to the
    probe images: so every channel is alive, a wrong removal shows as an error as large as the signal, and a right one as
    rounding (1e-16). Dead filters or degenerate statistics of the real weights could hide a fault, never cause one.
    """

    TOLERANCE = 1e-7

    def __init__(self, model: nn.Module, input_shape: Sequence[int], groups: Sequence[ChannelGroup]) -> None:
        self._input_shape = input_shape
        self._generator = torch.Generator().manual_seed(0)
        self._images = torch.randn(IMAGES, *input_shape, generator=self._generator, dtype=torch.float64)
        self._model = copy.deepcopy(model).cpu().double()
        self._randomise()
        self._graph = Graph(self._model, input_shape)
        self._spread: list[float] = []
        self._alive: set[str] = set()
        with torch.no_grad():
            _walk(self._model, self._images, self._know)
        self._near = {
            layer: {group.name for group in groups if not sources.isdisjoint(group.layers) or layer in group.layers}
            for layer, sources in sources_of(self._model, input_shape).items()
        }
        self._trials = 0

    def _know(self, name: str, output: Tensor) -> Tensor:
        """Remember of the dense network how much each output varies, and which are not zero."""
        self._spread.append(float(output.std()))
        if bool((output != 0).any()):
            self._alive.add(name)
        return output

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
        self._model.eval()
        for norm in norms:
            norm.train()  # these alone: what a network does in training only (dropout, auxiliary heads) is not what is pruned
        if norms:
            self._model(self._images)
        self._model.eval()

    def faults(self, groups: Sequence[ChannelGroup]) -> dict[str, str]:
        """Of these groups, taken together, those that must not be removed, and why; none where all is right."""
        if self._trials >= MOST:
            return {group.name: f"not found right in {MOST} trials" for group in groups}
        if dead := [group for group in groups if self._alive.isdisjoint(group.layers)]:
            return {group.name: "zeroing its channels changes nothing, so removal cannot be checked" for group in dead}
        found: dict[str, _Suspicion] = {}
        narrowed = self._trials + NARROWED
        for part in range(PARTS):
            for layer, reason in self._trial(groups, part).wrong.items():
                near = [group for group in groups if group.name in self._near.get(layer, ())]
                found.setdefault(layer, _Suspicion(layer, reason, part, near or list(groups)))
        while self._trials < min(narrowed, MOST) and any(len(each.suspects) > 1 for each in found.values()):
            for part in range(PARTS):
                self._narrow([each for each in found.values() if each.part == part and len(each.suspects) > 1], part)
        return {group.name: each.reason for each in found.values() for group in each.suspects}

    def _narrow(self, suspicions: Sequence[_Suspicion], part: int) -> None:
        """Halve what is suspected for each layer, in one trial for all layers."""
        tried = {group.name: group for each in suspicions for group in each.suspects[: len(each.suspects) // 2]}
        if not tried:
            return
        trial = self._trial(list(tried.values()), part)
        for each in suspicions:
            inside = [group for group in each.suspects if group.name in tried]
            outside = [group for group in each.suspects if group.name not in tried]
            if each.layer in trial.wrong:
                each.suspects = inside
            elif each.layer in trial.reached:
                each.suspects = outside or inside

    @torch.no_grad()
    def _trial(self, groups: Sequence[ChannelGroup], part: int) -> _Trial:
        """Remove this part of the groups' units, and compare each layer with the dense network where they are zero.

        The parts of a group are always the same ones, so that a fault found among many groups is found again among fewer.
        """
        self._trials += 1
        removal = {group.name: _part(group, part) for group in groups}
        zeroed: dict[str, set[int]] = {}
        expected: list[tuple[str, Tensor]] = []

        def keep(name: str, output: Tensor) -> Tensor:
            expected.append((name, output.clone()))  # an operation in place may follow
            return output

        slim = copy.deepcopy(self._model)
        trial = _Trial({}, {_REMOVAL})
        try:
            for root, units in removal.items():
                for module, own, _ in self._graph.outputs(self._graph.group(root, units)):
                    zeroed.setdefault(self._graph.names[module], set()).update(own)  # a module may belong to several groups
            _walk(self._model, self._images, keep, zeroed)
            kept = surgery.remove(slim, self._input_shape, removal)
        except Exception as error:
            return _Trial({_REMOVAL: _breaks(error)}, {_REMOVAL})
        calls = 0

        def right(name: str) -> Tensor:
            other, reference = expected[calls]
            if name != other:
                raise RuntimeError(f"{name or 'the output'} is reached instead of {other or 'the output'}")
            trial.reached.add(name)
            if name in kept:
                reference = reference.index_select(_channel_axis(slim.get_submodule(name)), torch.tensor(kept[name]))
            return reference

        def broken(name: str, error: Exception) -> Tensor:
            trial.wrong.setdefault(name, _breaks(error))
            return right(name)

        def compare(name: str, output: Tensor) -> Tensor:
            nonlocal calls
            reference = right(name)
            scale = float(reference.std()) + self._spread[calls] + 1e-30
            calls += 1
            if output.shape != reference.shape:
                trial.wrong.setdefault(name, f"{name or 'the output'} has another shape than expected")
            elif not float((output - reference).abs().max()) <= self.TOLERANCE * scale:
                trial.wrong.setdefault(name, f"{name or 'the output'} computes something else than with the channels at zero")
            return reference.clone()

        try:
            _survive(slim, broken)
            _walk(slim, self._images, compare)
            if calls < len(expected):
                raise RuntimeError("an output is missing")
        except Exception as error:
            before = expected[min(calls, len(expected) - 1)][0]  # it broke between layers, on the way to this one
            trial.reached.add(before)
            trial.wrong.setdefault(before, _breaks(error))
        return trial


def _part(group: ChannelGroup, number: int) -> list[int]:
    """One half of the group's units, drawn by its name, or the other; or the first ones, an odd number of them.

    The last shows what depends on counts: a split down the middle goes wrong where one side loses more than the other.
    """
    if number == 2:
        return list(range(max(1, group.channels // 4 * 2 - 1)))
    generator = torch.Generator().manual_seed(zlib.crc32(group.name.encode()))
    return sorted(torch.randperm(group.channels, generator=generator).tolist()[number::2])


def _breaks(error: Exception) -> str:
    return f"removal breaks the network ({type(error).__name__}: {str(error).splitlines()[0][:80] if str(error) else ''})"


def _channel_axis(module: nn.Module) -> int:
    return -1 if isinstance(module, nn.Linear | nn.LayerNorm) else 1


def _survive(model: nn.Module, broken: Callable[[str, Exception], Tensor]) -> None:
    """Have layers whose forward fails give what `broken` returns, so that those behind them are seen too."""

    def guarded(name: str, forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*inputs: Any, **named: Any) -> Tensor:
            try:
                return forward(*inputs, **named)
            except Exception as error:
                return broken(name, error)

        return run

    for name, layer in layers_of(model).items():
        layer.forward = guarded(name, layer.forward)  # type: ignore[method-assign]


def _walk(
    model: nn.Module,
    images: Tensor,
    visit: Callable[[str, Tensor], Tensor],
    zeroed: Mapping[str, Collection[int]] | None = None,
) -> None:
    """Call `visit` with the output of every conv and linear layer, call by call, and with those of the network (`OUTPUT`).

    The network goes on with what `visit` returns, and with the channels in `zeroed` at zero.
    """
    zeroed = zeroed or {}

    def hear(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            if name in zeroed:
                channels = torch.tensor(sorted(zeroed[name]))
                output = output.index_fill(_channel_axis(module), channels, 0.0)
            return visit(name, output) if name in watched else output

        return hook

    watched = layers_of(model)
    handles = [m.register_forward_hook(hear(n)) for n, m in model.named_modules() if n and (n in watched or n in zeroed)]
    try:
        output = model(images)
    finally:
        for handle in handles:
            handle.remove()
    for leaf in tree_leaves(output):
        if isinstance(leaf, Tensor):
            visit(OUTPUT, leaf if leaf.is_floating_point() else leaf.double())  # which class it is, say
