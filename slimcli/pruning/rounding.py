"""Widths that the hardware likes: multiples of a number of channels, near the even share of what a budget leaves."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from slimcli.records import ChannelGroup

_FINEST = 1024
"""In how many steps the common share of all widths is looked for."""

Fits = Callable[[Mapping[str, int]], bool]
"""Whether the budget is met with so many units of each group."""


def widths_within(
    groups: Sequence[ChannelGroup], multiples: Mapping[str, int], fits: Fits
) -> tuple[float, dict[str, int]] | None:
    """The units that each group keeps, such that its channels are a multiple of its number in `multiples` (or all that it has),
    and at least one multiple; with the share of the dense widths that they lie around.

    That share is the largest, the same for all groups, for which unrounded widths fit. Each group takes the multiple just below
    it (or below a smaller share, where one multiple is much for some of them), or the next one where that fits; or the one
    before, where another group's next one is worth more: what is least is the sum of the squared shares lost. None where not
    even one multiple in every group fits.
    """
    choices = {group.name: choices_of(group, multiples[group.name]) for group in groups}
    channels = {group.name: group.channels for group in groups}

    def below(share: float) -> dict[str, int]:
        return {
            name: max((units for units in choices[name] if units <= share * channels[name]), default=choices[name][0])
            for name in channels
        }

    def even(share: float) -> dict[str, int]:
        return {group.name: max(group.least, round(share * group.channels)) for group in groups}

    if not fits(below(0)):
        return None
    share = _largest(even, fits, _FINEST)
    units = below(_largest(below, fits, round(share * _FINEST)))
    near = {name: _around(choices[name], units[name]) for name in units}
    while better := _exchanged(units, channels, near, fits):
        units = better
    return share, units


def _around(choices: Sequence[int], at: int) -> list[int]:
    """This choice with the one before and the one after."""
    position = choices.index(at)
    return list(choices[max(0, position - 1) : position + 2])


def _exchanged(
    units: Mapping[str, int], channels: Mapping[str, int], choices: Mapping[str, Sequence[int]], fits: Fits
) -> dict[str, int] | None:
    """With one group a step wider and, as far as needed, others narrower, where less is lost so; None where it never is."""

    def lost(units: Mapping[str, int]) -> float:
        return sum((1 - units[name] / channels[name]) ** 2 for name in units)

    def stepped(units: Mapping[str, int], name: str, by: int) -> dict[str, int] | None:
        position = choices[name].index(units[name]) + by
        return {**units, name: choices[name][position]} if 0 <= position < len(choices[name]) else None

    for name in sorted(units, key=lambda name: units[name] / channels[name]):
        found = stepped(units, name, 1)
        while found is not None and lost(found) < lost(units):
            if fits(found):
                return found
            narrower = [step for other in units if other != name and (step := stepped(found, other, -1))]
            found = min(narrower, key=lost, default=None)
    return None


def _largest(units: Callable[[float], dict[str, int]], fits: Fits, most: int) -> float:
    """The largest share, of `most` steps of it, for which the units fit; 0 where none does."""
    low, high = 0, most + 1  # fits, does not fit (or is more than all)
    while high - low > 1:
        middle = (low + high) // 2
        if units(middle / _FINEST) == units(low / _FINEST) or fits(units(middle / _FINEST)):
            low = middle
        else:
            high = middle
    return low / _FINEST


def multiples_of(groups: Sequence[ChannelGroup], fast: Mapping[str, int], macs: Mapping[str, int]) -> dict[str, int]:
    """The multiple of each group: what is fast for its layer with the most MACs, but no more than a quarter of its channels,
    which would leave little of a choice. `fast` and `macs` are by layer.
    """
    found = {}
    for group in groups:
        largest = max(group.layers, key=lambda layer: macs[layer])
        multiple = fast.get(largest, 1)
        while multiple > 1 and math.lcm(multiple, group.per_unit) > group.width // 4:
            multiple //= 2
        found[group.name] = multiple
    return found


def choices_of(group: ChannelGroup, multiple: int) -> list[int]:
    """The units that a group may have, ascending: every multiple (in channels) below its own number, and that."""
    step = multiple // math.gcd(multiple, group.per_unit)
    return [*(units for units in range(step, group.channels, step) if units >= group.least), group.channels]
