"""How many filters go in each iteration, and when it is enough."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from slimcli.networks.cost import layers_of
from slimcli.pipeline.state import Network
from slimcli.pruning import masks
from slimcli.pruning.amounts import ADAPTIVE, Adaptive, Amount, Fixed, per_group
from slimcli.settings import PruneSettings


@dataclass(frozen=True)
class Plan:
    """How many filters go in each iteration, and when it is enough."""

    amount: Amount
    budget: Budget

    @classmethod
    def of(cls, settings: PruneSettings, dense: Network) -> Plan:
        """What the settings mean for a network; `SettingsError` where amount or widths do not fit its groups."""
        s, amount = settings, settings.amount or ""
        if amount == ADAPTIVE:
            adaptive = Adaptive(s.pq[0], s.pq[1], s.gamma, s.beta, s.eta, s.scope)
            return cls(adaptive, Budget(settings, dense))
        fixed = Fixed(amount, dense.prunable)
        if dense.masks is not None:
            fixed.weights({})  # refuses counts of filters before anything is written
        return cls(fixed, Budget(settings, dense))

    def counts(self, network: Network) -> dict[str, int]:
        """How many channels each group loses now; of a masked network, how many weights each layer."""
        if network.masks is not None:
            return self.amount.weights(masks.survivors(network.model, network.masks))
        weights = _weights(network)
        return self.budget.trim({group.name: self.amount.filters(group, weights) for group in network.prunable}, network)

    def shares(self, network: Network) -> dict[str, dict[str, float]]:
        """Of each group the share that SAP's step takes, by its weights and by the norms of its filters; else empty."""
        if network.masks is not None or not isinstance(self.amount, Adaptive):
            return {}
        weights = _weights(network)
        return {group.name: self.amount.shares(group, weights) for group in network.prunable}


def _weights(network: Network) -> dict[str, Tensor]:
    return {name: layer.weight.detach() for name, layer in layers_of(network.model).items()}


class Budget:
    """When the run has reached what was asked for, measured against the dense network."""

    def __init__(self, settings: PruneSettings, dense: Network) -> None:
        self.dense_cost = dense.cost
        self._settings = settings
        self._widths = per_group("--widths", settings.widths, dense.prunable) if settings.widths else {}

    def trim(self, counts: dict[str, int], network: Network) -> dict[str, int]:
        """The counts, reduced so that no group becomes narrower than its width asked for."""
        channels = {group.name: group.channels for group in network.groups}
        return {
            name: min(wanted, max(0, channels[name] - self._widths[name])) if self._widths else wanted
            for name, wanted in counts.items()
        }

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

    def ending(self, network: Network, iterations: int) -> str:
        """Why the loop ends here, for the report."""
        if not self.met(network, iterations):
            return "no group can lose another channel"
        return "the budget is met" if self.satisfied(network, iterations) else "the iterations are used up"

    def _small_enough(self, network: Network) -> bool:
        s = self._settings
        return (
            (s.macs is None or network.cost.macs <= s.macs * self.dense_cost.macs)
            and (s.params is None or network.cost.params <= s.params * self.dense_cost.params)
            and all(group.channels <= self._widths[group.name] for group in network.prunable if self._widths)
        )
