"""The last retrainings that are tried one after another, and which of them is kept."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

from slimcli.measures import Score
from slimcli.pipeline.origins import Origins
from slimcli.pipeline.state import Network, State
from slimcli.records import Trial
from slimcli.settings import PruneSettings

BEST = "best"
"""The start of a trial that goes on from the one that did best so far."""


DRAWS = 3
"""How many fresh draws `auto` tries."""


@dataclass(frozen=True)
class Planned:
    """A trial that is planned: where it starts, and for how many epochs."""

    start: str
    epochs: int


class Trials:
    """One last retraining, or under `--final auto` several from different starts. Those done stand in the run's state."""

    def __init__(self, settings: PruneSettings, origins: Origins) -> None:
        self._settings, self._origins = settings, origins
        fresh = origins.known.build is not None
        self._planned = planned_for(settings, fresh)
        starts, share = _starts(settings, fresh)
        tried = sum(each.start != BEST for each in self._planned)
        self.left_out = starts[tried:] if self._planned else []
        """The starts for which the epochs do not suffice."""
        self.wanted = len(starts) * share
        """How many epochs would suffice for all of them."""

    @property
    def several(self) -> bool:
        """Whether there is a choice to be made."""
        return len(self._planned) > 1

    def next(self, state: State) -> Planned:
        """The next one."""
        return self._planned[len(state.trials)]

    def over(self, state: State) -> bool:
        """Whether there is none to come: all are done, or the best is to go on and the loss of every one was lost."""
        return len(state.trials) == len(self._planned) or (self.next(state).start == BEST and state.best is None)

    def begin(self, state: State) -> Network:
        """The network that the next one trains."""
        start = self.next(state).start
        if start == BEST:
            return copy.deepcopy(state.best or state.kept)
        return self._origins.start(start, state.kept, self._settings, len(state.trials))

    def judge(self, state: State, score: Score) -> Trial:
        """Record what the one just done reached on the held-out split; its network is the best if it did better.

        Better is by the score, and within its noise (one standard error) by loss, which is the finer measure. One that went
        on from the best is longer and annealed once more: it is kept unless its score is worse beyond the noise.
        """
        planned = self.next(state)
        leading = next((trial for trial in state.trials if trial.chosen), None)
        continued = planned.start == BEST
        chosen = leading is None or _is_better(score, leading, continued)
        if chosen:
            state.trials = [replace(trial, chosen=False) for trial in state.trials]
            state.best = state.network
        start = leading.start if continued and leading else planned.start
        return self._record(state, Trial(start, planned.epochs, score.value, score.loss, continued, chosen))

    def give_up(self, state: State) -> Trial:
        """Record that the next one's loss was lost."""
        planned = self.next(state)
        return self._record(state, Trial(planned.start, planned.epochs, 0.0, 0.0, continued=planned.start == BEST, lost=True))

    @staticmethod
    def _record(state: State, trial: Trial) -> Trial:
        state.trials.append(trial)
        return trial


def planned_for(settings: PruneSettings, fresh: bool) -> list[Planned]:
    """The trials in their order; `fresh` says whether new weights can be drawn.

    `auto` tries fine-tuning, rewinding and several fresh draws (tiny networks depend much on the draw) over half of the epochs,
    `fresh` with several `draws` those over a third; the best of them gets the rest. The last ones are left out where the epochs
    do not suffice.
    """
    epochs = settings.final_epochs
    starts, share = _starts(settings, fresh)
    affordable = starts[: epochs // share]
    if len(affordable) < 2:
        return [Planned(starts[0], epochs)] if epochs else []
    each = epochs // (share * len(affordable))
    return [*(Planned(start, each) for start in affordable), Planned(BEST, epochs - each * len(affordable))]


def _starts(settings: PruneSettings, fresh: bool) -> tuple[list[str], int]:
    """The starts that are wanted, what promises most first, and the part of the epochs, one over it, that they may take."""
    wanted = settings.final or "finetune"
    if wanted == "auto":
        draws = (settings.draws or DRAWS) if fresh else 0
        return ["finetune", *["fresh"][:draws], "rewind", *["fresh"] * (draws - 1)], 2
    if wanted == "fresh" and (settings.draws or 1) > 1:
        return ["fresh"] * (settings.draws or 1), 3
    return [wanted], 1


def _is_better(score: Score, leading: Trial, continued: bool) -> bool:
    gain, noise = score.measure.gain(score.value, leading.score), _standard_error(score)
    return gain > noise or (abs(gain) <= noise and (continued or score.loss <= leading.loss))


def _standard_error(score: Score) -> float:
    """Of a top-1 accuracy, in points; of any other score it is not known, and taken for nothing."""
    if score.top1 is None:
        return 0.0
    share = score.top1 / 100
    return 100 * math.sqrt(share * (1 - share) / score.samples)
