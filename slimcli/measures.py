"""What networks are judged by, what they are trained towards, and the batches that say so. No torch here, as in `records`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from slimcli.records import JsonDict, NetworkCost

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module


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


def side_of(score: Score, cost: NetworkCost) -> JsonDict:
    """A network's figures on the test split, as `metrics.json` has them under `dense` and `slim`."""
    measured = {key: value for key, value in score.facts().items() if key != "samples"}
    return measured | {"macs": cost.macs, "params": cost.params, "file_bytes": None}


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
