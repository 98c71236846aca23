"""Plain records that travel between the wings. No torch here: tensors stay in the modules that compute with them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

JsonDict = dict[str, Any]


@dataclass(frozen=True)
class Measure:
    """What networks are judged by: the name of the score, and whether more of it is better.

    Top-1 accuracy is in percent, and what may be lost of it in points; of any other score, in percent of the dense network's.
    """

    name: str = "top1"
    higher: bool = True

    @property
    def is_top1(self) -> bool:
        """Whether it is accuracy: the only score that is known here, others are a user's."""
        return self.name == "top1"

    @property
    def title(self) -> str:
        """As a sentence names it."""
        return "top-1" if self.is_top1 else self.name

    @property
    def heading(self) -> str:
        """Above its figures: a user's score says which way is better."""
        return self.title if self.is_top1 else f"{self.name} ({'more' if self.higher else 'less'} is better)"

    @property
    def opening(self) -> str:
        """As a sentence begins with it."""
        return "Top-1" if self.is_top1 else self.name

    @property
    def unit(self) -> str:
        """Behind a figure."""
        return " %" if self.is_top1 else ""

    @property
    def axis(self) -> str:
        """Beside an axis."""
        return "top-1 (%)" if self.is_top1 else self.name

    @property
    def allowance(self) -> str:
        """What an allowed loss is counted in."""
        return "points" if self.is_top1 else f"% of {self.name}"

    def figure(self, value: float) -> str:
        """The figure alone."""
        return f"{value:.2f}" if self.is_top1 else f"{value:.4g}"

    def change(self, after: float, before: float) -> str:
        """The difference, with its sign."""
        return f"{after - before:+.2f}" if self.is_top1 else f"{after - before:+.3g}"

    def gain(self, after: float, before: float) -> float:
        """How much better it is after than before; negative for a loss."""
        return after - before if self.higher else before - after

    def limit(self, dense: float, allowed: float) -> float:
        """The worst score that is allowed where the dense network has this one."""
        loss = allowed if self.is_top1 else abs(dense) * allowed / 100
        return dense - loss if self.higher else dense + loss


TOP1 = Measure()

SCORE_KEYS = ("score", "score_name", "higher_is_better")
"""What stands beside `top1` in a record of a file where networks are judged by another score."""


@dataclass(frozen=True)
class Score:
    """How one network does on one split: the value of the measure (top-1 in percent), mean loss, number of samples."""

    value: float
    loss: float
    samples: int
    measure: Measure = TOP1

    @property
    def top1(self) -> float | None:
        """Top-1 accuracy in percent; None where networks are judged by another score."""
        return self.value if self.measure.is_top1 else None

    def facts(self) -> JsonDict:
        """As files and `--json` have it."""
        known = told({"score": self.value, "loss": self.loss, "samples": self.samples}, self.measure)
        if self.measure.is_top1:
            return known
        return known | {"score_name": self.measure.name, "higher_is_better": self.measure.higher}

    @classmethod
    def of(cls, facts: JsonDict) -> Score:
        """What `facts` gave."""
        return cls(value_of(facts), facts["loss"], facts["samples"], measure_of(facts))


def told(record: JsonDict, measure: Measure) -> JsonDict:
    """A record with its scores (`score`, `score_after_surgery`) under the names that files have: `top1`, `top1_after_surgery`.

    Where networks are judged by another score than top-1, that stands beside it and top-1 is None.
    """
    names = {key: key.replace("score", "top1") for key in record if key in ("score", "score_after_surgery")}
    if measure.is_top1:
        return {names.get(key, key): value for key, value in record.items()}
    return record | dict.fromkeys(names.values())


def value_of(record: JsonDict, key: str = "score") -> Any:
    """The score (or `score_after_surgery`) in a record of a file: top-1, or the one that stands beside it. None if not known."""
    return record.get(key, record.get(key.replace("score", "top1")))


def measure_of(facts: JsonDict) -> Measure:
    """What the score in a record of a file is."""
    return Measure(facts.get("score_name", "top1"), facts.get("higher_is_better", True))


@dataclass(frozen=True)
class LayerCost:
    """One conv or linear layer: output channels, multiply-accumulates for one input, parameters (bias included)."""

    name: str
    type: str
    filters: int
    macs: int
    params: int


@dataclass(frozen=True)
class NetworkCost:
    """A network's multiply-accumulates for one input and all its parameters, and each conv and linear layer's share."""

    macs: int
    params: int
    layers: tuple[LayerCost, ...]

    def layer(self, name: str) -> LayerCost:
        """The layer of that name."""
        return next(layer for layer in self.layers if layer.name == name)


def side_of(score: Score, cost: NetworkCost) -> JsonDict:
    """A network's figures on the test split, as `metrics.json` has them under `dense` and `slim`."""
    measured = {key: value for key, value in score.facts().items() if key != "samples"}
    return measured | {"macs": cost.macs, "params": cost.params, "file_bytes": None}


@dataclass(frozen=True)
class Member:
    """A conv or linear layer of a channel group: `channels[u]` is its output channel that belongs to the group's unit `u`.

    A layer of whose channels several belong to each unit is a member several times.
    """

    layer: str
    channels: tuple[int, ...]


@dataclass(frozen=True)
class ChannelGroup:
    """Output channels of one or several layers that can only be removed together, unit by unit.

    `name` is the first member's layer, `channels` the number of units. `reason` says why a group is not prunable.
    """

    name: str
    members: tuple[Member, ...]
    channels: int
    prunable: bool = True
    reason: str = ""

    @property
    def per_unit(self) -> int:
        """How many channels of the first layer go with one unit: more than one where a grouped conv is tied to it."""
        return sum(member.layer == self.members[0].layer for member in self.members)

    @property
    def least(self) -> int:
        """How many units must stay. A conv whose groups have one channel each is a depthwise one, tied in another way."""
        return 1 if self.per_unit == 1 else 2

    @property
    def width(self) -> int:
        """Channels of the first layer."""
        return self.channels * self.per_unit

    @property
    def layers(self) -> tuple[str, ...]:
        """The members' layers, each once."""
        return tuple(dict.fromkeys(member.layer for member in self.members))


@dataclass(frozen=True)
class Maker:
    """A module that has parameters for every unit of a channel group: `rows[u]` are those that belong to unit `u`.

    `norm` is the batch norm that alone reads it, where there is one. `scales`: it only scales and shifts what it gets.
    """

    module: str
    rows: tuple[tuple[int, ...], ...]
    norm: str = ""
    scales: bool = False


@dataclass(frozen=True)
class Reader:
    """A module that reads a channel group: `inputs[u]` are those of its input channels that come from unit `u`."""

    module: str
    inputs: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Wiring:
    """How the units of a channel group come about, and who reads them.

    `kinds`: units of the same kind get the same from whatever is not made here (shortcuts that copy channels, parameters that
    no module owns), so that a tie can make them equal. `fed`: the units that do get something from there.
    """

    makers: tuple[Maker, ...]
    readers: tuple[Reader, ...]
    kinds: tuple[int, ...] = ()
    fed: tuple[int, ...] = ()


Pair = tuple[int, int]


@dataclass(frozen=True)
class Choice:
    """What a criterion decides for one group: filters to remove, or pairs of which the weaker filter will be removed."""

    group: str
    pairs: tuple[Pair, ...] = ()
    filters: tuple[int, ...] = ()


@dataclass(frozen=True)
class Iteration:
    """One turn of the loop, as `metrics.json` shows it (`told`). The score is measured on the held-out split.

    `removed` counts filters, or weights at that granularity; `remaining` is the share of the dense network's conv and linear
    weights that are left. `epochs` are those of its retraining, `stopped` says whether the stopping rule ended it before their
    limit, `held_back` that the rule was met but more was lost than allowed. Where the rule looks at a flow, `flow_distance` is
    the distance after each of them (before the first: `flow_distance_after_surgery`) and `epsilon` what it was to come within;
    `flow_moved` is how far the removal moved the flow where epochs are given out for that, one for each `epsilon` of its square.
    `undone`: the retraining went beyond the allowed drop, and the network was kept as it was right after the removal.
    """

    index: int
    macs: int
    params: int
    score: float
    score_after_surgery: float
    epochs: int
    removed: int
    seconds: float
    remaining: float
    stopped: bool = False
    held_back: bool = False
    flow_distance: tuple[float, ...] = ()
    flow_distance_after_surgery: float | None = None
    epsilon: float | None = None
    flow_moved: float | None = None
    undone: bool = False
    kept: bool = True


@dataclass(frozen=True)
class Trial:
    """A last retraining that was tried: where it started, its epochs, and what came of it on the held-out split.

    `continued`: it went on from the trial of that start that had done best. `lost`: its loss was, even with a lowered
    learning rate; then there is no score.
    """

    start: str
    epochs: int
    score: float
    loss: float
    continued: bool = False
    chosen: bool = False
    lost: bool = False


@dataclass(frozen=True)
class Latency:
    """Milliseconds of one inference call, over `runs` interleaved calls."""

    p50: float
    p90: float
    p99: float
    mean: float
    min: float
    runs: int
    threads: int
    batch: int
    provider: str


@dataclass(frozen=True)
class Ratio:
    """How many times faster `to` is than `of` (p50 over p50), with its 95 % bootstrap interval."""

    of: str
    to: str
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Task:
    """What a network is trained towards and judged by: `loss(model, batch)`, a mean over the batch's images, and
    `score(model, batches)`, a number. Without them it is classification: cross-entropy, and top-1 accuracy.
    """

    loss: Callable[[Module, Any], Tensor] | None = None
    score: Callable[[Module, Iterator[Any]], float] | None = None
    measure: Measure = TOP1

    @property
    def classifies(self) -> bool:
        """Whether it is classification."""
        return self.loss is None


CLASSIFICATION = Task()


class Loader(Protocol):
    """One split of a data set, as training and evaluation read it."""

    @property
    def task(self) -> Task:
        """What its batches are for."""

    @property
    def samples(self) -> int:
        """How many images an epoch has."""

    def __len__(self) -> int: ...

    def shard(self, rank: int, world: int) -> Loader:
        """The part of every batch that process `rank` of `world` takes; as many batches, some may be empty in evaluation."""

    def epoch(self, index: int) -> Iterator[Any]:
        """The batches of epoch `index`: normalised images (B, C, H, W), and labels (B,) or what the task has in their place."""
