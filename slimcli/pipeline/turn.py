"""One turn of the loop, one method a stage: choose filters, pull pairs together, remove, retrain, judge.

A stage does its work on the state and names the stage that comes next. The state is saved after every epoch and after every
stage that cannot be had again from the state before.
"""

from __future__ import annotations

import copy
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

import torch

from slimcli import processes
from slimcli.measures import Score, told
from slimcli.pipeline.decisions import choose, examples_of, first_batches, merges_of, objective_for, removal_of, remove
from slimcli.pipeline.looks import remaining_weights, rule_of
from slimcli.pipeline.plan import Plan
from slimcli.pipeline.state import Network
from slimcli.pipeline.work import Work
from slimcli.pruning import masks
from slimcli.pruning.merging import factors_of, merge
from slimcli.pruning.stopping import PER_EPOCH, FlowWithin, Rule, allotment
from slimcli.records import Iteration
from slimcli.settings import PruneSettings
from slimcli.training.engine import seed_everything

MERGE_IMAGES = 2048
"""How many training images the factors of a merge are measured on."""


class Turn:
    """The stages from the norm history to the verdict on a smaller network. Choices are made on the held-out split alone."""

    def __init__(self, work: Work) -> None:
        self.work = work

    def shorten(self) -> str:
        """Measure what leaving out whole blocks alone cost. What follows is the same as after any other removal."""
        self.work.since, self.work.state.seconds = time.perf_counter(), 0.0
        self.work.state.allotted = self.work.settings.epochs or 0  # flows of other layers cannot be compared
        return self._operated(None, left_out=list(self.work.state.network.left_out), removed={}, examples=[])

    def observe(self) -> str:
        """Record a norm history where there is none, and something is to be chosen by it."""
        network = self.work.state.network
        met = self.work.plan.budget.met_already(network)
        if self.work.engine.group.broadcast(met):  # only process 0 has timed it
            return self.work.saved("choose")
        if self.work.settings.criterion == "history":
            if network.history.epochs == 0 or self.work.state.fit is not None:
                self.work.train(self.work.settings.observe_epochs, "observe")
        elif network.history.epochs == 0:
            network.history.record(network.model)
        return self.work.saved("choose")

    def choose(self) -> str:
        """The criterion's decision, or the end of the loop."""
        state = self.work.state
        if self.work.settings.latency is not None:
            self._aim()
        counts = self.work.plan.counts(state.kept)
        done = self.work.turns(len(state.iterations))
        if self.work.plan.budget.met(state.kept, done) or not any(counts.values()):
            state.reason = self.work.plan.ending(state.kept, done)
            return self.work.saved(self._after_the_loop)
        self.work.since, state.seconds = time.perf_counter(), 0.0
        state.network = copy.deepcopy(state.kept)
        if state.network.masks is not None:
            return "tie"
        if shares := self.work.plan.shares(state.kept):
            channels = {group.name: group.width for group in state.kept.prunable}
            self.work.note("shares", iteration=self.work.index, groups=shares, channels=channels)
        generator = torch.Generator()
        generator.set_state(state.draws)
        seed_everything(self.work.settings.seed, self.work.engine.epochs_done)
        with self.work.engine.memory_named("choosing filters"):
            main = processes.is_main()
            choices = choose(state.network, counts, self.work.settings, generator, self.work.data) if main else []
        state.choices, state.draws = self.work.engine.group.broadcast((choices, generator.get_state()))
        return "tie"

    def _aim(self) -> None:
        """The widths that are to keep within a latency: those of the last time, or narrower ones where they turned out slower."""
        state, budget, group = self.work.state, self.work.plan.budget, self.work.engine.group
        state.kept.latency, budget.units = group.broadcast((state.kept.latency, state.units))
        iterations = self.work.turns(len(state.iterations))
        if not budget.met(state.kept, iterations) and budget.narrow_enough(state.kept):
            found = self.work.pace.aim(state.kept, budget) if processes.is_main() else None
            least = {each.name: each.least for each in state.kept.prunable}
            budget.units = state.units = group.broadcast(found or least)
        state.units = budget.units

    def tie(self) -> str:
        """Pull the chosen pairs together. Without a penalty this is plain training: every method gets the same schedule."""
        objective = objective_for(self.work.state.network, self.work.state.choices, self.work.settings, self.work.data.shape)
        self.work.train(self.work.settings.tie_epochs or 0, f"tie {self.work.index}", objective)
        return "operate"

    def operate(self) -> str:
        """Merge and remove what was chosen, and measure what that alone cost."""
        network, shape = self.work.state.network, self.work.data.shape
        before = copy.deepcopy(network) if self.work.settings.stop == "flow" else None
        if network.masks is not None:
            return self._mask(before)
        removal = self.work.engine.group.broadcast(removal_of(network, self.work.state.choices, self.work.settings, shape))
        examples = examples_of(network, self.work.state.choices, removal)
        if self.work.settings.merge:
            merges = merges_of(network, self.work.state.choices, removal, shape)
            seed_everything(self.work.settings.seed, self.work.engine.epochs_done)
            with self.work.engine.memory_named("measuring the factors of a merge"):
                images = (batch[0] for batch in first_batches(self.work.data.train, MERGE_IMAGES))
                factors = factors_of(network.model, images, merges) if processes.is_main() else []
            merge(network.model, merges, self.work.engine.group.broadcast(factors))
        remove(network, removal, shape, self.work.settings.linear)
        if self.work.settings.latency is not None:
            network.latency = self.work.engine.group.broadcast(
                self.work.pace.time(network.model) if processes.is_main() else None
            )
        self.work.engine.group.agree(f"a network after the removals of iteration {self.work.index}", network.structure())
        return self._operated(before, removed={name: list(units) for name, units in removal.items()}, examples=examples)

    def _mask(self, unmasked: Network | None) -> str:
        """The removal of single weights: they are held at zero from now on."""
        network = self.work.state.network
        assert network.masks is not None
        counts = self.work.plan.counts(network)
        before = {name: int(mask.sum()) for name, mask in network.masks.items()}
        together = self.work.settings.scope == "global"
        network.masks = self.work.engine.group.broadcast(masks.without_smallest(network.model, network.masks, counts, together))
        masks.apply(network.model, network.masks)
        masked = {name: before[name] - int(mask.sum()) for name, mask in network.masks.items()}
        return self._operated(unmasked, masked=masked, examples=[])

    def _operated(self, before: Network | None, **facts: Any) -> str:
        """Measure what the removal alone cost; under `--rewind` the survivors go back to their dense weights then.

        `before` is the network as it was, where its flow is asked for.
        """
        state, network = self.work.state, self.work.state.network
        score = self.work.engine.evaluate(network.model, self.work.data.held_out)
        state.score_after_surgery = score.value
        self.work.note(
            "surgery",
            iteration=self.work.index,
            **facts,
            widths={group.name: group.width for group in network.prunable},
            macs=network.cost.macs,
            params=network.cost.params,
            layers=[asdict(layer) for layer in network.cost.layers],
            **told({"score": score.value}, self.work.measure),
        )
        if before is not None:
            self._allot(before)
        if self.work.settings.rewind:
            state.network = self.work.origins.back_to_dense(network, self.work.settings)
        may_lose = bool(self.work.settings.epochs) and not self.work.settings.rewind
        state.unretrained = copy.deepcopy(network) if may_lose and self.work.allowed(score.value) else None
        return self.work.saved("retrain")

    def _allot(self, before: Network) -> None:
        """As many epochs as the removal broke of the flow, with what is owed from the ones before."""
        state, settings = self.work.state, self.work.settings
        state.moved = self.work.engine.group.broadcast(self.work.watch.moved(before, state.network))
        state.allotted, state.owed = allotment(state.owed + state.moved**2, self._per_epoch)
        epochs = min(state.allotted, settings.epochs or 0)
        self.work.note("allotted", iteration=self.work.index, moved=state.moved, epochs=epochs, owed=state.owed)

    def _epsilon(self, rule: Rule) -> float | None:
        """What the rule goes by, where it goes by an epsilon."""
        if isinstance(rule, FlowWithin):
            return rule.epsilon
        return self._per_epoch if self.work.settings.stop == "flow" else None

    @property
    def _per_epoch(self) -> float:
        """The share of the flow that may break for each epoch that `flow` gives out."""
        return PER_EPOCH if self.work.settings.epsilon is None else self.work.settings.epsilon

    def retrain(self) -> str:
        """Let the survivors recover until the stopping rule says that it is enough."""
        # A rule may end it after any epoch: a schedule over all of them would then be cut off at its highest rate.
        schedule = None if self.work.settings.stop == "epochs" else "constant"
        self.work.train(self.work.settings.epochs or 0, f"retrain {self.work.index}", schedule=schedule, rule=self._rule())
        return "judge"

    def _rule(self) -> Rule:
        return rule_of(self.work.settings, self.work.dense_score, self.work.state.allotted)

    def judge(self) -> str:
        """Keep the network; or as it was before its retraining, where that lost too much; or take the iteration back and end the
        loop.
        """
        state, network = self.work.state, self.work.state.network
        score = self.work.score()
        if undone := state.unretrained is not None and not self.work.allowed(score):
            assert state.unretrained is not None
            state.network, score = state.unretrained, state.score_after_surgery
            network = state.network
        alive = masks.alive(network.masks) if network.masks is not None else network.filters
        before = masks.alive(state.kept.masks) if state.kept.masks is not None else state.kept.filters
        rule = self._rule()
        stopped = not undone and bool(state.looks) and rule.enough(state.looks) and self.work.allowed(score)
        step = Iteration(
            index=self.work.index,
            macs=network.cost.macs,
            params=network.cost.params,
            score=score,
            score_after_surgery=state.score_after_surgery,
            epochs=sum(look.loss is not None for look in state.looks),
            removed=before - alive,
            seconds=round(self.work.elapsed(), 3),
            remaining=remaining_weights(network, self.work.origins.dense),
            stopped=stopped,
            held_back=not stopped and any(rule.enough(state.looks[: seen + 1]) for seen in range(len(state.looks))),
            flow_distance=tuple(look.distance for look in state.looks if look.loss is not None and look.distance is not None),
            flow_distance_after_surgery=state.looks[0].distance if state.looks else None,
            epsilon=self._epsilon(rule),
            flow_moved=state.moved,
            undone=undone,
            latency_ms=round(network.latency.slim, 4) if network.latency else None,
            kept=self.work.allowed(score),
        )
        self.work.note("iteration", **told(asdict(step), self.work.measure))
        self.work.engine.progress.say(
            _line(step, self.work.dense_score, self.work.plan, network, self.work.settings) + self._flows(step) + _verdict(step)
        )
        state.iterations.append(step)
        state.looks, state.unretrained = [], None
        if step.kept:
            state.kept = network
            return self.work.saved("observe" if network.left_out and step.index == 1 else "choose")
        state.network = state.kept
        state.reason = (
            f"iteration {step.index} lost more than the allowed {self.work.settings.max_drop:g} {self.work.measure.allowance}"
        )
        return self.work.saved(self._after_the_loop)

    def _flows(self, step: Iteration) -> str:
        """What the rule went by, where it went by a flow."""
        if step.flow_distance_after_surgery is not None:
            now = (step.flow_distance_after_surgery, *step.flow_distance)[-1]
            wanted = f"; asked for: at most {step.epsilon:.3f}" if step.epsilon is not None else ""
            before = f"{step.flow_distance_after_surgery:.3f} before the retraining"
            return f", flow distance from the dense network {now:.3f} ({before}{wanted})"
        if step.flow_moved is not None:
            return f", {step.flow_moved**2:.0%} of the flow broken and {self.work.state.owed:.0%} carried over"
        return ""

    @property
    def _after_the_loop(self) -> str:
        return "final" if self.work.state.kept.masks is None else "clear"

    def clear(self) -> str:
        """Of a masked network, take out the filters that have no living weight left, or that nothing reads.

        A filter without weights still gives a constant, its bias: where too much accuracy hangs on it, all stay.
        """
        state = self.work.state
        network, shape = copy.deepcopy(state.kept), self.work.data.shape
        assert network.masks is not None
        taken: Counter[str] = Counter()
        while dead := masks.dead_units(network.model, network.masks, network.wirings(shape)):
            network.masks = masks.after_removal(network.model, shape, network.masks, dead)
            remove(network, dead, shape, self.work.settings.linear)
            taken.update({name: len(units) for name, units in dead.items()})
        if not taken:
            return self.work.saved("final")
        score, filters = self.work.engine.evaluate(network.model, self.work.data.held_out), taken.total()
        facts, measure = told({"score": score.value}, self.work.measure), self.work.measure
        if not self.work.allowed(score.value):
            self.work.engine.progress.say(
                f"{filters} filter(s) without a living weight stay: without the constants that they give, held-out "
                f"{measure.title} is {measure.figure(score.value)}, beyond the allowed {measure.figure(self.work.limit)}"
            )
            self.work.note("dead_stay", filters=dict(taken), **facts)
            return self.work.saved("final")
        before = state.kept.cost.macs
        state.network = state.kept = network
        self.work.note(
            "cleared",
            filters=dict(taken),
            **facts,
            macs=network.cost.macs,
            params=network.cost.params,
            alive=masks.alive(network.masks),
            layers=[asdict(layer) for layer in network.cost.layers],
        )
        saved = f"{1 - network.cost.macs / before:.1%} fewer MACs, held-out {measure.title} {measure.figure(score.value)}"
        self.work.engine.progress.say(f"{filters} filter(s) without a living weight are taken out: {saved}")
        return self.work.saved("final")


def _line(step: Iteration, dense: Score, plan: Plan, network: Network, settings: PruneSettings) -> str:
    cost, measure = plan.budget.dense_cost, dense.measure
    epochs = ""
    if settings.stop != "epochs":
        met = "met" if step.stopped else "met, but while more was lost than --max-drop" if step.held_back else "not met"
        epochs = f" after {step.epochs} epoch{'s' * (step.epochs != 1)}, --stop {settings.stop} {met}"
    size = f"weights {step.remaining:.1%}, " if network.masks is not None else ""
    widths = ",".join(str(group.width) for group in network.prunable[:6]) + ("..." if len(network.prunable) > 6 else "")
    if network.latency is not None:
        now, whole = network.latency.slim, network.latency.dense
        size += f"latency {now:.3g} of {whole:.3g} ms ({now / whole:.1%}), "
    return (
        f"iteration {step.index}: {size}MACs {step.macs / cost.macs:.1%}, parameters {step.params / cost.params:.1%}, "
        f"held-out {measure.title} {measure.figure(step.score)} ({measure.change(step.score, dense.value)}; "
        f"{measure.figure(step.score_after_surgery)} right after surgery)"
        f"{epochs}, widths {widths}, {step.seconds:.1f} s"
    )


def _verdict(step: Iteration) -> str:
    if step.undone:
        return " - kept as it was right after surgery: its retraining went beyond the allowed drop"
    return "" if step.kept else " - beyond the allowed drop, taken back"
