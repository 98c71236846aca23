"""Merging: two filters are tied in their weights, then one of them is removed and its readers read the other.

HBFP ties the *norms* of a pair, and filters of equal norm need not be alike. Here the difference of the weights is taken
away while the network trains (the idea of Centripetal SGD, arXiv:1904.03837), and what read the removed filter adds its
weights to those for the one that stays (arXiv:1507.06149). Where the tie is perfect, removal changes nothing.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slimcli.networks.shortcut import ChannelPad
from slimcli.pruning.wiring import listen
from slimcli.records import Maker, Pair, Wiring

Merge = tuple[Wiring, Sequence[Pair]]
"""The pairs of one group that are merged, each as (kept, gone)."""

Factors = list[list[list[float]]]
"""For each merge, each of its readers and each pair: what times the kept unit stands in for the removed one."""


@torch.no_grad()
def is_scalable(model: nn.Module, input_shape: Sequence[int], wiring: Wiring) -> bool:
    """Whether a group's units, times a positive factor in their makers' last parameters, reach every reader times that factor.

    Tried with 16, which is exact, and large enough to leave the range where ReLU6 is linear: ReLU and pooling pass, GELU,
    ReLU6 and a norm on the way fail. The makers' last parameters are those of their norms, where they have one.
    """
    probe = copy.deepcopy(model).cpu().double().eval()
    images = torch.randn(4, *input_shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    before, after = ([torch.zeros(0)] * len(wiring.readers) for _ in range(2))
    listen(probe, images, wiring.readers, before.__setitem__)
    for maker in wiring.makers:
        for parameter in probe.get_submodule(maker.norm or maker.module).parameters(recurse=False):
            parameter.mul_(16)
    listen(probe, images, wiring.readers, after.__setitem__)
    return all(torch.allclose(new, 16 * old, rtol=1e-9, atol=0) for old, new in zip(before, after, strict=True))


@dataclass(frozen=True)
class TiedUnits:
    """The pairs of one group that are tied, and how: `scalable` ones up to a positive factor, others to equality."""

    wiring: Wiring
    pairs: tuple[Pair, ...]
    scalable: bool


class WeightTie:
    """Takes the differences between the units of each pair away, step by step; call it after every optimizer step.

    The differences shrink to nothing over the first fifth of a phase (while the learning rate rises, under `onecycle`); then
    the pairs are kept equal, so that the network is trained as what it will be after the removal.

    In a `scalable` group only the directions of a pair's last parameters (all makers' together) are made equal, its lengths
    stay: such units differ by a factor. All other parameters, and batch norm's statistics, are drawn to the pair's mean.
    A norm's negative scale and the sign of the filter before it are turned together: that is the same function.
    """

    def __init__(self, ties: Sequence[TiedUnits]) -> None:
        self._ties = ties

    @torch.no_grad()
    def __call__(self, model: nn.Module, done: int, steps: int) -> None:
        """Draw the pairs together after the step number `done` of so many."""
        share = 1 / max(1, steps // 5 - done + 1)
        for tie in self._ties:
            scaled: list[_Rows] = []
            for maker in tie.wiring.makers:
                equal, last = _rows_of(model, maker, tie.pairs)
                scaled += last if tie.scalable else []
                for rows in equal if tie.scalable else [*equal, *last]:
                    first, second = rows.read()
                    middle = (first + second) / 2
                    rows.write(first.lerp(middle, share), second.lerp(middle, share))
            if scaled:
                _turn(scaled, share)


@torch.no_grad()
def lengths(model: nn.Module, wiring: Wiring, units: int) -> Tensor:
    """How long each unit's last parameters are, all makers' together: (units,), float64. Of a pair the longer should stay."""
    each = [(unit, unit) for unit in range(units)]
    read = [rows.read()[0] for maker in wiring.makers for rows in _rows_of(model, maker, each)[1]]
    return torch.cat(read, 1).double().norm(dim=1).cpu() if read else torch.ones(units, dtype=torch.float64)


@torch.no_grad()
def factors_of(model: nn.Module, images: Iterator[Tensor], merges: Sequence[Merge]) -> Factors:
    """The factors by which the kept units stand in for the removed ones best.

    That is the least-squares factor over what reaches the reader for these images; exact where the two are proportional,
    and the ratio of their lengths where neither was ever active. Never negative.
    """
    of_reader = [(reader, list(pairs)) for wiring, pairs in merges for reader in wiring.readers]
    sums = [torch.zeros(3, len(pairs), dtype=torch.float64) for _, pairs in of_reader]

    def add(number: int, values: Tensor) -> None:
        kept, gone = (values.flatten(1)[list(units)].double() for units in zip(*of_reader[number][1], strict=True))
        sums[number] += torch.stack([(kept * kept).sum(1), (kept * gone).sum(1), (gone * gone).sum(1)]).cpu()

    for batch in images:
        listen(model, batch, [reader for reader, _ in of_reader], add)
    remaining = iter(sums)
    factors: Factors = []
    for wiring, pairs in merges:
        long = lengths(model, wiring, len(wiring.kinds))
        ratios = torch.stack([long[gone] / long[kept] for kept, gone in pairs])
        factors.append([_least_squares(next(remaining), ratios) for _ in wiring.readers])
    return factors


def _least_squares(sums: Tensor, ratios: Tensor) -> list[float]:
    kept, both, gone = sums
    factors = torch.where(kept > 0, both / kept, torch.where(gone > 0, 0.0, ratios))
    return [float(factor) for factor in factors.nan_to_num(0.0, 0.0, 0.0).clamp(min=0)]


@torch.no_grad()
def merge(model: nn.Module, merges: Sequence[Merge], factors: Factors) -> None:
    """Let every reader of a removed unit read the kept one times its factor instead, in place: before the unit is removed.

    A grouped conv can do so only where both units belong to the same of its groups.
    """
    for (wiring, pairs), of_readers in zip(merges, factors, strict=True):
        for reader, of_pairs in zip(wiring.readers, of_readers, strict=True):
            module = model.get_submodule(reader.module)
            for (kept, gone), factor in zip(pairs, of_pairs, strict=True):
                for stays, goes in zip(reader.inputs[kept], reader.inputs[gone], strict=True):
                    _redirect(module, stays, goes, factor)


def silent_units(model: nn.Module, images: Iterator[Tensor], wirings: Sequence[Wiring]) -> list[int]:
    """For each group how many of its units are zero at all their readers, for all these images."""
    readers = [reader for wiring in wirings for reader in wiring.readers]
    active = [torch.zeros(len(reader.inputs), dtype=torch.bool) for reader in readers]

    def look(number: int, values: Tensor) -> None:
        active[number] |= (values != 0).flatten(1).any(1).cpu()

    for batch in images:
        listen(model, batch, readers, look)
    of_readers = iter(active)
    return [
        sum(1 for each in zip(*(next(of_readers) for _ in wiring.readers), strict=True) if not any(each)) for wiring in wirings
    ]


def _redirect(module: nn.Module, stays: int, goes: int, factor: float) -> None:
    if isinstance(module, ChannelPad):
        module.merge_input(stays, goes, factor)
    elif isinstance(module, nn.Linear):
        module.weight[:, stays] += factor * module.weight[:, goes]
    elif isinstance(module, _ConvTransposeNd):
        width = module.weight.shape[0] // module.groups
        if stays // width == goes // width:
            module.weight[stays] += factor * module.weight[goes]
    elif isinstance(module, _ConvNd):
        width, outputs = module.weight.shape[1], module.weight.shape[0] // module.groups
        if stays // width == goes // width:
            rows = slice(stays // width * outputs, (stays // width + 1) * outputs)
            module.weight[rows, stays % width] += factor * module.weight[rows, goes % width]


@dataclass(frozen=True)
class _Rows:
    """Rows of one tensor, (pairs, rows of a unit) for the first and the second unit of each pair. `signs` turn the second."""

    tensor: Tensor
    first: Tensor
    second: Tensor
    signs: Tensor | None = None

    def read(self) -> tuple[Tensor, Tensor]:
        """Both units' values, each (pairs, values), the second ones turned."""
        return self.tensor[self.first].flatten(1), self._turned(self.tensor[self.second]).flatten(1)

    def write(self, first: Tensor, second: Tensor) -> None:
        """Put them back."""
        shape = (*self.first.shape, *self.tensor.shape[1:])
        self.tensor[self.first] = first.reshape(shape)
        self.tensor[self.second] = self._turned(second.reshape(shape))

    def _turned(self, values: Tensor) -> Tensor:
        return values if self.signs is None else values * self.signs.reshape(*self.signs.shape, *(1,) * (values.ndim - 2))


def _rows_of(model: nn.Module, maker: Maker, pairs: Sequence[Pair]) -> tuple[list[_Rows], list[_Rows]]:
    """A maker's trainable tensors at the pairs' units: those that must be equal, and its last parameters."""
    module = model.get_submodule(maker.module)
    if isinstance(module, _ConvTransposeNd) and 1 < module.groups < module.out_channels:
        return [], []  # no axis of its weight has the filters
    device = next(model.parameters()).device
    first, second = _indices(maker, tuple(pairs), device)
    own: list[Tensor] = [each for each in module.parameters(recurse=False) if each.requires_grad]
    if isinstance(module, _ConvTransposeNd) and module.groups == 1:  # its weight has the outputs on the second axis
        own = [each.transpose(0, 1) if each.ndim > 1 else each for each in own]
    per_row = 1 + max(max(rows) for rows in maker.rows)
    own = [each for each in own if each.ndim and len(each) >= per_row]  # not PReLU's one slope for all channels
    if not own and any(True for _ in module.parameters(recurse=False)):
        return [], []  # frozen: a tie may not change it
    if not maker.norm:
        statistics = [each for each in module.buffers(recurse=False) if each.is_floating_point() and each.ndim]
        return [_Rows(each, first, second) for each in statistics], [_Rows(each, first, second) for each in own]
    norm = model.get_submodule(maker.norm)
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    signs = None
    last: list[_Rows] = []
    if norm.affine:
        signs = torch.where((norm.weight[first] < 0) == (norm.weight[second] < 0), 1.0, -1.0).to(norm.weight)
        last = [_Rows(norm.weight, first, second, signs)] if norm.weight.requires_grad else []
        last += [_Rows(norm.bias, first, second)] if norm.bias.requires_grad else []
    equal = [_Rows(each, first, second, signs) for each in own]
    if norm.running_mean is not None and norm.running_var is not None:
        equal += [_Rows(norm.running_mean, first, second, signs), _Rows(norm.running_var, first, second)]
    return equal, last


@lru_cache(maxsize=1024)
def _indices(maker: Maker, pairs: tuple[Pair, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """The rows of the first and of the second units, (pairs, rows of a unit); the same at every step of a phase."""
    first, second = (torch.tensor([maker.rows[pair[side]] for pair in pairs], device=device) for side in (0, 1))
    return first, second


def _turn(scaled: Sequence[_Rows], share: float) -> None:
    """Turn the vectors that each unit's rows make up together towards each other; their lengths stay."""
    read = [rows.read() for rows in scaled]
    widths = [first.shape[1] for first, _ in read]
    vectors = [torch.cat([pair[side] for pair in read], 1) for side in (0, 1)]
    long = [vector.norm(dim=1, keepdim=True) for vector in vectors]
    middle = nn.functional.normalize(vectors[0] + vectors[1], dim=1)
    turned = []
    for vector, length in zip(vectors, long, strict=True):
        direction = nn.functional.normalize(vector, dim=1).lerp(middle, share)
        turned.append(length * nn.functional.normalize(direction, dim=1))
    for rows, first, second in zip(scaled, turned[0].split(widths, 1), turned[1].split(widths, 1), strict=True):
        rows.write(first, second)
