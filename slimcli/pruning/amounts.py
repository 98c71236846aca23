"""How much goes in one iteration: filters of each channel group, or weights of each layer."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Protocol

from torch import Tensor

from slimcli.errors import SettingsError
from slimcli.pruning.sparsity import sap_amount, sap_share
from slimcli.records import ChannelGroup

ADAPTIVE = "pq"
"""The amount that follows from how sparse the weights are."""


class Amount(Protocol):
    """How much goes now. `weights` are each layer's weights by its name."""

    def filters(self, group: ChannelGroup, weights: Mapping[str, Tensor]) -> int:
        """How many of the group's units go; one always stays."""

    def weights(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        """How many of each layer's living weights, given as a vector, go; one always stays."""


class Fixed:
    """A share of each group's present channels (`10%`, rounded up, at least one), or counts (`2`, or one per group `2,5`).

    Where a network has more groups than counts are given, the counts belong to its widths in ascending order: `2,4,8` for
    the three stages of a CIFAR ResNet. At most half of a group goes at once (pairs are disjoint), and one always stays. Of
    single weights any share may go.
    """

    def __init__(self, text: str, groups: Sequence[ChannelGroup], single_weights: bool = False) -> None:
        self._text = text
        self._share: float | None = None
        self._counts: dict[str, int] = {}
        if text.endswith("%"):
            try:
                self._share = float(text[:-1]) / 100
            except ValueError:
                raise _not_understood(text) from None
            most, why = (
                (0.99, "some weights must stay") if single_weights else (0.5, "at most half of a layer's filters go at once")
            )
            if not 0 < self._share <= most:
                raise SettingsError(f"--amount {text} is outside (0 %, {100 * most:g} %]", why)
            return
        if not all(part.strip().isdecimal() and int(part) > 0 for part in text.split(",")):
            raise _not_understood(text)
        self._counts = per_group("--amount", [int(part) for part in text.split(",")], groups)

    def filters(self, group: ChannelGroup, weights: Mapping[str, Tensor] | None = None) -> int:
        """How many of the group's units go now: where one has several channels, as many as hold those asked for."""
        return max(0, min(math.ceil(self.asked(group) / group.per_unit), group.channels // 2, group.channels - group.least))

    def asked(self, group: ChannelGroup) -> int:
        """How many of its channels should go now, if nothing but the amount had a say."""
        return max(1, math.ceil(round(self._share * group.width, 9))) if self._share else self._counts[group.name]

    def weights(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        """The share of each layer's living weights, rounded down."""
        if self._share is None:
            raise SettingsError(
                f"--amount {self._text} counts filters", "with --granularity weight give a percentage (20%) or pq"
            )
        wanted = {name: math.floor(round(self._share * len(vector), 9)) for name, vector in weights.items()}
        return {name: min(count, len(weights[name]) - 1) for name, count in wanted.items()}


class Adaptive:
    """SAP's step: the share that the PQ-index of the living weights allows, layer by layer or for all layers together.

    Of filters the same share goes as would go of their weights: the PQ-index of the filters' norms is near zero, because a sum
    over many weights hardly varies, and would remove almost nothing.
    """

    def __init__(self, p: float, q: float, gamma: float, beta: float, eta: float, scope: str) -> None:
        self._step = (p, q, gamma, beta, eta)
        self._together = scope == "global"

    def filters(self, group: ChannelGroup, weights: Mapping[str, Tensor]) -> int:
        """How many of the group's units go now."""
        return min(
            math.floor(sap_share(self._members(group, weights), *self._step) * group.channels), group.channels - group.least
        )

    def shares(self, group: ChannelGroup, weights: Mapping[str, Tensor]) -> dict[str, float]:
        """The share that SAP's step takes: `weights`, which counts, and `norms`, as it would be over the l2-norms of filters."""
        members = self._members(group, weights)
        norms = [weight.flatten(1).norm(dim=1) for weight in members]
        return {"weights": sap_share(members, *self._step), "norms": sap_share(norms, *self._step)}

    def _members(self, group: ChannelGroup, weights: Mapping[str, Tensor]) -> list[Tensor]:
        return list(weights.values()) if self._together else [weights[layer] for layer in group.layers]

    def weights(self, weights: Mapping[str, Tensor]) -> dict[str, int]:
        """How many of each layer's living weights go; together, each layer's part of the whole is only nominal."""
        if self._together:
            share = sap_share(weights.values(), *self._step)
            return {name: min(math.floor(share * len(vector)), len(vector) - 1) for name, vector in weights.items()}
        return {name: sap_amount(vector, *self._step) for name, vector in weights.items()}


def per_group(flag: str, numbers: Sequence[int], groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """One number for each group by name: the same for all, one per group in order, or one per distinct width ascending."""
    widths = sorted({group.width for group in groups})
    if len(numbers) == 1:
        return {group.name: numbers[0] for group in groups}
    if len(numbers) == len(groups):
        return {group.name: number for group, number in zip(groups, numbers, strict=True)}
    if len(numbers) == len(widths):
        return {group.name: numbers[widths.index(group.width)] for group in groups}
    raise SettingsError(
        f"{flag} has {len(numbers)} numbers, the network {len(groups)} prunable groups of {len(widths)} widths",
        "give one number, one per group, or one per width",
    )


def _not_understood(text: str) -> SettingsError:
    return SettingsError(f"--amount {text!r} is not understood", "give a percentage (10%), counts (2,4,8) or pq")
