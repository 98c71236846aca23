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
    chosen: list[Pair] = []
    used = torch.zeros(filters, dtype=torch.bool)
    candidates = 4 * count
    first, second = torch.triu_indices(filters, filters, 1)
    while len(chosen) < count:
        # Few pairs are needed: take the nearest ones first, more only if too many of them share filters.
        free = (~used[first] & ~used[second]).nonzero().flatten()
        if len(free) > candidates:
            threshold = distances[free].kthvalue(candidates).values
            free = free[distances[free] <= threshold]
        for index in free[distances[free].argsort(stable=True)].tolist():
            i, j = int(first[index]), int(second[index])
            if not used[i] and not used[j]:
                used[i] = used[j] = True
                chosen.append((i, j))
                if len(chosen) == count:
                    break
        candidates *= 4
    return tuple(chosen)
