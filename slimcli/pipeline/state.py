"""What a pruning run knows between two steps: everything that going on needs, and nothing else."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Protocol

from torch import Tensor, nn

from slimcli.measures import Score, value_of
from slimcli.networks import blocks, weights, widths
from slimcli.networks.cost import count
from slimcli.networks.layers import filters, layers_of
from slimcli.pruning import surgery
from slimcli.pruning.history import NormHistory
from slimcli.pruning.masks import Masks
from slimcli.pruning.stopping import Look
from slimcli.pruning.wiring import wiring_of
from slimcli.records import ChannelGroup, Choice, Iteration, JsonDict, Member, NetworkCost, Timed, Trial, Wiring
from slimcli.training.engine import FitState

DONE = "done"


@dataclass
class Network:
    """A network and what belongs to it: everything that a step back must restore."""

    model: nn.Module
    history: NormHistory
    groups: tuple[ChannelGroup, ...]
    cost: NetworkCost
    removed: dict[str, list[int]] = field(default_factory=dict)
    masks: Masks | None = None
    latency: Timed | None = None
    left_out: tuple[str, ...] = ()
    """Blocks that it does without; all filters of their layers are among `removed`."""
    _wirings: dict[str, Wiring] | None = field(default=None, repr=False)

    @property
    def filters(self) -> int:
        """Output channels of all conv and linear layers."""
        return sum(layer.filters for layer in self.cost.layers)

    @property
    def prunable(self) -> list[ChannelGroup]:
        """The groups that may lose channels."""
        return [group for group in self.groups if group.prunable]

    def wirings(self, input_shape: Sequence[int]) -> dict[str, Wiring]:
        """Who makes and who reads the units of each prunable group: looked for once, and again after `reshaped`."""
        if self._wirings is None:
            self._wirings = wiring_of(self.model, input_shape, self.prunable)
        return self._wirings

    def reshaped(self, groups: tuple[ChannelGroup, ...], cost: NetworkCost) -> None:
        """The model has lost channels: these are its groups and costs now."""
        self.groups, self.cost, self.latency, self._wirings = groups, cost, None, None

    def narrowed(self, counts: Mapping[str, int], input_shape: Sequence[int], left_out: Sequence[str] = ()) -> nn.Module:
        """A copy of the model without these blocks and the first so many units of each group: as large as without any others."""
        if left_out:
            shorter = self.without(left_out, input_shape, linear=True)
            kept = {group.name: group.channels - counts.get(group.name, 0) for group in self.groups}
            units = units_of_others(kept, self.groups, shorter.groups)
            return shorter.narrowed({group.name: group.channels - units[group.name] for group in shorter.groups}, input_shape)
        model = copy.deepcopy(self.model)
        surgery.remove(model, input_shape, {name: tuple(range(gone)) for name, gone in counts.items()})
        return model

    def without(self, names: Sequence[str], input_shape: Sequence[int], linear: bool) -> Network:
        """The network without these blocks, its groups found anew: they are others, and unverified."""
        model, history, before = copy.deepcopy(self.model), copy.deepcopy(self.history), layers_of(self.model)
        blocks.leave_out(model, names)
        gone = [name for name in before if name not in layers_of(model)]
        for name in gone:
            history.layers.pop(name, None)
        removed = {name: list(range(filters(before[name]))) for name in gone}
        groups = surgery.find_groups(model, input_shape, linear)
        return Network(model, history, groups, count(model, input_shape), removed, left_out=tuple(names))

    def structure(self) -> str:
        """The shape of every tensor: what all processes of a run must agree on."""
        return "; ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in self.model.state_dict().items())

    def content(self) -> JsonDict:
        """As plain containers and tensors, which may be the network's own."""
        return {
            "state_dict": weights.at_rest(self.model.state_dict()),
            "history": self.history.state_dict(),
            "groups": [asdict(group) for group in self.groups],
            "removed": copy.deepcopy(self.removed),
            "masks": None if self.masks is None else {name: mask.cpu() for name, mask in self.masks.items()},
            "latency": asdict(self.latency) if self.latency else None,
            "left_out": list(self.left_out),
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any], dense: nn.Module, input_shape: Sequence[int]) -> Network:
        """The network that `content` describes: a copy of the dense one, its layers made as wide as the tensors say."""
        reference = next(dense.parameters())
        model = copy.deepcopy(dense).cpu()
        left_out = tuple(content.get("left_out", ()))  # a state of an older version has none
        blocks.leave_out(model, left_out)
        widths.take(model, content["state_dict"])
        weights.restore(model, content["state_dict"])
        trainable = {name: parameter.requires_grad for name, parameter in dense.named_parameters()}
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(trainable[name])
        groups = tuple(
            ChannelGroup(**{**group, "members": tuple(Member(m["layer"], tuple(m["channels"])) for m in group["members"])})
            for group in content["groups"]
        )
        model.to(reference.device).eval()
        history = NormHistory.from_state_dict(content["history"])
        masks, latency = content["masks"], content.get("latency")  # a state of an older version has none
        return cls(
            model,
            history,
            groups,
            count(model, input_shape),
            copy.deepcopy(dict(content["removed"])),
            None if masks is None else {name: mask.to(reference.device) for name, mask in masks.items()},
            Timed(**latency) if latency else None,
            left_out,
        )


def units_of_others(units: Mapping[str, int], groups: Sequence[ChannelGroup], others: Sequence[ChannelGroup]) -> dict[str, int]:
    """What other groups of the same layers keep: as many channels, or the next more. All where nothing is known of them."""
    channels = {layer: units[group.name] * group.per_unit for group in groups for layer in group.layers}
    return {other.name: min(other.channels, -(-channels.get(other.layers[0], other.width) // other.per_unit)) for other in others}


@dataclass
class State:
    """Where a run stands. `stage` names what comes next (a key of `pipeline.prune.Loop`).

    `network` is the one being worked on, `kept` the last one within the allowed drop (they are one object between two
    iterations), `unretrained` a copy from right after the removal where that was within the allowed drop, `best` the one that did
    best of the last retrainings tried so far (`trials`); `fit` is the training phase in progress, `looks` what the stopping rule
    saw before the retraining and after each of its epochs, `moved`
    how far the last removal moved the flow, `owed` what such removals broke of it and no epoch was given for, `allotted` the
    epochs of this retraining, `units` what each group is narrowed to for a latency, `draws` the state of the generator of random
    choices.
    """

    network: Network
    kept: Network
    draws: Tensor
    stage: str = "observe"
    dense: Score | None = None
    held_out: Score | None = None
    iterations: list[Iteration] = field(default_factory=list)
    choices: list[Choice] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)
    best: Network | None = None
    unretrained: Network | None = None
    score_after_surgery: float = 0.0
    seconds: float = 0.0
    fit: FitState | None = None
    looks: list[Look] = field(default_factory=list)
    moved: float | None = None
    owed: float = 0.0
    allotted: int = 0
    units: dict[str, int] = field(default_factory=dict)
    epochs: int = 0
    training_macs: int = 0
    lr_scale: float = 1.0
    reason: str = ""
    diverged: str = ""

    def content(self) -> JsonDict:
        """As plain containers and tensors, which may be those that training goes on with."""
        plain = {each.name: getattr(self, each.name) for each in fields(self)}
        return plain | {
            "network": None if self.network is self.kept else self.network.content(),
            "kept": self.kept.content(),
            "dense": self.dense.facts() if self.dense else None,
            "held_out": self.held_out.facts() if self.held_out else None,
            "iterations": [asdict(step) for step in self.iterations],
            "choices": [asdict(choice) for choice in self.choices],
            "trials": [asdict(trial) for trial in self.trials],
            "looks": [asdict(look) for look in self.looks],
            "unretrained": self.unretrained.content() if self.unretrained else None,
            "best": None if self.best is None or self.best is self.network else self.best.content(),
            "best_is_network": self.best is self.network,
            "fit": {"epochs": self.fit.epochs, "optimizer": self.fit.optimizer} if self.fit else None,
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any], dense: nn.Module, input_shape: Sequence[int]) -> State:
        """The state that `content` gave."""
        kept = Network.from_content(content["kept"], dense, input_shape)
        network = Network.from_content(content["network"], dense, input_shape) if content["network"] else kept
        best = Network.from_content(content["best"], dense, input_shape) if content["best"] else None
        after_surgery = content.get("unretrained")  # a state of an older version has none
        unretrained = Network.from_content(after_surgery, dense, input_shape) if after_surgery else None
        return cls(
            **{
                **{each.name: content[each.name] for each in fields(cls) if each.name in content},  # an older one has others
                "kept": kept,
                "network": network,
                "unretrained": unretrained,
                "best": network if content["best_is_network"] else best,
                "trials": [Trial(**_scored(trial)) for trial in content["trials"]],
                "dense": Score.of(content["dense"]) if content["dense"] else None,
                "held_out": Score.of(content["held_out"]) if content["held_out"] else None,
                "score_after_surgery": value_of(dict(content), "score_after_surgery"),
                "iterations": [_iteration(step) for step in content["iterations"]],
                "looks": [_look(look) for look in content["looks"]],
                "choices": [_choice(choice) for choice in content["choices"]],
                "fit": FitState(**content["fit"]) if content["fit"] else None,
            }
        )


def checksum(model: nn.Module) -> str:
    """Of all weights: what all processes of a run must agree on."""
    return str(sum(float(value.double().abs().sum()) for value in model.state_dict().values()))


def _scored(plain: Mapping[str, Any]) -> JsonDict:
    """A state of an older version has `top1` where there may be any score now."""
    return {key.replace("top1", "score"): value for key, value in plain.items()}


def _iteration(plain: Mapping[str, Any]) -> Iteration:
    return Iteration(**{**_scored(plain), "flow_distance": tuple(plain["flow_distance"])})


def _look(plain: Mapping[str, Any]) -> Look:
    return Look(**{**_scored(plain), "furthest": tuple((name, distance) for name, distance in plain["furthest"])})


def _choice(plain: Mapping[str, Any]) -> Choice:
    return Choice(plain["group"], tuple((i, j) for i, j in plain["pairs"]), tuple(plain["filters"]))


class Store(Protocol):
    """Where states go, and come back from when the loss is lost."""

    def save(self, state: State) -> None:
        """Keep this state."""

    def load(self) -> JsonDict:
        """The content of the last state that was kept."""


class Nowhere:
    """States of a process that only helps: process 0 has them."""

    def save(self, state: State) -> None:
        """Nothing to do."""

    def load(self) -> JsonDict:
        """Process 0 loads."""
        raise NotImplementedError


class InMemory:
    """States of a run that has no folder."""

    def __init__(self) -> None:
        self._content: JsonDict = {}

    def save(self, state: State) -> None:
        """Keep a copy."""
        self._content = copy.deepcopy(state.content())

    def load(self) -> JsonDict:
        """A copy of the last one."""
        return copy.deepcopy(self._content)
