"""Widths for a latency: which groups to narrow and which blocks to leave out, by the time that it saves and by what they lose."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from slimcli.networks.blocks import Chain
from slimcli.pruning.rounding import choices_of
from slimcli.records import ChannelGroup

_CHOICES = 8
"""How many widths of a group are looked at: what each of them takes is measured."""

Time = Callable[[Mapping[str, int]], float]
"""What the network takes with so many units of each group and so many blocks of each chain."""


def widths_in_time(
    groups: Sequence[ChannelGroup],
    multiples: Mapping[str, int],
    dense: Mapping[str, int],
    time_of: Time,
    limit: float,
    chains: Sequence[Chain] = (),
) -> dict[str, int] | None:
    """The units that each group keeps, multiples as in `rounding.widths_within`, and the blocks that each chain keeps, such that
    `time_of` them is within the limit.

    From the present widths on, again and again the narrower width that saves most time for what it loses: the rise of the
    squared share of the `dense` units that the group has lost, for each of its layers, so that who lost much pays more for the
    next. In the same way a chain gets shorter (`Chain.lost`). A width that saves nothing (most do: time comes
    in steps) is never taken. At the end groups and chains are widened where that stays within the limit. None where nothing
    narrower saves time any more.
    """
    every = {group.name: choices_of(group, multiples[group.name]) for group in groups}
    choices = {name: _few(widths) for name, widths in every.items()}
    units = {group.name: group.channels for group in groups}
    layers = {group.name: len(group.layers) for group in groups}
    short = {chain.name: chain for chain in chains}
    for chain in chains:
        length = len(chain.blocks)
        every[chain.name] = choices[chain.name] = list(range(length + 1))
        units[chain.name], dense = length, {**dense, chain.name: length}

    def lost(name: str, kept: int) -> float:
        return short[name].lost(kept) if name in short else layers[name] * (1 - kept / dense[name]) ** 2

    def worth(now: float, name: str, narrower: int) -> float:
        saved, dearer = now - time_of({**units, name: narrower}), lost(name, narrower) - lost(name, units[name])
        return saved / dearer if dearer > 0 else saved * math.inf if saved else 0.0

    while (now := time_of(units)) > limit:
        steps = [(name, each) for name in units for each in choices[name] if each < units[name]]
        best = max(steps, key=lambda step: worth(now, *step), default=None)
        if best is None or worth(now, *best) <= 0:
            return None
        units[best[0]] = best[1]
    for name in sorted(units, key=lambda name: units[name] / dense[name]):
        for wider in every[name]:
            if wider > units[name] and time_of({**units, name: wider}) <= limit:
                units[name] = wider
    return units


def _few(choices: Sequence[int]) -> list[int]:
    """At most about `_CHOICES` of them, evenly spread."""
    return sorted({choices[0], *choices[:: -math.ceil(len(choices) / _CHOICES)]})
