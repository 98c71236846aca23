"""`slim prune`: choose filters, pull pairs together, remove, retrain, until the budget is met or accuracy is lost."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from slimcli import processes
from slimcli.errors import CheckpointError, DivergedError, FlowError
from slimcli.measures import Score
from slimcli.pipeline.decisions import dead_units, first_batches
from slimcli.pipeline.last import LastRetraining
from slimcli.pipeline.state import DONE, Network, State
from slimcli.pipeline.turn import Turn
from slimcli.pipeline.work import Work
from slimcli.records import Iteration, Trial

LOWERED = 1 / 3
"""What the learning rate is multiplied with, once, when the loss is lost."""


@dataclass(frozen=True)
class Outcome:
    """The slim network and how it was reached. `budget_met` is False where accuracy ran out first.

    `trials` are the last retrainings, `dead` the channels of each group that no held-out image activates. `diverged` says
    how the loss was lost for good; empty where it was not.
    """

    network: Network
    iterations: tuple[Iteration, ...]
    trials: tuple[Trial, ...]
    dead: dict[str, int]
    budget_met: bool
    epochs: int
    training_macs: int
    dense_held_out: Score
    held_out: Score
    reason: str
    diverged: str


class Loop:
    """Takes the state from stage to stage: the turns of the loop (`turn.py`), then the last retraining (`last.py`).

    A loss that is lost, or a flow that can no longer be measured, takes the run back to the last saved state, once with a lower
    learning rate; the second time it goes on with the network right after surgery where that is within the allowed drop, else
    it ends with the last network that was kept.
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        self.last = LastRetraining(work)

    def run(self) -> Outcome:
        """From wherever the state stands to the end."""
        self.work.engine.epochs_done, self.work.engine.lr_scale = self.work.state.epochs, self.work.state.lr_scale
        if self.work.state.dense is None:
            self.work.state.dense = self.work.engine.evaluate(self.work.state.network.model, self.work.data.held_out)
            self.work.saved(self.work.state.stage)
        if not math.isfinite(self.work.dense_score.loss):
            raise CheckpointError(
                "the network's outputs on the held-out images are not finite",
                "use an earlier checkpoint, or see to --mean and --std",
            )
        turn, last = Turn(self.work), self.last
        stages = {
            "shorten": turn.shorten,
            "observe": turn.observe,
            "choose": turn.choose,
            "tie": turn.tie,
            "operate": turn.operate,
            "retrain": turn.retrain,
            "judge": turn.judge,
            "clear": turn.clear,
            "final": last.final,
            "compare": last.compare,
            "accept": last.accept,
        }
        while self.work.state.stage != DONE:
            try:
                self.work.state.stage = stages[self.work.state.stage]()
            except (DivergedError, FlowError) as error:
                if isinstance(error, FlowError) and self.work.state.fit is None:
                    raise  # no training led to it, and none would mend it
                self._recover(error.message)
        return self._outcome()

    def _recover(self, lost: str) -> None:
        """Go back to the last saved state with a lower learning rate. If that was tried: of several last retrainings go on with
        the next, else end with the last network that was kept.
        """
        content = self.work.engine.group.broadcast(self.work.store.load() if processes.is_main() else {})
        self.work.state = state = State.from_content(content, self.work.origins.dense, self.work.data.shape)
        self.work.engine.epochs_done = state.epochs
        if state.lr_scale == 1:
            rate = (self.work.settings.final_lr if state.stage == "final" else None) or self.work.settings.lr
            state.lr_scale = self.work.engine.lr_scale = LOWERED
            lowered = rate * LOWERED
            warning = f"{lost}: back to the last saved state, with a learning rate of {lowered:.2g}"
            self.work.engine.progress.warn(warning)
            self.work.note("diverged", message=lost, lr=lowered)
            self.work.save()
            return
        state.fit = None
        if state.stage == "final" and self.last.trials.several:
            self.work.note("trial", **asdict(self.last.trials.give_up(state)))
            self.work.engine.progress.warn(f"{lost}, also with a lowered learning rate: this last retraining is given up")
            state.lr_scale = self.work.engine.lr_scale = 1.0
            self.work.saved("final")
            return
        if state.stage == "retrain" and state.unretrained is not None:
            self.work.engine.progress.warn(f"{lost}, also with a lowered learning rate: kept as it was right after surgery")
            state.network, state.looks = state.unretrained, []
            state.lr_scale = self.work.engine.lr_scale = 1.0
            self.work.saved("judge")
            return
        state.network, state.unretrained, state.looks = state.kept, None, []
        state.diverged = f"{lost}, also with a lowered learning rate"
        state.reason = state.diverged
        self.work.saved("accept")

    def _dead(self) -> dict[str, int]:
        if not processes.is_main():
            return {}
        with self.work.engine.memory_named("counting dead filters"):
            images = (batch[0] for batch in first_batches(self.work.data.held_out, self.work.data.held_out.samples))
            return dead_units(self.work.state.network, images, self.work.data.shape)

    def _outcome(self) -> Outcome:
        state = self.work.state
        assert state.held_out is not None
        return Outcome(
            state.network,
            tuple(state.iterations),
            tuple(state.trials),
            self._dead(),
            self.work.plan.budget.satisfied(state.network, self.work.turns(self.work.kept_iterations)),
            state.epochs,
            state.training_macs,
            self.work.dense_score,
            state.held_out,
            state.reason,
            state.diverged,
        )
