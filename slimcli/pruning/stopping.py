"""When retraining has done enough: rules that look at what is known after each of its epochs. None sees a test image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

PLATEAU = 0.02
"""A training loss that fell by less than this share in an epoch no longer falls."""

SETTLED = 0.05
"""A distance of flows that fell by less than this share in an epoch no longer falls."""


@dataclass(frozen=True)
class Look:
    """What is known after an epoch of retraining.

    The mean training loss; where the rule asks for it, the top-1 on the held-out split in percent, or the distance of the
    network's flow from the dense network's, and the layers (or pairs of consecutive ones) that are furthest away.
    """

    loss: float
    top1: float | None = None
    distance: float | None = None
    furthest: tuple[tuple[str, float], ...] = ()


class Rule(Protocol):
    """A stopping rule."""

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether to stop after these epochs (at least one), the last of which has just ended."""


@dataclass(frozen=True)
class AllEpochs:
    """As many epochs as were asked for."""

    def enough(self, looks: Sequence[Look]) -> bool:
        """Never."""
        return False


@dataclass(frozen=True)
class AccuracyBack:
    """The top-1 on the held-out split is back at `target`, in percent."""

    target: float

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether the last look is there."""
        top1 = looks[-1].top1
        return top1 is not None and top1 >= self.target


@dataclass(frozen=True)
class LossPlateau:
    """The training loss fell by less than `share` of itself in the last epoch."""

    share: float = PLATEAU

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether it no longer falls; after one epoch nothing is known."""
        return len(looks) > 1 and looks[-1].loss > (1 - self.share) * looks[-2].loss


@dataclass(frozen=True)
class FlowWithin:
    """The flow is within `epsilon` of the dense network's: InCoP's Algorithm 1."""

    epsilon: float

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether the last look is there."""
        distance = looks[-1].distance
        return distance is not None and distance <= self.epsilon


@dataclass(frozen=True)
class FlowSettled:
    """The flow is within `epsilon` of the dense network's, or no longer comes nearer: what is lost of it stays lost."""

    epsilon: float
    share: float = SETTLED

    def enough(self, looks: Sequence[Look]) -> bool:
        """Whether the last look is near enough, or hardly nearer than the one before."""
        distances = [look.distance for look in looks[-2:] if look.distance is not None]
        if not distances:
            return False
        settled = len(distances) == 2 and distances[1] > (1 - self.share) * distances[0]
        return distances[-1] <= self.epsilon or settled


def drift_epsilon(drift: float, remaining: float) -> float:
    """How far a flow may stay from the dense network's: what an epoch of training without any removal moves it (`drift`), and
    the more the fewer weights remain (`remaining`, a share): a smaller network cannot carry the same flow.
    """
    return float(drift * remaining ** (-1 / 3))
