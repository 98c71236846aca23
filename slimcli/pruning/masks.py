"""Pruning single weights: masks that hold them at zero while the rest trains. A masked network is sparse, not smaller."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from slimcli.networks.layers import Layer, by_filter, layers_of
from slimcli.pruning import surgery
from slimcli.records import Wiring

Masks = dict[str, Tensor]
"""For each conv and linear layer by name: a boolean tensor like its weight, True where the weight is alive."""


def full(model: nn.Module) -> Masks:
    """Masks under which every weight is alive."""
    return {name: torch.ones_like(layer.weight, dtype=torch.bool) for name, layer in layers_of(model).items()}


def of(model: nn.Module) -> Masks:
    """Masks under which every weight is alive that is not zero: those of a network that was masked before. A layer of zeros alone
    is alive: it has yet to be trained.
    """
    alive = {name: layer.weight.detach() != 0 for name, layer in layers_of(model).items()}
    return {name: mask if bool(mask.any()) else ~mask for name, mask in alive.items()}


def alive(masks: Mapping[str, Tensor]) -> int:
    """How many weights are."""
    return sum(int(mask.sum()) for mask in masks.values())


def survivors(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each layer's weights that are alive, as a vector."""
    layers = layers_of(model)
    return {name: layers[name].weight.detach()[mask] for name, mask in masks.items()}


def dead_filters(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """The filters of each layer that have no living weight left."""
    layers = layers_of(model)
    return {n: (~by_filter(layers[n], mask).flatten(1).any(1)).nonzero().flatten().tolist() for n, mask in masks.items()}


@torch.no_grad()
def without_smallest(model: nn.Module, masks: Mapping[str, Tensor], counts: Mapping[str, int], together: bool = False) -> Masks:
    """The masks without the smallest living weights: so many of each layer, or (`together`) their sum over all layers at once.

    Every layer keeps at least one weight.
    """
    weights = {name: layer.weight.detach() for name, layer in layers_of(model).items()}
    if together:
        living = [weights[name][mask].abs() for name, mask in masks.items()]
        layer = torch.cat([torch.full_like(own, number) for number, own in enumerate(living)])
        smallest = torch.cat(living).argsort(stable=True)[: sum(counts.values())]
        counts = {name: int((layer[smallest] == number).sum()) for number, name in enumerate(masks)}
    pruned = {}
    for name, mask in masks.items():
        magnitudes = torch.where(mask, weights[name].abs(), torch.inf).flatten()
        gone = min(counts.get(name, 0), int(mask.sum()) - 1)
        left = mask.flatten().clone()
        left[magnitudes.argsort(stable=True)[:gone]] = False
        pruned[name] = left.view_as(mask)
    return pruned


@torch.no_grad()
def apply(model: nn.Module, masks: Mapping[str, Tensor]) -> None:
    """Set the masked weights to zero, in place."""
    layers = layers_of(model)
    for name, mask in masks.items():
        layers[name].weight.mul_(mask)


@contextmanager
def held(model: nn.Module, masks: Mapping[str, Tensor]) -> Iterator[None]:
    """While inside, masked weights get no gradient: the optimizer has nothing to move, decay or remember there."""
    apply(model, masks)
    layers = layers_of(model)
    handles = [
        layers[name].weight.register_hook(lambda gradient, mask=mask: gradient * mask)  # type: ignore[no-untyped-call]
        for name, mask in masks.items()
        if layers[name].weight.requires_grad
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def dead_units(model: nn.Module, masks: Mapping[str, Tensor], wirings: Mapping[str, Wiring]) -> dict[str, tuple[int, ...]]:
    """For each group the units that no living weight makes, or none reads; one unit always stays. Taking them out may leave
    others so.

    Only where all makers, or all readers, are layers with masks can that be known; and of units that also get something from
    elsewhere (`Wiring.fed`) not that nothing makes them.
    """
    dead, layers = {}, layers_of(model)
    made = {name: by_filter(layers[name], mask) for name, mask in masks.items()}
    for name, wiring in wirings.items():
        units, makers = range(len(wiring.kinds)), [maker for maker in wiring.makers if not maker.scales]
        unmade = {
            unit
            for unit in units
            if unit not in wiring.fed
            and makers
            and all(maker.module in masks for maker in makers)
            and not any(made[maker.module][list(maker.rows[unit])].any() for maker in makers)
        }
        unread = {
            unit
            for unit in units
            if wiring.readers
            and all(reader.module in masks for reader in wiring.readers)
            and not any(_columns(layers[r.module], masks[r.module], r.inputs[unit]).any() for r in wiring.readers)
        }
        gone = sorted(unmade | unread)
        if len(gone) == len(wiring.kinds):
            gone = gone[1:]
        if gone:
            dead[name] = tuple(gone)
    return dead


def _columns(layer: Layer, mask: Tensor, channels: Sequence[int]) -> Tensor:
    """What belongs to these input channels. Grouped convs number theirs group by group: of those all groups' columns."""
    if isinstance(layer, _ConvTransposeNd):
        return mask[list(channels)]
    return mask.transpose(0, 1)[[channel % mask.shape[1] for channel in channels]]


@torch.no_grad()
def after_removal(model: nn.Module, input_shape: Sequence[int], masks: Mapping[str, Tensor], removal: surgery.Removal) -> Masks:
    """What is left of the masks when the units are removed from the model (which is not touched)."""
    shadow = copy.deepcopy(model)
    layers = layers_of(shadow)
    for name, mask in masks.items():
        layers[name].weight.copy_(mask)
    surgery.remove(shadow, input_shape, removal)
    return {name: layer.weight.detach() > 0.5 for name, layer in layers_of(shadow).items() if name in masks}
