"""HBFP's tie penalty: what pulls the norms of a pair together before one of the two is removed (Eq. 7-8)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn

Norms = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TiedPair:
    """Two units of a channel group: for each member layer the output channels (first, second) that belong to them."""

    members: tuple[tuple[str, int, int], ...]


def tie(model: nn.Module, pairs: Sequence[TiedPair], norms: Norms) -> Tensor:
    """The gap between the norms of a pair, relative to their (detached) size, averaged over the pairs; in [0, 2].

    A group's gap is the sum of its members' gaps. Eq. 7's exponential of the raw sum cannot be trained on (the sum is 15
    to 25 on LeNet-5); this form has a slope that does not depend on how large the norms are. A pair of nearly dead
    filters counts as if it had a tenth of its layers' mean norm: otherwise its slope would be without bound.
    """
    gaps, sizes = _gaps(model, pairs, norms)
    return (gaps / sizes.detach()).sum() / max(1, len(pairs))


def exponential_tie(
    model: nn.Module, pairs: Sequence[TiedPair], norms: Norms, bound: float = 1.0, max_slope: float = 0.03
) -> Tensor:
    """Eq. 7, exp(sum of gaps), continued by its tangent above `bound` and scaled so that its slope is at most `max_slope`."""
    total = _gaps(model, pairs, norms)[0].sum()
    below = total.clamp(max=bound).exp()
    return max_slope / math.exp(bound) * (below + math.exp(bound) * (total - bound).clamp(min=0))


def _gaps(model: nn.Module, pairs: Sequence[TiedPair], norms: Norms) -> tuple[Tensor, Tensor]:
    """For each pair: the sum of its members' absolute norm differences, and half the sum of its norms (floored)."""
    reference = next(model.parameters())
    gaps = torch.zeros(len(pairs), dtype=torch.float64, device=reference.device)
    sizes = torch.zeros_like(gaps)
    for layer, (index, first, second) in _by_layer(tuple(pairs), reference.device).items():
        values = norms(model.get_submodule(layer).weight)  # type: ignore[arg-type]
        gaps = gaps.index_add(0, index, (values[first] - values[second]).abs())
        floor = values.mean().clamp(min=1e-6) / 10
        sizes = sizes.index_add(0, index, ((values[first] + values[second]) / 2).clamp(min=floor))
    return gaps, sizes


@lru_cache(maxsize=4)
def _by_layer(pairs: tuple[TiedPair, ...], device: torch.device) -> dict[str, Tensor]:
    """For each layer the rows (number of the pair, first channel, second channel); the same at every step of a phase."""
    entries: dict[str, list[tuple[int, int, int]]] = {}
    for index, pair in enumerate(pairs):
        for layer, first, second in pair.members:
            entries.setdefault(layer, []).append((index, first, second))
    return {layer: torch.tensor(rows, device=device).T.contiguous() for layer, rows in entries.items()}


PENALTIES: dict[str, Callable[[nn.Module, Sequence[TiedPair], Norms], Tensor]] = {"tie": tie, "exp": exponential_tie}
