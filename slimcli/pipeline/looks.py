"""What a stopping rule is told before retraining and after each of its epochs, and the rule that the settings name."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from slimcli.data.loaders import Data
from slimcli.measures import Score
from slimcli.networks.layers import layers_of
from slimcli.networks.modes import channels_last
from slimcli.networks.tasks import moved
from slimcli.pipeline.origins import Origins
from slimcli.pipeline.state import Network
from slimcli.pruning import flow, masks
from slimcli.pruning.dataflow import consecutive
from slimcli.pruning.gap import Gap, gap, surviving
from slimcli.pruning.stopping import (
    AccuracyBack,
    AllEpochs,
    Allotted,
    FlowNoNearer,
    FlowWithin,
    Look,
    LossPlateau,
    Rule,
)
from slimcli.settings import FLOW_STOPS, PruneSettings
from slimcli.training.engine import Engine, Epoch, seed_everything

FLOW_IMAGES = 2 * 10**9
"""In place of an epoch's number, for what a user's loader draws at random when a flow is measured: the same images each time."""


class Watch:
    """Looks at a network before retraining and after each of its epochs. The dense network's flow is measured once."""

    def __init__(self, settings: PruneSettings, origins: Origins, data: Data, engine: Engine) -> None:
        self._settings, self._origins, self._data, self._engine = settings, origins, data, engine
        self._reference: dict[Any, Tensor] | None = None
        self._slim: tuple[dict[str, Sequence[int]], dict[Any, Tensor]] | None = None
        self._writers: dict[str, tuple[str, ...]] | None = None

    def look(self, network: Network, epoch: Epoch | None = None) -> Look:
        """What the rule asks to know of the network after that epoch, or before the first."""
        score = distance = None
        furthest: tuple[tuple[str, float], ...] = ()
        if self._settings.stop == "accuracy":
            score = self._engine.evaluate(network.model, self._data.held_out).value
        if self._settings.stop in FLOW_STOPS:
            gap = self.gap(network)
            distance, furthest = gap.total, tuple(gap.furthest())
        return self._engine.group.broadcast(Look(epoch.loss if epoch else None, score, distance, furthest))

    def gap(self, network: Network) -> Gap:
        """How far the network's flow is from the dense network's, of what both have: a filter whose weights are all masked has
        none, as if it were removed.
        """
        now, dense = self._measured(network.model), self._surviving(network.removed)
        return gap(*self._living(network, now, dense), self._settings.flow_distance)

    def _living(self, network: Network, now: flow.Flow, other: flow.Flow) -> tuple[flow.Flow, flow.Flow]:
        """Both without what the network's masks have left nothing of."""
        if self._settings.stop == "gf":
            model = network.model
            return flow.filter_gradients(model, now, network.masks), flow.filter_gradients(model, other, network.masks)
        dead = masks.dead_filters(network.model, network.masks or {})
        return surviving(now, dead), surviving(other, dead)

    def _surviving(self, removed: Mapping[str, Sequence[int]]) -> dict[Any, Tensor]:
        """What was measured on the dense network, without the removed filters and what came from them."""
        if self._reference is None:
            self._reference = self._measured(self._origins.dense)
        if self._settings.stop != "gf":
            return dict(surviving(self._reference, removed))
        if self._slim is None or self._slim[0] != removed:
            self._slim = copy.deepcopy(dict(removed)), self._slimmed(removed)
        return self._slim[1]

    def _slimmed(self, removed: Mapping[str, Sequence[int]]) -> dict[Any, Tensor]:
        """The dense network's gradients, removed as the weights are that they belong to."""
        assert self._reference is not None
        shadow = copy.deepcopy(self._origins.dense)
        with torch.no_grad():
            for name, layer in layers_of(shadow).items():
                layer.weight.copy_(self._reference[name])
        return {name: layer.weight.detach() for name, layer in layers_of(self._origins.without(shadow, removed)).items()}

    def moved(self, before: Network, after: Network) -> float:
        """How far the last removal moved the network's flow, of what is left of it: `||after - before|| / ||before||`."""
        left = surviving(self._measured(before.model), _newly_removed(before, after))
        return gap(*self._living(after, self._measured(after.model), left)).total

    def _measured(self, model: nn.Module) -> dict[Any, Tensor]:
        """The information flow, or for `gf` the gradients that it comes from."""
        total = self._engine.group.sum
        with self._engine.memory_named("measuring a flow"), channels_last(model):
            if self._settings.stop == "gf":
                return dict(flow.gradients(model, self._batches(), task=self._data.task, total=total))
            if self._writers is None:  # the names of layers: a removal does not change them
                self._writers = consecutive(model, self._data.shape)
            form = self._settings.flow_form
            return dict(flow.information_flow(model, self._batches(), form, writers=self._writers, total=total))

    def _batches(self) -> Iterator[Any]:
        """This process's part of the first training batches that hold so many images, on the device; the same ones each time."""
        seed_everything(self._settings.seed, FLOW_IMAGES)
        group, device, train = self._engine.group, self._engine.device, self._data.train
        per_batch = -(-train.samples // len(train))  # a user's loader has batches of its own size
        assert self._settings.flow_samples is not None  # `methods.resolve` fills it in
        batches = -(-self._settings.flow_samples // per_batch)
        for batch in islice(train.shard(group.rank, group.size).epoch(0), batches):
            yield moved(batch, device)


def _newly_removed(before: Network, after: Network) -> dict[str, list[int]]:
    """The filters of each layer that only one of the two has, in the numbering of the one before."""
    places = {}
    for layer, units in after.removed.items():
        earlier = before.removed.get(layer, [])
        places[layer] = [unit - sum(other < unit for other in earlier) for unit in units if unit not in earlier]
    return places


def rule_of(settings: PruneSettings, dense: Score, allotted: int = 0) -> Rule:
    """The rule for one retraining; `allotted` are the epochs that `flow` gives out."""
    if settings.stop == "accuracy":
        return AccuracyBack(dense.measure.limit(dense.value, settings.margin), dense.measure.higher)
    if settings.stop == "plateau":
        return LossPlateau()
    if settings.stop == "flow":
        return Allotted(allotted)
    if settings.stop in FLOW_STOPS:
        return FlowNoNearer() if settings.epsilon is None else FlowWithin(settings.epsilon)
    return AllEpochs()


def remaining_weights(network: Network, dense: nn.Module) -> float:
    """The share of the dense network's conv and linear weights that are left."""
    before = sum(layer.weight.numel() for layer in layers_of(dense).values())
    if network.masks is not None:
        return masks.alive(network.masks) / before
    return sum(layer.weight.numel() for layer in layers_of(network.model).values()) / before
