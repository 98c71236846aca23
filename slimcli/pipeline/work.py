"""What every stage of a pruning run works with, and what all of them do: train, note, save."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace

from torch import nn

from slimcli.data.loaders import Data
from slimcli.measures import Measure, Score, told
from slimcli.networks.cost import count
from slimcli.pipeline.looks import Watch
from slimcli.pipeline.origins import Origins
from slimcli.pipeline.pace import Pace
from slimcli.pipeline.plan import Plan
from slimcli.pipeline.state import InMemory, Network, State, Store
from slimcli.pruning import masks
from slimcli.pruning.stopping import Look, Rule
from slimcli.settings import PruneSettings
from slimcli.training.engine import Engine, Epoch, FitState
from slimcli.training.losses import PLAIN, Objective, Teacher

Note = Callable[..., None]
"""Called as `note(event, **fields)` for every line of the journal."""


@dataclass
class Work:
    """The state of a run, and what does not change while it runs.

    `plan` is what the settings mean, `origins` knows the dense network, `taught_by` another network that teaches in the last
    retraining, `note` writes the journal, `store` keeps states.
    """

    state: State
    plan: Plan
    origins: Origins
    data: Data
    settings: PruneSettings
    engine: Engine
    taught_by: nn.Module | None = None
    note: Note = lambda *_, **__: None
    store: Store = field(default_factory=InMemory)

    def __post_init__(self) -> None:
        self.pace = Pace(self.origins.dense, self.data.shape, self.engine.progress.say)
        self.watch = Watch(self.settings, self.origins, self.data, self.engine)
        self.teacher: Teacher | None = None
        if self.settings.distill:
            network = self.taught_by or self.origins.dense
            macs = count(network, self.data.shape).macs
            self.teacher = Teacher(network, self.settings.distill_weight, self.settings.distill_temperature, macs)
        self.since = time.perf_counter()

    @property
    def index(self) -> int:
        """The number of the present iteration, from 1."""
        return len(self.state.iterations) + 1

    @property
    def kept_iterations(self) -> int:
        """How many iterations were within the allowed drop."""
        return sum(step.kept for step in self.state.iterations)

    def turns(self, iterations: int) -> int:
        """How many of the iterations were turns of the loop; where blocks were left out, the first was not."""
        return iterations - bool(self.origins.left_out and iterations)

    @property
    def retrains(self) -> bool:
        """Whether there is a last retraining: something was removed, or nothing was to be."""
        return bool(self.kept_iterations) or self.settings.iterations == 0

    @property
    def dense_score(self) -> Score:
        """The dense network on the held-out split."""
        assert self.state.dense is not None
        return self.state.dense

    @property
    def measure(self) -> Measure:
        """What networks are judged by."""
        return self.dense_score.measure

    @property
    def limit(self) -> float:
        """The worst score on the held-out split that is allowed."""
        return self.measure.limit(self.dense_score.value, self.settings.max_drop)

    def train(
        self,
        epochs: int,
        phase: str,
        objective: Objective = PLAIN,
        schedule: str | None = None,
        lr: float | None = None,
        rule: Rule | None = None,
    ) -> None:
        """A training phase: each epoch goes into the norm history, the journal and the state. `rule` may end it early, or
        before it begins; but not while the network is worse than the allowed drop, which would end the run.
        """
        state, network = self.state, self.state.network
        if state.fit is None:
            state.looks = [] if rule is None else [self._looked(phase, network)]
        if rule is not None and self.enough(rule):  # a run that goes on may have been about to end the phase
            state.fit = None
            return

        def after_epoch(epoch: Epoch, fit: FitState) -> bool:
            network.history.record(network.model)
            self.note("epoch", **asdict(epoch))
            taught = self.teacher.macs if objective.teacher and self.teacher else 0
            state.training_macs += self.data.train.samples * (3 * network.cost.macs + taught)
            state.fit = fit
            if rule is not None:
                state.looks.append(self._looked(phase, network, epoch))
            self.save()
            return rule is not None and self.enough(rule)

        with masks.held(network.model, network.masks or {}):
            self.engine.fit(network.model, self.data.train, epochs, phase, objective, after_epoch, schedule, state.fit, lr)
        state.fit = None

    def enough(self, rule: Rule) -> bool:
        """Whether the rule is met, by a network within the allowed drop."""
        if not rule.enough(self.state.looks):
            return False
        return self.allowed(self.score())

    def score(self) -> float:
        """The network's score on the held-out split; where a rule has looked at it, measured at most once since then."""
        looks = self.state.looks
        if looks and looks[-1].score is not None:
            return looks[-1].score
        score = self.engine.evaluate(self.state.network.model, self.data.held_out).value
        if looks:
            looks[-1] = replace(looks[-1], score=score)
        return score

    def allowed(self, score: float) -> bool:
        """Whether this score on the held-out split is within the allowed drop."""
        return self.engine.group.broadcast(self.measure.gain(score, self.limit) >= 0)

    def _looked(self, phase: str, network: Network, epoch: Epoch | None = None) -> Look:
        look = self.watch.look(network, epoch)
        if (look.score, look.distance) != (None, None):
            self.note("look", phase=phase, epoch=epoch.index + 1 if epoch else 0, **told(asdict(look), self.measure))
        return look

    def elapsed(self) -> float:
        """Seconds spent on this iteration, those before an interruption included."""
        now = time.perf_counter()
        self.state.seconds += now - self.since
        self.since = now
        return self.state.seconds

    def save(self) -> None:
        """Save the state as it stands."""
        self.elapsed()
        self.state.epochs = self.engine.epochs_done
        self.store.save(self.state)

    def saved(self, stage: str) -> str:
        """The next stage, after the state was saved as standing before it."""
        self.state.stage = stage
        self.save()
        return stage
