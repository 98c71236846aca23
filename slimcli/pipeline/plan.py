"""How many filters go in each iteration, and when it is enough."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

from slimcli.errors import SettingsError
from slimcli.networks.cost import count
from slimcli.networks.layers import by_filter, layers_of
from slimcli.pipeline.state import Network
from slimcli.pruning import masks, surgery
from slimcli.pruning.amounts import ADAPTIVE, Adaptive, Amount, Fixed, per_group
from slimcli.pruning.outlook import Outlook, Size
from slimcli.pruning.rounding import widths_within
from slimcli.settings import PruneSettings

T = TypeVar("T")
Sizes = Callable[[Mapping[str, int]], Size]
"""What the MACs and parameters are when so many units of each group are gone."""

ITERATIONS_USED_UP = "the iterations are used up"
NO_CHANNEL, NO_WEIGHT = "no group can lose another channel", "no layer can lose another weight"
STEP_TOO_SMALL = "SAP's step is less than one of any layer"
WAYS_OUT = {
    ITERATIONS_USED_UP: "allow more --iterations, or a larger --amount",
    NO_CHANNEL: "ask for less",
    NO_WEIGHT: "ask for less",
    STEP_TOO_SMALL: "use --pq 1,2, a larger --gamma or --eta, or --amount 10%",
}
"""Of the reasons for which a loop may end before its budget is met, beside the accuracy that is lost."""

_PARTS = 256
"""How finely the counts of a last iteration are cut, all of them in proportion."""


@dataclass(frozen=True)
class Plan:
    """How many filters go in each iteration, and when it is enough."""

    amount: Amount
    budget: Budget

    @classmethod
    def of(cls, settings: PruneSettings, dense: Network, input_shape: Sequence[int]) -> Plan:
        """What the settings mean for a network; `SettingsError` where amount or widths do not fit its groups."""
        s, amount, budget = settings, settings.amount or "", Budget(settings, dense, input_shape)
        if amount == ADAPTIVE:
            adaptive = Adaptive(s.pq[0], s.pq[1], s.gamma, s.beta, s.eta, s.scope)
            return cls(adaptive, budget)
        fixed = Fixed(amount, dense.prunable, single_weights=dense.masks is not None)
        if dense.masks is not None:
            fixed.weights({})  # refuses counts of filters before anything is written
        return cls(fixed, budget)

    def counts(self, network: Network) -> dict[str, int]:
        """How many channels each group loses now; of a masked network, how many weights each layer."""
        if network.masks is not None:
            return self.amount.weights(masks.survivors(network.model, network.masks))
        weights = _weights(network)
        return self.budget.trim({group.name: self.amount.filters(group, weights) for group in network.prunable}, network)

    def ending(self, network: Network, iterations: int) -> str:
        """Why the loop ends here, for the report."""
        if self.budget.met(network, iterations):
            return "the budget is met" if self.budget.satisfied(network, iterations) else ITERATIONS_USED_UP
        if network.masks is not None:
            nothing_left, left = NO_WEIGHT, masks.alive(network.masks) > len(network.masks)
        else:
            nothing_left, left = NO_CHANNEL, self.budget.leaves_any(network)
        return STEP_TOO_SMALL if left and isinstance(self.amount, Adaptive) else nothing_left

    def forced(self, dense: Network) -> list[str]:
        """Where the groups do not give what was asked for: some lose channels several at a time, none more than half at once."""
        found: dict[str, list[str]] = {}
        for group in dense.prunable if dense.masks is None else ():
            together = f"{group.per_unit} of its channels go together"
            if isinstance(self.amount, Fixed):
                asked, got = self.amount.asked(group), self.amount.filters(group) * group.per_unit
                if got != asked:
                    why = together if group.per_unit > 1 else "no more than half of a group goes at once"
                    what = f"loses {got} of {group.width} channels in an iteration, not {asked}: {why}"
                    found.setdefault(what, []).append(group.name)
            wanted, kept = self.budget.widths.get(group.name, 0), self.budget.units.get(group.name, 0) * group.per_unit
            if kept != wanted:
                what = f"keeps {kept} channels, not {wanted}: {together}"
                if multiple := self.budget.multiples.get(group.name):
                    what = f"keeps {kept} channels, by multiples of {multiple} (the budget's even share is {wanted})"
                found.setdefault(what, []).append(group.name)
        return [f"{names[0]}{f' (and {len(names) - 1} more)' if names[1:] else ''} {what}" for what, names in found.items()]

    def shares(self, network: Network) -> dict[str, dict[str, float]]:
        """Of each group the share that SAP's step takes, by its weights and by the norms of its filters; else empty."""
        if network.masks is not None or not isinstance(self.amount, Adaptive):
            return {}
        weights = _weights(network)
        return {group.name: self.amount.shares(group, weights) for group in network.prunable}


def _weights(network: Network) -> dict[str, Tensor]:
    return {name: by_filter(layer).detach() for name, layer in layers_of(network.model).items()}


class Budget:
    """When the run has reached what was asked for, measured against the dense network."""

    def __init__(self, settings: PruneSettings, dense: Network, input_shape: Sequence[int]) -> None:
        self.dense_cost, self._input_shape = dense.cost, input_shape
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
        if isinstance(settings.round_to, tuple) and (settings.macs is not None or settings.params is not None):
            self._round(per_group("--round-to", settings.round_to, dense.prunable), dense)

    def _round(self, multiples: dict[str, int], dense: Network) -> None:
        """The widths that meet a budget in MACs or parameters, each a multiple; `SettingsError` where none do."""
        if set(multiples.values()) <= {1}:
            return  # widths that follow from the amounts
        channels = {group.name: group.channels for group in dense.prunable}

        def gone(units: Mapping[str, int]) -> dict[str, int]:
            return {name: channels[name] - units[name] for name in channels}

        def widest(size: Sizes) -> tuple[float, dict[str, int]]:
            found = widths_within(dense.prunable, multiples, lambda units: self._within_size(size(gone(units))))
            if found is None:
                raise SettingsError(
                    f"the budget is out of reach with widths that are multiples of {max(multiples.values())}",
                    "ask for less, or a smaller --round-to",
                )
            return found

        share, self.units = self._by_outlook(dense, widest, lambda found: gone(found[1]))
        self.widths = {group.name: max(1, round(share * group.width)) for group in dense.prunable}
        self.multiples = multiples

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
        if self.multiples:
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
        model = copy.deepcopy(network.model)
        surgery.remove(model, self._input_shape, {name: tuple(range(wanted)) for name, wanted in counts.items()})
        cost = count(model, self._input_shape)
        return cost.macs, cost.params

    def met(self, network: Network, iterations: int) -> bool:
        """Whether the network is as small as asked for, or the iterations are used up; never so without a limit."""
        s = self._settings
        sized = any((s.macs, s.params, s.widths))
        out_of_turns = s.iterations is not None and iterations >= s.iterations
        return out_of_turns or (sized and self._small_enough(network))

    def satisfied(self, network: Network, iterations: int) -> bool:
        """Whether what was asked for is there: every size, or (where no size was asked for) every iteration."""
        s = self._settings
        if any((s.macs, s.params, s.widths)):
            return self._small_enough(network)
        return s.iterations is None or iterations >= s.iterations

    def leaves_any(self, network: Network) -> bool:
        """Whether a group could still lose a channel and be no narrower than was asked for."""
        return any(group.channels > self.units.get(group.name, group.least) for group in network.prunable)

    def _small_enough(self, network: Network) -> bool:
        narrow = all(group.channels <= self.units[group.name] for group in network.prunable if self.units)
        return narrow and self._within_size((network.cost.macs, network.cost.params))

    def _within_size(self, size: Size) -> bool:
        s, dense, (macs, params) = self._settings, self.dense_cost, size
        return (s.macs is None or macs <= s.macs * dense.macs) and (s.params is None or params <= s.params * dense.params)


def _part(counts: Mapping[str, int], parts: int) -> dict[str, int]:
    """So many of `_PARTS` parts of each count, rounded up."""
    return {name: -(-wanted * parts // _PARTS) for name, wanted in counts.items()}
