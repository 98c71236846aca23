"""How many filters go in each iteration, and why it ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from slimcli.networks.layers import by_filter, layers_of
from slimcli.pipeline.budget import Budget
from slimcli.pipeline.state import Network
from slimcli.pruning import masks
from slimcli.pruning.amounts import ADAPTIVE, Adaptive, Amount, Fixed
from slimcli.records import NetworkCost
from slimcli.settings import PruneSettings

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


@dataclass(frozen=True)
class Plan:
    """How many filters go in each iteration, and when it is enough."""

    amount: Amount
    budget: Budget

    @classmethod
    def of(
        cls, settings: PruneSettings, dense: Network, input_shape: Sequence[int], dense_cost: NetworkCost | None = None
    ) -> Plan:
        """What the settings mean for a network; `SettingsError` where amount or widths do not fit its groups. `dense_cost` is
        that of the network that it came from, where it has been left without blocks.
        """
        s, amount, budget = settings, settings.amount or "", Budget(settings, dense, input_shape, dense_cost)
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
            if self.budget.units and not self.budget.widths:
                what = f"is to keep {kept} of {group.width} channels, by the time that they take"
                found.setdefault(what, []).append(group.name)
            elif kept != wanted:
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
