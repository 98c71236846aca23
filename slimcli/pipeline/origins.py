"""What a found shape may be given other weights from: the dense network, its first weights, new ones."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from slimcli.networks import blocks, resolve, weights, widths
from slimcli.pipeline.state import Network
from slimcli.pruning import masks, surgery
from slimcli.pruning.history import NormHistory
from slimcli.records import ChannelGroup
from slimcli.settings import PruneSettings
from slimcli.training.engine import seed_everything


@dataclass(frozen=True)
class Known:
    """What is known of a network's past: its weights before training, and what builds it with new random weights."""

    first: Mapping[str, Tensor] | None = None
    build: Callable[[], nn.Module] | None = None


UNKNOWN = Known()
NEW_WEIGHTS = 10**9
"""In place of an epoch's number, for what draws new weights: others than the training of the same seed began with."""


@dataclass(frozen=True)
class Origins:
    """The network that pruning began with, its past: what retraining starts from, and what is compared with. `groups` are
    those of the network without the blocks that are `left_out`.

    Where its first weights are unknown, those that it was given with take their place.
    """

    dense: nn.Module
    groups: tuple[ChannelGroup, ...]
    input_shape: Sequence[int]
    known: Known
    left_out: tuple[str, ...] = ()

    def start(self, name: str, found: Network, settings: PruneSettings, number: int) -> Network:
        """The network `found`, ready for its last retraining: `finetune` as it is, `rewind` with its survivors' first
        weights, `fresh` in its shape only (another one for every `number`). Its history begins anew with its weights.
        """
        network = copy.deepcopy(found)
        if name == "finetune":
            return network
        model = self.rewound(found) if name == "rewind" else self._fresh(found, settings.seed, number)
        return _with_weights_of(model, network, settings.norm)

    def back_to_dense(self, found: Network, settings: PruneSettings) -> Network:
        """The network `found` with its survivors' weights of the dense network. Its history begins anew with them."""
        return _with_weights_of(
            self._cut(copy.deepcopy(self.dense), found.removed, found.left_out), copy.deepcopy(found), settings.norm
        )

    def rewound(self, found: Network) -> nn.Module:
        """The dense network at its first weights, without the filters and blocks that `found` does without."""
        model = copy.deepcopy(self.dense)
        if self.known.first is not None:
            weights.restore(model, self.known.first)
        return self._cut(model, found.removed, found.left_out)

    def without(self, model: nn.Module, removed: Mapping[str, Sequence[int]]) -> nn.Module:
        """A network of the dense one's shape without the filters that were removed: a copy, in eval mode."""
        return self._cut(copy.deepcopy(model), removed)

    def _cut(self, model: nn.Module, removed: Mapping[str, Sequence[int]], left_out: Sequence[str] = ()) -> nn.Module:
        blocks.leave_out(model, left_out)
        surgery.remove(model, self.input_shape, _units(self.groups, removed))
        return model.eval()

    def _fresh(self, found: Network, seed: int, number: int) -> nn.Module:
        assert self.known.build is not None
        seed_everything(seed, NEW_WEIGHTS + number)
        model = self.known.build()
        blocks.leave_out(model, found.left_out)
        widths.fresh(model, found.model.state_dict())
        trainable = {name: parameter.requires_grad for name, parameter in found.model.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
        return model.to(next(found.model.parameters()).device).eval()


def _with_weights_of(model: nn.Module, network: Network, norm: str) -> Network:
    """The network with this model in place of its own, its masks kept."""
    masks.apply(model, network.masks or {})
    network.model, network.history = model, NormHistory(norm=norm)
    network.history.record(model)
    return network


def builder(arch: str, classes: int, input_shape: resolve.Shape, left_out: Sequence[str] = ()) -> Callable[[], nn.Module]:
    """What builds the network of that name, without these blocks, with new random weights."""

    def build() -> nn.Module:
        model = resolve.build(arch, classes, input_shape)
        blocks.leave_out(model, left_out)
        return model

    return build


def _units(groups: Sequence[ChannelGroup], removed: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """The removed filters of each layer as units of its group."""
    found = {}
    for group in groups:
        member = next((each for each in group.members if each.layer in removed), None)
        if member is not None and group.prunable:
            gone = set(removed[member.layer])
            found[group.name] = tuple(unit for unit, channel in enumerate(member.channels) if channel in gone)
    return found
