"""The last retraining, one method a stage: from each of its starts in turn, the best on the held-out split being kept."""

from __future__ import annotations

from dataclasses import asdict, replace

from slimcli.measures import told
from slimcli.pipeline.state import DONE, checksum
from slimcli.pipeline.trials import Trials
from slimcli.pipeline.work import Work
from slimcli.report.formats import plural
from slimcli.training.losses import Objective


class LastRetraining:
    """The stages after the loop. A stage does its work on the state and names the stage that comes next."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.trials = Trials(work.settings, work.origins)

    def final(self) -> str:
        """The last retraining, annealed to zero, from the next of the starts that are tried."""
        state, trials = self.work.state, self.trials
        if not self.work.retrains or trials.over(state):
            return "accept"
        planned = trials.next(state)
        if state.fit is None:
            if trials.left_out and not state.trials:
                self.work.note("left_out", starts=trials.left_out)
                self.work.engine.progress.say(
                    f"--final-epochs {self.work.settings.final_epochs} is too few for {len(trials.left_out)} of the starts "
                    f"({', '.join(trials.left_out)}); {trials.wanted} would do for all"
                )
            state.network = trials.begin(state)
            self.work.engine.group.agree(f"a network to retrain ({planned.start})", checksum(state.network.model))
        annealed = "onecycle" if self.work.settings.schedule == "constant" else None
        name = f"final ({planned.start})" if trials.several else "final"
        self.work.train(planned.epochs, name, Objective(teacher=self.work.teacher), annealed, self.work.settings.final_lr)
        return "compare"

    def compare(self) -> str:
        """Keep the last retraining that did best on the held-out split."""
        score = self.work.engine.group.broadcast(
            self.work.engine.evaluate(self.work.state.network.model, self.work.data.held_out)
        )
        trial = self.trials.judge(self.work.state, score)
        measure = self.work.measure
        self.work.note("trial", **told(asdict(trial), measure))
        self.work.engine.progress.say(
            f"last retraining ({trial.start}{', continued' * trial.continued}, {plural(trial.epochs, 'epoch')}"
            f"{', taught' * (self.work.teacher is not None)}): held-out "
            f"{measure.title} {measure.figure(score.value)}, loss {score.loss:.4f}"
        )
        return self.work.saved("final")

    def accept(self) -> str:
        """Judge the last retraining too: one that lost more than allowed is taken back."""
        state = self.work.state
        state.network = state.best or state.kept
        state.held_out = self.work.engine.evaluate(state.network.model, self.work.data.held_out)
        measure = self.work.measure
        if state.best is not None and not self.work.allowed(state.held_out.value):
            state.network = state.kept
            state.trials = [replace(trial, chosen=False) for trial in state.trials]
            state.reason += "; the last retraining lost too much and was taken back"
            lost = f"{measure.figure(state.held_out.value)} is beyond the allowed {measure.figure(self.work.limit)}"
            state.held_out = self.work.engine.evaluate(state.network.model, self.work.data.held_out)
            self.work.engine.progress.say(
                f"the last retraining is taken back, its held-out {measure.title} {lost}; kept is the network before it "
                f"({measure.figure(state.held_out.value)})"
            )
        state.kept, state.best = state.network, None
        return self.work.saved(DONE)
