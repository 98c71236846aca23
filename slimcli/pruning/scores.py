"""How much each filter matters, measured on the network: criteria that need more than a group's weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from slimcli.errors import ArchError
from slimcli.measures import CLASSIFICATION, Task
from slimcli.networks.layers import Layer, by_filter, filters, layers_of
from slimcli.networks.modes import evaluating
from slimcli.pruning.flow import gradients_of_batches
from slimcli.pruning.history import filter_norms
from slimcli.records import ChannelGroup, Wiring

IMAGES = 512
"""How many images a score is measured on (HRank's are 500)."""


@dataclass(frozen=True)
class Examples:
    """Training batches, from the first each time `batches` is called, and what they are for."""

    batches: Callable[[], Iterator[Any]]
    task: Task = CLASSIFICATION


def batch_norm_scales(
    model: nn.Module, groups: Sequence[ChannelGroup], wirings: Mapping[str, Wiring], _: Examples | None = None
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


def taylor(model: nn.Module, groups: Sequence[ChannelGroup], _: Mapping[str, Wiring], examples: Examples) -> list[Tensor]:
    """First-order Taylor expansion (arXiv:1906.10771, Eq. 8): the squares of weight times gradient, summed over a filter's
    weights, over the group and over batches.
    """
    layers = layers_of(model)
    sums = {name: torch.zeros(filters(layer), dtype=torch.float64) for name, layer in layers.items()}
    for gradients, images in gradients_of_batches(model, examples.batches(), examples.task):
        for name, gradient in gradients.items():
            product = layers[name].weight.detach().double() * gradient.double() / images
            sums[name] += by_filter(layers[name], product).square().flatten(1).sum(1).cpu()
    return [torch.stack([sums[member.layer][list(member.channels)] for member in group.members]).sum(0) for group in groups]


@torch.no_grad()
def feature_map_ranks(
    model: nn.Module, groups: Sequence[ChannelGroup], wirings: Mapping[str, Wiring], examples: Examples
) -> list[Tensor]:
    """HRank (arXiv:2002.10179): the rank of each filter's feature map, behind its batch norm and clamped at 0 as ReLU does,
    summed over images and over the group; of equal ranks the lower norm is less. Layers without maps (linear) have only norms.
    """
    layers = layers_of(model)
    ranks: dict[str, Tensor] = {}

    def watch(module: nn.Module, layer: str) -> RemovableHandle:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            of_batch = torch.linalg.matrix_rank(output.clamp(min=0).float()).sum(0).double().cpu()
            ranks[layer] = ranks.get(layer, torch.zeros_like(of_batch)) + of_batch

        return module.register_forward_hook(hook)

    makers = {maker.module: maker for group in groups for maker in wirings[group.name].makers}
    handles = [
        watch(model.get_submodule(maker.norm or name), name)
        for name, maker in makers.items()
        if isinstance(layers.get(name), nn.Conv2d | nn.ConvTranspose2d)
    ]
    try:
        with evaluating(model):
            for batch in examples.batches():
                model(batch[0].to(next(model.parameters()).device))
    finally:
        for handle in handles:
            handle.remove()
    return [_of_group(group, layers, ranks) for group in groups]


def _of_group(group: ChannelGroup, layers: Mapping[str, Layer], ranks: Mapping[str, Tensor]) -> Tensor:
    """Ranks (whole numbers) and less than 1 of norms, summed over the group's members."""
    norms = torch.stack([filter_norms(by_filter(layers[m.layer]).detach().cpu())[list(m.channels)] for m in group.members]).sum(0)
    whole = [ranks[member.layer][list(member.channels)] for member in group.members if member.layer in ranks]
    return sum(whole, norms / (norms.max() + 1))


MEASURES: Mapping[str, Callable[[nn.Module, Sequence[ChannelGroup], Mapping[str, Wiring], Examples], list[Tensor]]] = {
    "bn": batch_norm_scales,
    "taylor": taylor,
    "hrank": feature_map_ranks,
}
"""By the criterion's name: for each group (units,), the least go first."""
