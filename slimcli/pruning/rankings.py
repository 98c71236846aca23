"""Which filters go. A criterion looks at one channel group and returns a `Choice`; it never edits a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from slimcli.pruning.pairs import disjoint_pairs, pair_distances
from slimcli.records import ChannelGroup, Choice


@dataclass(frozen=True)
class GroupView:
    """What a criterion may know of a group: each member's norm history (epochs, units) and present norms (units,).

    `kinds` is given where pairs will be merged: a pair of one kind can be, of two kinds only nearly (see `records.Wiring`).
    """

    group: ChannelGroup
    histories: list[Tensor]
    norms: list[Tensor]
    distance: str
    generator: torch.Generator
    kinds: tuple[int, ...] = ()


def history_pairs(view: GroupView, count: int) -> Choice:
    """HBFP: the pairs whose norms ran alike; of each the filter with the lower norm goes. Pairs of two kinds come last."""
    distances = _by_kind(pair_distances(view.histories, view.distance), view)
    return Choice(view.group.name, pairs=disjoint_pairs(distances, view.group.channels, count))


def _by_kind(distances: Tensor, view: GroupView) -> Tensor:
    """The distances of all pairs, those of two kinds made larger than all others."""
    if not view.kinds:
        return distances
    kinds = torch.tensor(view.kinds)
    first, second = torch.triu_indices(len(kinds), len(kinds), 1)
    return torch.where(kinds[first] == kinds[second], distances, distances + distances.max() + 1)


def random_pairs(view: GroupView, count: int) -> Choice:
    """Pairs drawn at random, of each the filter with the lower norm goes: the control for how pairs are found."""
    channels = view.group.channels
    distances = torch.rand(channels * (channels - 1) // 2, generator=view.generator)
    return Choice(view.group.name, pairs=disjoint_pairs(_by_kind(distances, view), channels, count))


def smallest_norm(view: GroupView, count: int) -> Choice:
    """The filters with the least norm (`--norm`), summed over the group (arXiv:1608.08710)."""
    return Choice(view.group.name, filters=tuple(sum_norms(view.norms).argsort(stable=True)[:count].tolist()))


def at_random(view: GroupView, count: int) -> Choice:
    """Filters drawn at random: the control that every criterion must beat."""
    drawn = torch.randperm(view.group.channels, generator=view.generator)[:count]
    return Choice(view.group.name, filters=tuple(sorted(drawn.tolist())))


CRITERIA: Mapping[str, Callable[[GroupView, int], Choice]] = {
    "history": history_pairs,
    "random-pairs": random_pairs,
    "magnitude": smallest_norm,
    "l1": smallest_norm,
    "random": at_random,
}


def sum_norms(norms: list[Tensor]) -> Tensor:
    """A group's norm: the sum of its members' (units,)."""
    return torch.stack(norms).sum(0)


def losers(choice: Choice, norms: list[Tensor]) -> tuple[int, ...]:
    """The filters that a choice removes, given the group's present norms: of each pair the lower one (the first if equal)."""
    total = sum_norms(norms)
    weaker = [i if total[i] <= total[j] else j for i, j in choice.pairs]
    return tuple(sorted((*choice.filters, *weaker)))
