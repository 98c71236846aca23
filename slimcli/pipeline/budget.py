"""When a network is small enough, and which widths are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from slimcli.deploy.layer_times import fast_multiples
from slimcli.errors import SettingsError
from slimcli.networks.cost import count
from slimcli.networks.shapes import shapes_of
from slimcli.pipeline.state import Network
from slimcli.pruning.amounts import per_group
from slimcli.pruning.outlook import Outlook, Size
from slimcli.pruning.rounding import multiples_of, widths_within
from slimcli.records import NetworkCost, Timed
from slimcli.settings import AUTO, PruneSettings, milliseconds

T = TypeVar("T")
Sizes = Callable[[Mapping[str, int]], Size]
"""What the MACs and parameters are when so many units of each group are gone."""
Aims = tuple[dict[str, int], dict[str, int], dict[str, int]]

_MOSTLY = 0.9
"""Less of the budget than this is too little: in a network with few groups one multiple more or less is much."""

_PARTS = 256
"""How finely the counts of a last iteration are cut, all of them in proportion."""


class Budget:
    """When the run has reached what was asked for, measured against the dense network."""

    def __init__(
        self, settings: PruneSettings, dense: Network, input_shape: Sequence[int], dense_cost: NetworkCost | None = None
    ) -> None:
        self.dense_cost, self._input_shape = dense_cost or dense.cost, input_shape
        self._settings = settings
        self.multiples: dict[str, int] = {}
        """What the channels of each group are rounded to, where they are."""
        self.widths = per_group("--widths", settings.widths, dense.prunable) if settings.widths else {}
        """The channels of each group that were asked for."""
        for group in dense.prunable:
            if (wanted := self.widths.get(group.name, 0)) > group.width:
                raise SettingsError(
                    f"--widths asks for {wanted} channels of {group.name}, which has {group.width}", "give no more than it has"
                )
        groups = dense.prunable if self.widths else ()
        self.units = {group.name: max(group.least, math.ceil(self.widths[group.name] / group.per_unit)) for group in groups}
        """The same in units, none narrower than was asked for."""
        self.dense_units = {group.name: group.channels for group in dense.prunable}
        if settings.latency is not None:
            self.multiples = self._multiples(dense)
        elif settings.round_to is not None and (settings.macs is not None or settings.params is not None):
            self._round(dense)

    def _round(self, dense: Network) -> None:
        """The widths that meet a budget in MACs or parameters, each a multiple; `SettingsError` where none do.

        What `auto` takes for fast is halved until some do, and use most of the budget.
        """
        multiples = self._multiples(dense)
        while True:
            self.multiples = multiples
            if set(multiples.values()) <= {1}:
                return  # widths follow from the amounts
            try:
                self.widths, self.units = self._rounded(multiples, dense)
            except SettingsError:
                if self._settings.round_to != AUTO:
                    raise
            else:
                gone = {name: self.dense_units[name] - units for name, units in self.units.items()}
                if self._settings.round_to != AUTO or not self._within_size(self._size_after(gone, dense), _MOSTLY):
                    return
                self.widths, self.units = {}, {}
            multiples = {name: max(1, multiple // 2) for name, multiple in multiples.items()}

    def _multiples(self, dense: Network) -> dict[str, int]:
        """What the channels of each group are rounded to: what was asked for, or what is fast here."""
        if self._settings.round_to != AUTO:
            return per_group("--round-to", self._settings.multiples or (1,), dense.prunable)
        by_kind = fast_multiples()
        fast = {name: by_kind[shape.kind] for name, shape in shapes_of(dense.model, self._input_shape).items()}
        return multiples_of(dense.prunable, fast, {layer.name: layer.macs for layer in dense.cost.layers})

    def _rounded(self, multiples: dict[str, int], dense: Network) -> tuple[dict[str, int], dict[str, int]]:
        """The channels that the budget's even share leaves each group, and the units that it keeps."""
        channels = {group.name: group.channels for group in dense.prunable}

        def gone(units: Mapping[str, int]) -> dict[str, int]:
            return {name: channels[name] - units[name] for name in channels}

        def widest(size: Sizes) -> tuple[float, dict[str, int]]:
            found = widths_within(dense.prunable, multiples, lambda units: self._within_size(size(gone(units))))
            if found is None:
                raise SettingsError(
                    f"the budget is out of reach with widths that are multiples of {max(multiples.values())}",
                    "keep more, or give a smaller --round-to",
                )
            return found

        share, units = self._by_outlook(dense, widest, lambda found: gone(found[1]))
        return {group.name: max(1, round(share * group.width)) for group in dense.prunable}, units

    def aims(self) -> Aims:
        """Channels, units and multiples of each group, where they are settled at the outset."""
        return self.widths, self.units, self.multiples

    def take(self, aims: Aims) -> None:
        """Have those that process 0 has."""
        self.widths, self.units, self.multiples = aims

    def _by_outlook(self, network: Network, search: Callable[[Sizes], T], removed: Callable[[T], Mapping[str, int]]) -> T:
        """What a search finds that goes by foretold sizes; by cutting copies, where what they say of it does not come true."""
        outlook = Outlook(network.model, network.cost, network.wirings(self._input_shape))
        found = search(outlook.after)
        if outlook.after(removed(found)) == self._size_after(removed(found), network):
            return found
        return search(lambda counts: self._size_after(counts, network))

    def check_possible(self, dense: Network) -> None:
        """Raise `SettingsError` where not even one channel in every group would meet a budget in MACs or parameters."""
        asked = {key: share for key in ("macs", "params") if (share := getattr(self._settings, key)) is not None}
        if not asked:
            return
        macs, params = self._size_after({group.name: group.channels - group.least for group in dense.prunable}, dense)
        least = {"macs": macs, "params": params}
        for key, share in asked.items():
            smallest = least[key] / getattr(self.dense_cost, key)
            if smallest > share:
                raise SettingsError(
                    f"--{key} {share:g} is out of reach: with one channel left in every prunable group it is {smallest:.4f}",
                    "ask for no less" + ("" if self._settings.linear else ", or let hidden linear layers shrink too: --linear"),
                )

    def trim(self, counts: dict[str, int], network: Network) -> dict[str, int]:
        """The counts, reduced so that no group becomes narrower than its width asked for, and that a budget in MACs or parameters
        is met with the least that meets it: in the proportion of the counts, and no filter more of any group.
        """
        channels = {group.name: group.channels for group in network.groups}
        if self.units:
            counts = {name: min(wanted, max(0, channels[name] - self.units[name])) for name, wanted in counts.items()}
        if self.units and set(self.multiples.values()) - {1}:
            return counts  # the widths are the least that meets the budget

        if self._settings.macs is None and self._settings.params is None:
            return counts
        return self._by_outlook(network, lambda size: self._least(counts, channels, size), lambda found: found)

    def _least(self, counts: dict[str, int], channels: Mapping[str, int], size: Sizes) -> dict[str, int]:
        """The counts, reduced as `trim` does; as they are where not even they meet the budget."""

        def met(counts: Mapping[str, int]) -> bool:
            narrow = all(channels[name] - counts[name] <= width for name, width in self.units.items())
            return narrow and self._within_size(size(counts))

        if not met(counts):
            return counts
        too_few, enough = 0, _PARTS
        while enough - too_few > 1:
            parts = (too_few + enough) // 2
            if met(_part(counts, parts)):
                enough = parts
            else:
                too_few = parts
        counts = _part(counts, enough)
        for name in counts:
            while counts[name] and met(fewer := {**counts, name: counts[name] - 1}):
                counts = fewer
        return counts

    def _size_after(self, counts: Mapping[str, int], network: Network) -> Size:
        """MACs and parameters of the network when so many channels of each group, whichever, are gone."""
        cost = count(network.narrowed(counts, self._input_shape), self._input_shape)
        return cost.macs, cost.params

    def met(self, network: Network, iterations: int) -> bool:
        """Whether the network is as small as asked for, or the iterations are used up; never so without a limit."""
        s = self._settings
        out_of_turns = s.iterations is not None and iterations >= s.iterations
        return out_of_turns or (s.sized and self._small_enough(network))

    def satisfied(self, network: Network, iterations: int) -> bool:
        """Whether what was asked for is there: every size, or (where no size was asked for) every iteration."""
        s = self._settings
        if s.sized:
            return self._small_enough(network)
        return s.iterations is None or iterations >= s.iterations

    def met_already(self, dense: Network) -> bool:
        """Whether the network that the run begins with has every size that was asked for."""
        return self._settings.sized and self._small_enough(dense)

    def leaves_any(self, network: Network) -> bool:
        """Whether a group could still lose a channel and be no narrower than was asked for."""
        return any(group.channels > self.units.get(group.name, group.least) for group in network.prunable)

    def milliseconds(self, timed: Timed) -> float:
        """What the network may take; `timed` says what the dense one takes."""
        assert self._settings.latency is not None
        return milliseconds(self._settings.latency, timed.dense)

    def narrow_enough(self, network: Network) -> bool:
        """Whether no group is wider than it is to become."""
        return all(group.channels <= self.units[group.name] for group in network.prunable if self.units)

    def _small_enough(self, network: Network) -> bool:
        if self._settings.latency is not None:  # what was foretold for these widths is one thing, what was measured another
            return network.latency is not None and network.latency.slim <= self.milliseconds(network.latency)
        return self.narrow_enough(network) and self._within_size((network.cost.macs, network.cost.params))

    def _within_size(self, size: Size, share: float = 1.0) -> bool:
        """Whether a network of that size is within such a share of the budget in MACs and parameters."""
        asked = (self._settings.macs, self._settings.params)
        dense = (self.dense_cost.macs, self.dense_cost.params)
        return all(limit is None or own <= share * limit * whole for own, limit, whole in zip(size, asked, dense, strict=True))


def _part(counts: Mapping[str, int], parts: int) -> dict[str, int]:
    """So many of `_PARTS` parts of each count, rounded up."""
    return {name: -(-wanted * parts // _PARTS) for name, wanted in counts.items()}
