"""Which filters go. A criterion looks at one channel group and returns a `Choice`; it never edits a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from slimcli.pruning.history import filter_norms
from slimcli.pruning.pairs import disjoint_pairs, pair_distances
from slimcli.records import ChannelGroup, Choice


@dataclass(frozen=True)
class GroupView:
    """What a criterion may know of a group: each member's norm history (epochs, units) and present weights (units, fan-in).

    `kinds` is given where pairs will be merged: a pair of one kind can be, of two kinds only nearly (see `records.Wiring`).
    `scores` (units,) is what was measured on the network, for a criterion of `scores.MEASURES`.
    """

    group: ChannelGroup
    histories: list[Tensor]
    weights: list[Tensor]
    generator: torch.Generator
    norm: str = "l1"
    distance: str = "l1"
    kinds: tuple[int, ...] = ()
    scores: Tensor | None = None


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


def correlated_pairs(view: GroupView, count: int) -> Choice:
    """CFP (arXiv:1811.10559): the pairs whose weights are most correlated, by absolute Pearson correlation, the mean over the
    group; of each the filter with the lower norm goes.
    """
    alike = torch.stack([_correlations(weights) for weights in view.weights]).mean(0)
    first, second = torch.triu_indices(len(alike), len(alike), 1)
    return Choice(view.group.name, pairs=disjoint_pairs(_by_kind(-alike[first, second], view), view.group.channels, count))


def _correlations(weights: Tensor) -> Tensor:
    """(units, units): of the units' weights; 0 for one whose weights are all the same."""
    centred = weights.double() - weights.double().mean(1, keepdim=True)
    rows = F.normalize(centred, dim=1)
    return (rows @ rows.T).abs()


def smallest_norm(view: GroupView, count: int) -> Choice:
    """The filters with the least norm (`--norm`), summed over the group."""
    return _lowest(view, _norms(view, view.norm), count)


def smallest_l1(view: GroupView, count: int) -> Choice:
    """The filters with the least sum of absolute weights (arXiv:1608.08710)."""
    return _lowest(view, _norms(view, "l1"), count)


def smallest_l2(view: GroupView, count: int) -> Choice:
    """The filters with the least Euclidean norm."""
    return _lowest(view, _norms(view, "l2"), count)


def nearest_to_the_median(view: GroupView, count: int) -> Choice:
    """FPGM (arXiv:1811.00250): the filters with the least distances to the others of their layer, summed over the group."""
    distances = [torch.cdist(weights.double(), weights.double()).sum(1) for weights in view.weights]
    return _lowest(view, torch.stack(distances).sum(0), count)


def lowest_score(view: GroupView, count: int) -> Choice:
    """The filters for which the least was measured (`scores.MEASURES`)."""
    assert view.scores is not None
    return _lowest(view, view.scores, count)


def _norms(view: GroupView, norm: str) -> Tensor:
    return sum_norms([filter_norms(weights, norm) for weights in view.weights])


def _lowest(view: GroupView, importance: Tensor, count: int) -> Choice:
    return Choice(view.group.name, filters=tuple(importance.argsort(stable=True)[:count].tolist()))


def at_random(view: GroupView, count: int) -> Choice:
    """Filters drawn at random: the control that every criterion must beat."""
    drawn = torch.randperm(view.group.channels, generator=view.generator)[:count]
    return Choice(view.group.name, filters=tuple(sorted(drawn.tolist())))


CRITERIA: Mapping[str, Callable[[GroupView, int], Choice]] = {
    "history": history_pairs,
    "random-pairs": random_pairs,
    "cfp": correlated_pairs,
    "magnitude": smallest_norm,
    "l1": smallest_l1,
    "l2": smallest_l2,
    "fpgm": nearest_to_the_median,
    "bn": lowest_score,
    "taylor": lowest_score,
    "hrank": lowest_score,
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
