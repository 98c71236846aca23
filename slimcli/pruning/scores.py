"""How much each filter matters, measured on the network: criteria that need more than a group's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from slimcli.errors import ArchError
from slimcli.networks.cost import layers_of
from slimcli.pruning.flow import gradients_of_batches
from slimcli.pruning.wiring import listen
from slimcli.records import ChannelGroup, Wiring

Batches = Callable[[], Iterator[tuple[Tensor, Tensor]]]
"""Training images and labels, from the first each time it is called."""

IMAGES = 512
"""How many images a score is measured on (HRank's are 500)."""


def batch_norm_scales(
    model: nn.Module, groups: Sequence[ChannelGroup], wirings: Mapping[str, Wiring], _: Batches | None = None
) -> list[Tensor]:
    """Network Slimming (arXiv:1708.06519): the absolute scale of the batch norm behind each filter, summed over the group.

    Raises `ArchError` for a group with a layer that no batch norm alone reads.
    """
    layers, scores = layers_of(model), []
    for group in groups:
        total = torch.zeros(group.channels, dtype=torch.float64)
        for maker in wirings[group.name].makers:
            if maker.module not in layers:
                continue
            norm = model.get_submodule(maker.norm) if maker.norm else None
            if norm is None or norm.weight is None:
                raise ArchError(
                    f"the criterion bn goes by the scales of batch norms, and none reads {maker.module} alone",
                    "choose another criterion, for example --method taylor",
                )
            scales = norm.weight.detach().abs().double().cpu()  # type: ignore[operator]
            total += torch.stack([scales[list(rows)].sum() for rows in maker.rows])
        scores.append(total)
    return scores


def taylor(model: nn.Module, groups: Sequence[ChannelGroup], _: Mapping[str, Wiring], batches: Batches) -> list[Tensor]:
    """First-order Taylor expansion (arXiv:1906.10771, Eq. 8): the squares of weight times gradient, summed over a filter's
    weights, over the group and over batches.
    """
    layers = layers_of(model)
    sums = {name: torch.zeros(len(layer.weight), dtype=torch.float64) for name, layer in layers.items()}
    for gradients, images in gradients_of_batches(model, batches()):
        for name, gradient in gradients.items():
            product = layers[name].weight.detach().double() * gradient.double() / images
            sums[name] += product.square().flatten(1).sum(1).cpu()
    return [torch.stack([sums[member.layer][list(member.channels)] for member in group.members]).sum(0) for group in groups]


def feature_map_ranks(
    model: nn.Module, groups: Sequence[ChannelGroup], wirings: Mapping[str, Wiring], batches: Batches
) -> list[Tensor]:
    """HRank (arXiv:2002.10179): the rank of each filter's feature map, averaged over images; as its readers get it (behind batch
    norm, activation and pooling), summed over them. What a linear layer reads is laid out in a square where it fits one.
    """
    readers = [reader for group in groups for reader in wirings[group.name].readers]
    sums = [torch.zeros(len(reader.inputs), dtype=torch.float64) for reader in readers]

    def look(number: int, values: Tensor) -> None:
        maps = values.movedim(2, 1)  # (units, images, channels of each, ... positions)
        if maps.ndim == 3:
            side = round(maps.shape[2] ** 0.5)
            fits = side * side == maps.shape[2]
            maps = maps.reshape(*maps.shape[:2], side, side) if fits else maps.unsqueeze(2)
        maps = maps.flatten(2, -2)
        sums[number] += torch.linalg.matrix_rank(maps.float()).sum(1).double().cpu()

    for images, _ in batches():
        listen(model, images, readers, look)
    of_readers = iter(sums)
    return [
        torch.stack([next(of_readers) for _ in wirings[group.name].readers] or [torch.zeros(group.channels)]).sum(0)
        for group in groups
    ]


MEASURES: Mapping[str, Callable[[nn.Module, Sequence[ChannelGroup], Mapping[str, Wiring], Batches], list[Tensor]]] = {
    "bn": batch_norm_scales,
    "taylor": taylor,
    "hrank": feature_map_ranks,
}
"""By the criterion's name: for each group (units,), the least go first."""
