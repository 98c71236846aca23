"""What one iteration decides and does to a network: choose, tie, remove."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slimcli.data.loaders import Data
from slimcli.measures import Loader
from slimcli.networks.cost import count
from slimcli.networks.layers import by_filter, filters, layers_of
from slimcli.pipeline.state import Network
from slimcli.pruning import surgery
from slimcli.pruning.history import NormHistory, filter_norms
from slimcli.pruning.merging import Merge, TiedUnits, WeightTie, is_scalable, lengths, silent_units
from slimcli.pruning.rankings import CRITERIA, GroupView, losers
from slimcli.pruning.scores import IMAGES, MEASURES, Examples
from slimcli.records import ChannelGroup, Choice, JsonDict
from slimcli.settings import PruneSettings
from slimcli.training.losses import PENALTIES, Objective, Penalty, TiedPair, batch_norm_scales


def choose(
    network: Network,
    counts: dict[str, int],
    settings: PruneSettings,
    generator: torch.Generator,
    data: Data,
) -> list[Choice]:
    """The criterion's decision for every group that is to lose channels."""
    name, groups = settings.criterion or "", [group for group in network.prunable if counts[group.name]]
    wirings = network.wirings(data.shape) if settings.merge or name in MEASURES else {}
    scores: list[Tensor | None] = [None] * len(groups)
    if name in MEASURES:
        examples = Examples(partial(first_batches, data.train, IMAGES), data.task)
        scores[:] = MEASURES[name](network.model, groups, wirings, examples)
    return [
        CRITERIA[name](
            GroupView(
                group,
                network.history.of_group(group, settings.window) if name == "history" else [],
                member_weights(network.model, group),
                generator,
                settings.norm,
                settings.distance,
                wirings[group.name].kinds if settings.merge else (),
                of_group,
            ),
            counts[group.name],
        )
        for group, of_group in zip(groups, scores, strict=True)
    ]


def member_weights(model: nn.Module, group: ChannelGroup) -> list[Tensor]:
    """Each member's weights (units, fan-in), in the order of the group's units."""
    layers = layers_of(model)
    return [by_filter(layers[m.layer]).detach().cpu().flatten(1)[list(m.channels)] for m in group.members]


def objective_for(network: Network, choices: list[Choice], settings: PruneSettings, input_shape: Sequence[int]) -> Objective:
    """What the network is trained towards before a removal: Eq. 8's second term, another penalty, or a tie of weights."""
    if settings.penalty == "weights":
        return Objective(constraint=_weight_tie(network, choices, input_shape))
    return Objective(penalty=_penalty_for(network, choices, settings))


def _weight_tie(network: Network, choices: list[Choice], input_shape: Sequence[int]) -> WeightTie:
    wirings = network.wirings(input_shape)
    return WeightTie(
        [
            TiedUnits(wirings[c.group], c.pairs, is_scalable(network.model, input_shape, wirings[c.group]))
            for c in choices
            if c.pairs
        ]
    )


def _penalty_for(network: Network, choices: list[Choice], settings: PruneSettings) -> Penalty | None:
    if settings.penalty in (None, "none"):
        return None
    if settings.penalty == "scales":
        return lambda model: settings.lambda_ * batch_norm_scales(model)
    groups = {group.name: group for group in network.groups}
    tied = tuple(
        TiedPair(tuple((m.layer, m.channels[i], m.channels[j]) for m in groups[choice.group].members))
        for choice in choices
        for i, j in choice.pairs
    )
    function, norms = PENALTIES[settings.penalty], partial(filter_norms, norm=settings.norm)
    return lambda model: settings.lambda_ * function(model, tied, norms)


def removal_of(
    network: Network, choices: list[Choice], settings: PruneSettings, input_shape: Sequence[int]
) -> dict[str, tuple[int, ...]]:
    """The units of each group that go: those chosen, and of each pair the one with the lower norm.

    Where pairs are merged, the one with the shorter last parameters: behind batch norm, tied filters have equal norms.
    """
    groups = {group.name: group for group in network.groups}
    norms = {
        c.group: [filter_norms(weights, settings.norm) for weights in member_weights(network.model, groups[c.group])]
        for c in choices
    }
    if settings.merge:
        wirings = network.wirings(input_shape)
        norms = {c.group: [lengths(network.model, wirings[c.group], groups[c.group].channels)] for c in choices}
    return {c.group: losers(c, norms[c.group]) for c in choices}


def merges_of(
    network: Network, choices: list[Choice], removal: Mapping[str, Sequence[int]], input_shape: Sequence[int]
) -> list[Merge]:
    """For each group with pairs: its wiring, and each pair as (kept, gone)."""
    wirings = network.wirings(input_shape)
    return [(wirings[c.group], [(i, j) if j in removal[c.group] else (j, i) for i, j in c.pairs]) for c in choices if c.pairs]


def first_batches(loader: Loader, images: int) -> Iterator[Any]:
    """The loader's first batches, of at least so many images."""
    seen = 0
    for batch in loader.shard(0, 1).epoch(0):
        yield batch
        seen += len(batch[0])
        if seen >= images:
            return


def dead_units(network: Network, images: Iterator[Tensor], input_shape: Sequence[int]) -> dict[str, int]:
    """How many channels of each prunable group are zero wherever they are read, for all these images."""
    wirings = network.wirings(input_shape)
    counts = silent_units(network.model, images, list(wirings.values()))
    return {name: number for name, number in zip(wirings, counts, strict=True) if number}


def remove(network: Network, removal: Mapping[str, Sequence[int]], input_shape: Sequence[int], linear: bool) -> None:
    """Take the units out of the network, in place, and tell its history, groups and costs."""
    widths = {name: filters(layer) for name, layer in layers_of(network.model).items()}
    for name, kept in surgery.remove(network.model, input_shape, removal).items():
        network.history.keep(name, kept)
        network.removed[name] = also_removed(network.removed.get(name, []), widths[name], kept)
    groups = found_again(network.groups, surgery.find_groups(network.model, input_shape, linear))
    network.reshaped(groups, count(network.model, input_shape))


def found_again(verified: Sequence[ChannelGroup], found: Sequence[ChannelGroup]) -> tuple[ChannelGroup, ...]:
    """The groups of the present network, prunable where those of the same name were found so."""
    verdicts = {(group.name, group.layers, group.per_unit): (group.prunable, group.reason) for group in verified}
    changed = False, "it is another group than the one that was verified"
    of = {group: verdicts.get((group.name, group.layers, group.per_unit), changed) for group in found}
    return tuple(replace(group, prunable=of[group][0], reason=of[group][1]) for group in found)


def examples_of(network: Network, choices: list[Choice], removal: Mapping[str, Sequence[int]]) -> list[JsonDict]:
    """The nearest pair of each group with its histories, for the report."""
    groups = {group.name: group for group in network.groups}
    return [_example(network.history, groups[c.group], c, removal[c.group]) for c in choices if c.pairs]


def also_removed(before: list[int], width: int, kept: list[int]) -> list[int]:
    """The removed filters of a layer in the dense network's numbering, after the `width` present ones shrank to `kept`."""
    alive = [c for c in range(width + len(before)) if c not in set(before)]
    return sorted([*before, *(alive[c] for c in range(width) if c not in set(kept))])


def _example(history: NormHistory, group: ChannelGroup, choice: Choice, gone: Sequence[int]) -> JsonDict:
    i, j = choice.pairs[0]
    rows = torch.stack(history.of_group(group)).sum(0)
    return {
        "group": group.name,
        "pair": [i, j],
        "removed": i if i in gone else j,
        "histories": [[round(value, 4) for value in rows[:, unit].tolist()] for unit in (i, j)],
    }
