"""Plain records that travel between the wings. No torch here: tensors stay in the modules that compute with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

JsonDict = dict[str, Any]


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


@dataclass(frozen=True)
class LayerShape:
    """What a conv or linear layer computes for one input: the channels that it reads and gives, and the `size` of what it reads
    (height and width; of a linear layer how many vectors). `pads` are those before each side, then those behind each.
    """

    inputs: int
    outputs: int
    size: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    pads: tuple[int, ...] = ()
    dilations: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    @property
    def kind(self) -> str:
        """Which of the typical layers it is most like, as to speed."""
        if not self.kernel:
            return "linear"
        if self.groups > 1:
            return "depthwise"
        return "pointwise" if set(self.kernel) == {1} else "spatial"


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
    `latency_ms` is measured where there is a budget for it.
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
    latency_ms: float | None = None


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
    """Milliseconds of one inference call, over `runs` interleaved calls; `quantiles` are those at 0, 1, ... 100 %."""

    p50: float
    p90: float
    p99: float
    mean: float
    min: float
    runs: int
    threads: int
    batch: int
    provider: str
    quantiles: tuple[float, ...] = ()


@dataclass(frozen=True)
class Timed:
    """Milliseconds (p50) of the dense network, and of another one that was measured in turn with it (`pipeline/pace.py`)."""

    slim: float
    dense: float


@dataclass(frozen=True)
class Ratio:
    """How many times faster `to` is than `of` (p50 over p50), with its 95 % interval."""

    of: str
    to: str
    ratio: float
    low: float
    high: float
