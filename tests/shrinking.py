"""The sizes that a plan leads to, without any training."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from slimcli.networks.cost import count
from slimcli.pipeline.plan import Plan
from slimcli.pipeline.state import Network
from slimcli.pruning import surgery
from slimcli.pruning.history import NormHistory


def dense(model: nn.Module, shape: tuple[int, ...]) -> Network:
    """The network before anything is removed, its groups not verified."""
    return Network(model.eval(), NormHistory(), surgery.find_groups(model, shape, linear=False), count(model, shape))


def without(network: Network, counts: Mapping[str, int], shape: tuple[int, ...]) -> Network:
    """The network when so many channels of each group are gone."""
    model = copy.deepcopy(network.model)
    surgery.remove(model, shape, {name: tuple(range(number)) for name, number in counts.items()})
    groups = {group.name: group for group in surgery.find_groups(model, shape, linear=False)}
    return replace(
        network,
        model=model,
        groups=tuple(replace(group, channels=groups[group.name].channels) for group in network.groups),
        cost=count(model, shape),
    )


def pruned(dense: Network, plan: Plan, shape: tuple[int, ...]) -> Network:
    """The network that the loop ends with."""
    network, iterations = dense, 0
    while not plan.budget.met(network, iterations):
        network, iterations = without(network, plan.counts(network), shape), iterations + 1
    return network
