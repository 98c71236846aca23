"""How far one flow is from another, of what both have."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slimcli.settings import FLOW_DISTANCES


@dataclass(frozen=True)
class Gap:
    """How far a network's flow is from the dense network's: `total` over all, and each part's own by its name."""

    total: float
    parts: dict[str, float]

    def furthest(self, count: int = 3) -> list[tuple[str, float]]:
        """The parts that are furthest away."""
        return sorted(self.parts.items(), key=lambda part: -part[1])[:count]


def gap(now: Mapping[Any, Tensor], dense: Mapping[Any, Tensor], distance: str = "relative") -> Gap:
    """The distance of two flows with the same parts.

    `relative` is `||now - dense|| / ||dense||` over all entries of all parts, `absolute` the same undivided, `cosine` one
    minus the cosine of the angle between them.
    """
    if distance not in FLOW_DISTANCES:
        raise ValueError(f"there is no distance {distance!r} of flows, known are: {', '.join(FLOW_DISTANCES)}")
    sums = {key: _products(now[key], reference) for key, reference in dense.items()}
    difference, reference, present = (math.fsum(column) for column in zip(*sums.values(), strict=True))
    parts = {_name(key): _distance(*part, distance) for key, part in sums.items()}
    return Gap(_distance(difference, reference, present, distance), parts)


def _products(now: Tensor, dense: Tensor) -> tuple[float, float, float]:
    """Squared difference, squared norm of the dense one, squared norm of the present one, and with them their product."""
    present, reference = now.double(), dense.double()
    return float((present - reference).square().sum()), float(reference.square().sum()), float(present.square().sum())


def _distance(difference: float, dense: float, now: float, distance: str) -> float:
    if distance == "absolute":
        return math.sqrt(difference)
    if distance == "relative":
        return math.sqrt(difference / dense) if dense else float(difference > 0)
    if not dense or not now:
        return float(dense != now)
    return max(0.0, 1 - (dense + now - difference) / (2 * math.sqrt(dense) * math.sqrt(now)))


def _name(key: str | tuple[str, str]) -> str:
    return key if isinstance(key, str) else " -> ".join(key)


def surviving(flow: Mapping[tuple[str, str], Tensor], removed: Mapping[str, Sequence[int]]) -> dict[tuple[str, str], Tensor]:
    """An information flow without the rows and columns of the removed filters (in the numbering of the flow's network)."""

    def kept(tensor: Tensor, layer: str, axis: int) -> Tensor:
        gone = set(removed.get(layer, ()))
        left = [unit for unit in range(tensor.shape[axis]) if unit not in gone]
        return tensor.index_select(axis, torch.tensor(left)) if gone else tensor

    return {key: kept(kept(matrix, key[0], 0), key[1], 1) for key, matrix in flow.items()}
