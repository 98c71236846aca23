"""How many filters go in one iteration."""

from __future__ import annotations

import math
from collections.abc import Sequence

from slimcli.errors import SettingsError
from slimcli.records import ChannelGroup


class Amount:
    """A share of each group's present channels (`10%`, rounded up, at least one), or counts (`2`, or one per group `2,5`).

    Where a network has more groups than counts are given, the counts belong to its widths in ascending order: `2,4,8` for
    the three stages of a CIFAR ResNet. At most half of a group goes at once (pairs are disjoint), and one always stays.
    """

    def __init__(self, text: str, groups: Sequence[ChannelGroup]) -> None:
        self._share: float | None = None
        self._counts: dict[str, int] = {}
        if text.endswith("%"):
            try:
                self._share = float(text[:-1]) / 100
            except ValueError:
                raise _not_understood(text) from None
            if not 0 < self._share <= 0.5:
                raise SettingsError(f"--amount {text} is outside (0 %, 50 %]", "at most half of a layer goes in one iteration")
            return
        if not all(part.strip().isdecimal() and int(part) > 0 for part in text.split(",")):
            raise _not_understood(text)
        self._counts = per_group("--amount", [int(part) for part in text.split(",")], groups)

    def of(self, group: ChannelGroup) -> int:
        """How many of the group's channels go now."""
        wanted = max(1, math.ceil(round(self._share * group.channels, 9))) if self._share else self._counts[group.name]
        return min(wanted, group.channels // 2)


def per_group(flag: str, numbers: Sequence[int], groups: Sequence[ChannelGroup]) -> dict[str, int]:
    """One number for each group by name: the same for all, one per group in order, or one per distinct width ascending."""
    widths = sorted({group.channels for group in groups})
    if len(numbers) == 1:
        return {group.name: numbers[0] for group in groups}
    if len(numbers) == len(groups):
        return {group.name: number for group, number in zip(groups, numbers, strict=True)}
    if len(numbers) == len(widths):
        return {group.name: numbers[widths.index(group.channels)] for group in groups}
    raise SettingsError(
        f"{flag} has {len(numbers)} numbers, the network {len(groups)} prunable groups of {len(widths)} widths",
        "give one number, one per group, or one per width",
    )


def _not_understood(text: str) -> SettingsError:
    return SettingsError(f"--amount {text!r} is not understood", "give a percentage (10%) or counts (2,4,8)")
