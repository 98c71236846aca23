"""Widths that the hardware likes: multiples of a number of channels, as large as a budget allows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from slimcli.records import ChannelGroup

_FINEST = 1024
"""In how many steps the common share of all widths is looked for."""


def widths_within(
    groups: Sequence[ChannelGroup], multiple: int, fits: Callable[[Mapping[str, int]], bool]
) -> tuple[float, dict[str, int]] | None:
    """The units that each group keeps, such that its channels are a multiple (or all that it has), and at least one multiple.

    First the largest share of the dense widths, the same for all groups and rounded to the nearest multiple in each, for which
    `fits(units)`; then groups are widened a step at a time, those first that lost most, until no step fits. With the share.
    None where not even one multiple in every group fits.
    """
    steps = {group.name: multiple // math.gcd(multiple, group.per_unit) for group in groups}
    choices = {group.name: _choices(group, steps[group.name]) for group in groups}
    channels = {group.name: group.channels for group in groups}

    def at(share: float) -> dict[str, int]:
        return {name: min(choices[name], key=lambda units: (abs(units - share * channels[name]), -units)) for name in channels}

    if not fits(at(0)):
        return None
    low, high = 0, _FINEST + 1  # fits, does not fit (or is more than all)
    while high - low > 1:
        middle = (low + high) // 2
        if middle <= _FINEST and (at(middle / _FINEST) == at(low / _FINEST) or fits(at(middle / _FINEST))):
            low = middle
        else:
            high = middle
    share = low / _FINEST
    units = at(share)
    while grown := _one_wider(units, channels, choices, fits):
        units = grown
    return share, units


def _one_wider(
    units: Mapping[str, int],
    channels: Mapping[str, int],
    choices: Mapping[str, Sequence[int]],
    fits: Callable[[Mapping[str, int]], bool],
) -> dict[str, int] | None:
    """The same with one group a step wider: of those where that fits the one that has lost most. None where there is none."""
    for name in sorted(units, key=lambda name: units[name] / channels[name]):
        wider = next((each for each in choices[name] if each > units[name]), None)
        if wider is not None and fits({**units, name: wider}):
            return {**units, name: wider}
    return None


def _choices(group: ChannelGroup, step: int) -> list[int]:
    """The units that a group may have: every multiple below its own number, and that."""
    return [*(units for units in range(step, group.channels, step) if units >= group.least), group.channels]
