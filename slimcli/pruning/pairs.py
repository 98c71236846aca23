"""HBFP's pairs: filters whose norms ran alike over the training history (Eq. 5-6)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from slimcli.records import Pair


def pair_distances(histories: Sequence[Tensor], distance: str = "l1") -> Tensor:
    """Eq. 5-6 for every pair (i, j), i < j, in row-major order: shape (n (n - 1) / 2,).

    `histories` holds (epochs, n) norms, one tensor per member of a channel group; a group's distance is the sum of its
    members'. `l1` is the paper's sum over epochs of absolute differences, `l2` the Euclidean distance of the histories,
    `cosine` one minus the cosine of the angle between them.
    """
    total = torch.zeros(())
    for history in histories:
        rows = history.T.contiguous()
        if distance == "cosine":
            # |a - b|^2 / 2 = 1 - cos(a, b) for vectors of length 1; rows of zeros (dead filters) stay at zero.
            member = F.pdist(F.normalize(rows, dim=1), p=2).square() / 2
        else:
            member = F.pdist(rows, p={"l1": 1, "l2": 2}[distance])
        total = total + member
    return total


def disjoint_pairs(distances: Tensor, filters: int, count: int) -> tuple[Pair, ...]:
    """The `count` least distant pairs of which no two share a filter, nearest first, ties by index.

    At most `filters // 2` pairs exist. `distances` is what `pair_distances` gave for that many filters.
    """
    count = min(count, filters // 2)
    distances = distances.nan_to_num(nan=torch.inf, posinf=torch.inf)
    looked_at = 4 * count
    while True:
        # Few pairs are wanted of very many: look at the nearest ones, and at more only if too many share filters.
        chosen = _greedy(_nearest(distances, min(looked_at, len(distances))), filters, count)
        if len(chosen) == count:
            return chosen
        looked_at *= 8


def _nearest(distances: Tensor, count: int) -> Tensor:
    """Positions of the `count` least distances (and of all that equal the last), ascending, ties by position."""
    if count == 0:
        return torch.empty(0, dtype=torch.int64)
    threshold = distances.topk(count, largest=False).values[-1]
    positions = (distances <= threshold).nonzero().flatten()
    return positions[distances[positions].argsort(stable=True)]


def _greedy(positions: Tensor, filters: int, count: int) -> tuple[Pair, ...]:
    """The first `count` pairs at these positions of the upper triangle that share no filter with an earlier one."""
    rows = torch.arange(filters - 1)
    row_starts = rows * (2 * filters - rows - 1) // 2
    first = torch.searchsorted(row_starts, positions, right=True) - 1
    second = positions - row_starts[first] + first + 1
    used: set[int] = set()
    chosen: list[Pair] = []
    for pair in zip(first.tolist(), second.tolist(), strict=True):
        if len(chosen) == count:
            break
        if used.isdisjoint(pair):
            used.update(pair)
            chosen.append(pair)
    return tuple(chosen)
