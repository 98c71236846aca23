"""`slim prune`: choose filters, pull pairs together, remove, retrain, until the budget is met or accuracy is lost."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn

from slimcli import processes
from slimcli.data.loaders import Data
from slimcli.errors import ArchError, DivergedError, SettingsError
from slimcli.networks.cost import count
from slimcli.pipeline.decisions import (
    choose,
    dead_units,
    examples_of,
    first_batches,
    found_again,
    merges_of,
    objective_for,
    removal_of,
    remove,
)
from slimcli.pipeline.origins import UNKNOWN, Known, Origins
from slimcli.pipeline.plan import Plan
from slimcli.pipeline.state import DONE, InMemory, Network, State, Store, checksum
from slimcli.pipeline.trials import Trials
from slimcli.pruning import surgery
from slimcli.pruning.history import NormHistory
from slimcli.pruning.merging import factors_of, merge
from slimcli.pruning.verification import verify
from slimcli.records import Iteration, JsonDict, Score, Trial
from slimcli.settings import PruneSettings
from slimcli.training.engine import Engine, Epoch, FitState, seed_everything
from slimcli.training.losses import PLAIN, Objective, Teacher

Note = Callable[..., None]
"""Called as `note(event, **fields)` for every line of the journal."""

MERGE_IMAGES = 2048
"""How many training images the factors of a merge are measured on."""

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


def start(
    model: nn.Module, data: Data, history: NormHistory, settings: PruneSettings, known: Known = UNKNOWN
) -> tuple[State, Plan, Origins]:
    """The state before the first step, with a copy of the dense network and its verified groups, what the settings mean, and
    where the last retraining may start.

    `settings` come from `methods.resolve`. Raises `ArchError` where nothing can be pruned, `SettingsError` where amount or
    widths do not fit the groups.
    """
    if settings.criterion == "history" and history.epochs == 0 and settings.observe_epochs == 0:
        raise SettingsError(
            "there is no norm history to choose pairs by, and --observe-epochs is 0", "observe some, or give --history"
        )
    groups = verify(model, data.shape, surgery.find_groups(model, data.shape, settings.linear))
    if not any(group.prunable for group in groups):
        reasons = "; ".join(f"{group.name}: {group.reason}" for group in groups[:8])
        raise ArchError(
            f"{settings.arch or 'the network'} has no group of channels that can be pruned ({reasons})",
            "see `slim inspect`",
        )
    if settings.final == "fresh" and known.build is None:
        raise SettingsError("--final fresh needs to know how the network is built", "name it with arch=")
    network = Network(copy.deepcopy(model), history, groups, count(model, data.shape))
    state = State(network, network, torch.Generator().manual_seed(settings.seed).get_state())
    return state, Plan.of(settings, network), Origins(model, groups, data.shape, known)


def go_on(
    content: JsonDict, model: nn.Module, data: Data, settings: PruneSettings, known: Known = UNKNOWN
) -> tuple[State, Plan, Origins]:
    """What `start` gave, as it stood when the state was saved; `model` is the dense network. Nothing is verified again."""
    state = State.from_content(content, model, data.shape)
    groups = found_again(state.kept.groups, surgery.find_groups(model, data.shape, settings.linear))
    dense = Network(model, state.kept.history, groups, count(model, data.shape))
    return state, Plan.of(settings, dense), Origins(model, groups, data.shape, known)


class Loop:
    """The loop, one method a stage: it does the stage's work on the state and names the stage that comes next.

    The state is saved after every epoch and after every stage that cannot be had again from the state before. Choices are
    made on `data.held_out` alone. A loss that is lost takes the run back to the last saved state, once with a lower
    learning rate; the second time it ends with the last network that was kept.
    """

    def __init__(
        self,
        state: State,
        plan: Plan,
        origins: Origins,
        data: Data,
        settings: PruneSettings,
        engine: Engine,
        teacher: nn.Module | None = None,
        note: Note = lambda *_, **__: None,
        store: Store | None = None,
    ) -> None:
        self.state, self.plan, self.data, self.settings = state, plan, data, settings
        self.engine, self.note, self.store = engine, note, store or InMemory()
        self._dense, self._origins = origins.dense, origins
        self._trials = Trials(settings, origins)
        self._teacher = None
        if settings.distill:
            teacher = teacher or origins.dense
            macs = count(teacher, data.shape).macs
            self._teacher = Teacher(teacher, settings.distill_weight, settings.distill_temperature, macs)
        self._since = time.perf_counter()

    def run(self) -> Outcome:
        """From wherever the state stands to the end."""
        self.engine.epochs_done, self.engine.lr_scale = self.state.epochs, self.state.lr_scale
        if self.state.dense is None:
            self.state.dense = self.engine.evaluate(self.state.network.model, self.data.held_out)
            self._saved(self.state.stage)
        stages = {
            "observe": self.observe,
            "choose": self.choose,
            "tie": self.tie,
            "operate": self.operate,
            "retrain": self.retrain,
            "judge": self.judge,
            "final": self.final,
            "compare": self.compare,
            "accept": self.accept,
        }
        while self.state.stage != DONE:
            try:
                self.state.stage = stages[self.state.stage]()
            except DivergedError as error:
                self._recover(error)
        return self._outcome()

    def observe(self) -> str:
        """Record a norm history where there is none."""
        network = self.state.network
        if self.settings.criterion == "history":
            if network.history.epochs == 0 or self.state.fit is not None:
                self._train(self.settings.observe_epochs, "observe")
        elif network.history.epochs == 0:
            network.history.record(network.model)
        return "choose"

    def choose(self) -> str:
        """The criterion's decision, or the end of the loop."""
        state = self.state
        counts = self.plan.counts(state.kept)
        done = len(state.iterations)
        if self.plan.budget.met(state.kept, done) or not any(counts.values()):
            state.reason = self.plan.budget.ending(state.kept, done)
            return self._saved("final")
        self._since, state.seconds = time.perf_counter(), 0.0
        state.network = copy.deepcopy(state.kept)
        generator = torch.Generator()
        generator.set_state(state.draws)
        choices = choose(state.network, counts, self.settings, generator, self.data.shape)
        state.choices, state.draws = self.engine.group.broadcast((choices, generator.get_state()))
        return "tie"

    def tie(self) -> str:
        """Pull the chosen pairs together. Without a penalty this is plain training: every method gets the same schedule."""
        objective = objective_for(self.state.network, self.state.choices, self.settings, self.data.shape)
        self._train(self.settings.tie_epochs, f"tie {self._index}", objective)
        return "operate"

    def operate(self) -> str:
        """Merge and remove what was chosen, and measure what that alone cost."""
        network, shape = self.state.network, self.data.shape
        removal = self.engine.group.broadcast(removal_of(network, self.state.choices, self.settings, shape))
        examples = examples_of(network, self.state.choices, removal)
        if self.settings.merge:
            merges = merges_of(network, self.state.choices, removal, shape)
            seed_everything(self.settings.seed, self.engine.epochs_done)
            with self.engine.memory_named("measuring the factors of a merge"):
                images = first_batches(self.data.train, MERGE_IMAGES)
                factors = factors_of(network.model, images, merges) if processes.is_main() else []
            merge(network.model, merges, self.engine.group.broadcast(factors))
        remove(network, removal, shape, self.settings.linear)
        self.engine.group.agree(f"a network after the removals of iteration {self._index}", network.structure())
        score = self.engine.evaluate(network.model, self.data.held_out)
        self.state.top1_after_surgery = score.top1
        self.note(
            "surgery",
            iteration=self._index,
            removed={name: list(units) for name, units in removal.items()},
            widths={group.name: group.channels for group in network.prunable},
            macs=network.cost.macs,
            params=network.cost.params,
            top1=score.top1,
            examples=examples,
            layers=[asdict(layer) for layer in network.cost.layers],
        )
        return self._saved("retrain")

    def retrain(self) -> str:
        """Let the survivors recover."""
        self._train(self.settings.epochs, f"retrain {self._index}")
        return "judge"

    def judge(self) -> str:
        """Keep the network, or take the iteration back and end the loop."""
        state, network = self.state, self.state.network
        score = self.engine.evaluate(network.model, self.data.held_out)
        step = Iteration(
            index=self._index,
            macs=network.cost.macs,
            params=network.cost.params,
            top1=score.top1,
            top1_after_surgery=state.top1_after_surgery,
            epochs=self.settings.epochs,
            removed=state.kept.filters - network.filters,
            seconds=round(self._elapsed(), 3),
            kept=self.engine.group.broadcast(score.top1 >= self._lowest),
        )
        self.note("iteration", **asdict(step))
        self.engine.progress.say(_line(step, self._dense_score, self.plan, network))
        state.iterations.append(step)
        if step.kept:
            state.kept = network
            return self._saved("choose")
        state.network = state.kept
        state.reason = f"iteration {step.index} lost more than the allowed {self.settings.max_drop:g} points"
        return self._saved("final")

    def final(self) -> str:
        """The last retraining, annealed to zero, from the next of the starts that are tried."""
        state, trials = self.state, self._trials
        if not self._retrains or trials.over(state):
            return "accept"
        turn = trials.turn(state)
        if state.fit is None:
            state.network = trials.begin(state)
            self.engine.group.agree(f"a network to retrain ({turn.start})", checksum(state.network.model))
        annealed = "onecycle" if self.settings.schedule == "constant" else None
        name = f"final ({turn.start})" if trials.several else "final"
        self._train(turn.epochs, name, Objective(teacher=self._teacher), annealed, self.settings.final_lr)
        return "compare"

    def compare(self) -> str:
        """Keep the last retraining that did best on the held-out split."""
        score = self.engine.group.broadcast(self.engine.evaluate(self.state.network.model, self.data.held_out))
        trial = self._trials.judge(self.state, score)
        self.note("trial", **asdict(trial))
        if self._trials.several:
            self.engine.progress.say(
                f"last retraining ({trial.start}{', continued' * trial.continued}, {trial.epochs} epochs): "
                f"held-out top-1 {score.top1:.2f}, loss {score.loss:.4f}"
            )
        return self._saved("final")

    def accept(self) -> str:
        """Judge the last retraining too: one that lost more than allowed is taken back."""
        state = self.state
        state.network = state.best or state.kept
        state.held_out = self.engine.evaluate(state.network.model, self.data.held_out)
        if state.best is not None and self.engine.group.broadcast(state.held_out.top1 < self._lowest):
            state.network = state.kept
            state.trials = [replace(trial, chosen=False) for trial in state.trials]
            state.reason += "; the last retraining lost accuracy and was taken back"
            state.held_out = self.engine.evaluate(state.network.model, self.data.held_out)
        state.kept, state.best = state.network, None
        return self._saved(DONE)

    @property
    def _index(self) -> int:
        return len(self.state.iterations) + 1

    @property
    def _kept_iterations(self) -> int:
        return sum(step.kept for step in self.state.iterations)

    @property
    def _retrains(self) -> bool:
        """Whether there is a last retraining: something was removed, or nothing was to be."""
        return bool(self._kept_iterations) or self.settings.iterations == 0

    @property
    def _dense_score(self) -> Score:
        assert self.state.dense is not None
        return self.state.dense

    @property
    def _lowest(self) -> float:
        return self._dense_score.top1 - self.settings.max_drop

    def _train(
        self,
        epochs: int,
        phase: str,
        objective: Objective = PLAIN,
        schedule: str | None = None,
        lr: float | None = None,
    ) -> None:
        """A training phase: each epoch goes into the norm history, the journal and the state."""
        network = self.state.network

        def after_epoch(epoch: Epoch, fit: FitState) -> None:
            network.history.record(network.model)
            self.note("epoch", **asdict(epoch))
            taught = self._teacher.macs if objective.teacher and self._teacher else 0
            self.state.training_macs += self.data.train.samples * (3 * network.cost.macs + taught)
            self.state.fit = fit
            self._save()

        fit = self.state.fit
        self.engine.fit(network.model, self.data.train, epochs, phase, objective, after_epoch, schedule, fit, lr)
        self.state.fit = None

    def _elapsed(self) -> float:
        """Seconds spent on this iteration, those before an interruption included."""
        now = time.perf_counter()
        self.state.seconds += now - self._since
        self._since = now
        return self.state.seconds

    def _save(self) -> None:
        self._elapsed()
        self.state.epochs = self.engine.epochs_done
        self.store.save(self.state)

    def _saved(self, stage: str) -> str:
        """The next stage, after the state was saved as standing before it."""
        self.state.stage = stage
        self._save()
        return stage

    def _recover(self, error: DivergedError) -> None:
        """Go back to the last saved state with a lower learning rate. If that was tried: of several last retrainings go on with
        the next, else end with the last network that was kept.
        """
        content = self.engine.group.broadcast(self.store.load() if processes.is_main() else {})
        self.state = state = State.from_content(content, self._dense, self.data.shape)
        self.engine.epochs_done = state.epochs
        if state.lr_scale == 1:
            rate = (self.settings.final_lr if state.stage == "final" else None) or self.settings.lr
            state.lr_scale = self.engine.lr_scale = LOWERED
            lowered = rate * LOWERED
            warning = f"{error.message}: back to the last saved state, with a learning rate of {lowered:.2g}"
            self.engine.progress.warn(warning)
            self.note("diverged", message=error.message, lr=lowered)
            self._save()
            return
        state.fit = None
        if state.stage == "final" and self._trials.several:
            self.note("trial", **asdict(self._trials.give_up(state)))
            self.engine.progress.warn(f"{error.message}, also with a lowered learning rate: this last retraining is given up")
            state.lr_scale = self.engine.lr_scale = 1.0
            self._saved("final")
            return
        state.network = state.kept
        state.diverged = f"{error.message}, also with a lowered learning rate"
        state.reason = state.diverged
        self._saved("accept")

    def _dead(self) -> dict[str, int]:
        if not processes.is_main():
            return {}
        with self.engine.memory_named("counting dead filters"):
            images = first_batches(self.data.held_out, self.data.held_out.samples)
            return dead_units(self.state.network, images, self.data.shape)

    def _outcome(self) -> Outcome:
        state = self.state
        assert state.held_out is not None
        return Outcome(
            state.network,
            tuple(state.iterations),
            tuple(state.trials),
            self._dead(),
            self.plan.budget.satisfied(state.network, self._kept_iterations),
            state.epochs,
            state.training_macs,
            self._dense_score,
            state.held_out,
            state.reason,
            state.diverged,
        )


def _line(step: Iteration, dense: Score, plan: Plan, network: Network) -> str:
    cost = plan.budget.dense_cost
    widths = ",".join(str(group.channels) for group in network.prunable[:6]) + ("..." if len(network.prunable) > 6 else "")
    return (
        f"iteration {step.index}: MACs {step.macs / cost.macs:.1%}, parameters {step.params / cost.params:.1%}, "
        f"held-out top-1 {step.top1:.2f} ({step.top1 - dense.top1:+.2f}; {step.top1_after_surgery:.2f} right after surgery), "
        f"widths {widths}, {step.seconds:.1f} s" + ("" if step.kept else " - beyond the allowed drop, taken back")
    )
