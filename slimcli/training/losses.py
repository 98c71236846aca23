"""What a network is trained towards beside its labels: HBFP's tie of norms (Eq. 7-8), and a teacher's outputs."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcli.networks.layers import by_filter, layers_of
from slimcli.networks.modes import keeps_layout

Norms = Callable[[Tensor], Tensor]
Penalty = Callable[[nn.Module], Tensor]
Constraint = Callable[[nn.Module, int, int], None]
"""Called as `constraint(model, done, steps)` after every optimizer step: how many are done, of how many in this phase."""


class Teacher:
    """A trained network whose softened outputs are taught beside the labels (arXiv:1503.02531).

    The loss becomes `(1 - weight) * loss + weight * T^2 * KL(teacher || student)`, both at temperature T. The teacher sees
    the very images that the student sees (arXiv:2106.05237), and is not trained.
    """

    def __init__(self, model: nn.Module, weight: float, temperature: float, macs: int = 0) -> None:
        self._model = copy.deepcopy(model).eval().requires_grad_(False)
        if not keeps_layout(self._model):
            self._model.to(memory_format=torch.channels_last)
        self._weight, self._temperature = weight, temperature
        self.macs = macs

    def blend(self, loss: Tensor, logits: Tensor, images: Tensor) -> Tensor:
        """The loss with the teacher's share in it; `logits` (B, classes) are the student's for these images, in float32."""
        with torch.no_grad():
            taught = self._model(images).float()
        soft = [torch.log_softmax(each.float() / self._temperature, 1) for each in (logits, taught)]
        distance = F.kl_div(soft[0], soft[1], log_target=True, reduction="batchmean")
        return (1 - self._weight) * loss + self._weight * self._temperature**2 * distance


@dataclass(frozen=True)
class Objective:
    """What a phase trains towards beside cross-entropy: a term of the loss, a teacher, a constraint on the weights."""

    penalty: Penalty | None = None
    teacher: Teacher | None = None
    constraint: Constraint | None = None


PLAIN = Objective()
"""Cross-entropy alone."""


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


def correlation(model: nn.Module, pairs: Sequence[TiedPair], norms: Norms) -> Tensor:
    """CFP's regulariser (arXiv:1811.10559): exp(-absolute correlation of a pair's weights); in (0, 1].

    The mean over the pairs stands for their sum: the slope of exp(-sum) is nothing where there are more than a few pairs. A
    group's correlation is the mean of its members'.
    """
    reference = next(model.parameters())
    total = torch.zeros((), dtype=torch.float64, device=reference.device)
    members = torch.tensor([len(pair.members) for pair in pairs], device=reference.device)
    layers = layers_of(model)
    for layer, (index, first, second) in _by_layer(tuple(pairs), reference.device).items():
        weights = by_filter(layers[layer]).flatten(1).double()
        rows = F.normalize(weights - weights.mean(1, keepdim=True), dim=1)
        total = total + ((rows[first] * rows[second]).sum(1).abs() / members[index]).sum()
    return (-total / max(1, len(pairs))).exp()


def batch_norm_scales(model: nn.Module) -> Tensor:
    """Network Slimming's sparsity term (arXiv:1708.06519): 1e-4 times the sum of all batch norms' absolute scales."""
    scales = [m.weight for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.affine]
    return 1e-4 * torch.stack([scale.double().abs().sum() for scale in scales]).sum()


def _gaps(model: nn.Module, pairs: Sequence[TiedPair], norms: Norms) -> tuple[Tensor, Tensor]:
    """For each pair: the sum of its members' absolute norm differences, and half the sum of its norms (floored)."""
    reference = next(model.parameters())
    gaps = torch.zeros(len(pairs), dtype=torch.float64, device=reference.device)
    sizes, layers = torch.zeros_like(gaps), layers_of(model)
    for layer, (index, first, second) in _by_layer(tuple(pairs), reference.device).items():
        values = norms(by_filter(layers[layer]))
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


PENALTIES: dict[str, Callable[[nn.Module, Sequence[TiedPair], Norms], Tensor]] = {
    "tie": tie,
    "exp": exponential_tie,
    "correlation": correlation,
}
"""Of the pairs that were chosen."""
