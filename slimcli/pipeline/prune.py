"""`slim prune`: choose filters, pull pairs together, remove, retrain, until the budget is met or accuracy is lost."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from slimcli.data.loaders import Data
from slimcli.errors import ArchError, SettingsError
from slimcli.networks.cost import count, layers_of
from slimcli.pruning import surgery
from slimcli.pruning.amounts import Amount, per_group
from slimcli.pruning.history import NormHistory, filter_norms
from slimcli.pruning.rankings import CRITERIA, GroupView, losers
from slimcli.records import ChannelGroup, Choice, Iteration, JsonDict, NetworkCost, Score
from slimcli.settings import PruneSettings
from slimcli.training.engine import Engine, Epoch
from slimcli.training.losses import PENALTIES, TiedPair

Note = Callable[..., None]
"""Called as `note(event, **fields)` for every line of the journal."""


@dataclass
class Network:
    """The network as it is now, and what belongs to it: everything that a step back must restore."""

    model: nn.Module
    history: NormHistory
    groups: tuple[ChannelGroup, ...]
    cost: NetworkCost
    removed: dict[str, list[int]] = field(default_factory=dict)

    @property
    def filters(self) -> int:
        """Output channels of all conv and linear layers."""
        return sum(layer.filters for layer in self.cost.layers)

    @property
    def prunable(self) -> list[ChannelGroup]:
        """The groups that may lose channels."""
        return [group for group in self.groups if group.prunable]


@dataclass(frozen=True)
class Outcome:
    """The slim network and how it was reached. `budget_met` is False where accuracy ran out first."""

    network: Network
    iterations: tuple[Iteration, ...]
    budget_met: bool
    epochs: int
    dense_held_out: Score
    held_out: Score
    reason: str


def prune(
    network: Network,
    plan: Plan,
    data: Data,
    settings: PruneSettings,
    engine: Engine,
    note: Note = lambda *_, **__: None,
    keep: Callable[[Network], None] = lambda network: None,
) -> Outcome:
    """The loop, from the network and the plan that `start` gave; `keep` is called with every network that is worth saving.

    Choices are made on `data.held_out` alone. Raises `DivergedError`; what was kept before then is good.
    """
    budget = plan.budget
    dense = engine.evaluate(network.model, data.held_out)
    lowest = dense.top1 - settings.max_drop
    trainer = _Trainer(engine, data, note)
    if network.history.epochs == 0:
        if settings.criterion == "history":
            trainer.fit(network, settings.observe_epochs, "observe")
        else:
            network.history.record(network.model)
    generator = torch.Generator().manual_seed(settings.seed)
    iterations: list[Iteration] = []
    reason = ""
    while not reason:
        counts = plan.counts(network)
        if budget.met(network, len(iterations)) or not any(counts.values()):
            reason = budget.ending(network, len(iterations))
            break
        started, before = time.perf_counter(), copy.deepcopy(network)
        index = len(iterations) + 1
        choices = choose(network, counts, settings, generator)
        filters_before = network.filters
        # Without a penalty these epochs are plain training: every method gets the same schedule.
        trainer.fit(network, settings.tie_epochs, f"tie {index}", penalty_for(network, choices, settings))
        after_surgery = operate(network, choices, data, settings, engine, partial(note, iteration=index))
        trainer.fit(network, settings.epochs, f"retrain {index}")
        score = engine.evaluate(network.model, data.held_out)
        step = Iteration(
            index=index,
            macs=network.cost.macs,
            params=network.cost.params,
            top1=score.top1,
            top1_after_surgery=after_surgery.top1,
            epochs=settings.epochs,
            removed=filters_before - network.filters,
            seconds=round(time.perf_counter() - started, 3),
            kept=score.top1 >= lowest,
        )
        iterations.append(step)
        note("iteration", **asdict(step))
        if step.kept:
            keep(network)
        engine.progress.say(_line(step, dense, budget.dense_cost, network))
        if not step.kept:
            network, reason = before, f"iteration {index} lost more than the allowed {settings.max_drop:g} points"
    kept = sum(step.kept for step in iterations)
    if kept:
        before = copy.deepcopy(network)
        trainer.fit(network, settings.final_epochs, "final")
    held_out = engine.evaluate(network.model, data.held_out)
    if kept and held_out.top1 < lowest:
        network, reason = before, f"{reason}; the last retraining lost accuracy and was taken back"
        held_out = engine.evaluate(network.model, data.held_out)
    met = budget.satisfied(network, kept)
    return Outcome(network, tuple(iterations), met, engine.epochs_done, dense, held_out, reason)


def start(model: nn.Module, data: Data, history: NormHistory, settings: PruneSettings) -> tuple[Network, Plan]:
    """A copy of the dense network with its verified groups, and what the settings mean for it.

    `settings` come from `methods.resolve`. Raises `ArchError` where nothing can be pruned, `SettingsError` where amount or
    widths do not fit the groups.
    """
    if settings.criterion == "history" and history.epochs == 0 and settings.observe_epochs == 0:
        raise SettingsError(
            "there is no norm history to choose pairs by, and --observe-epochs is 0", "observe some, or give --history"
        )
    groups = surgery.verify(model, data.shape, surgery.find_groups(model, data.shape, settings.linear))
    if not any(group.prunable for group in groups):
        reasons = "; ".join(f"{group.name}: {group.reason}" for group in groups[:8])
        raise ArchError(
            f"{settings.arch or 'the network'} has no group of channels that can be pruned ({reasons})",
            "see `slim inspect`",
        )
    network = Network(copy.deepcopy(model), history, groups, count(model, data.shape))
    return network, Plan(Amount(settings.amount, network.prunable), Budget(settings, network))


@dataclass(frozen=True)
class Plan:
    """How many filters go in each iteration, and when it is enough."""

    amount: Amount
    budget: Budget

    def counts(self, network: Network) -> dict[str, int]:
        """How many channels each group loses now."""
        return self.budget.trim({group.name: self.amount.of(group) for group in network.prunable}, network)


class Budget:
    """When the run has reached what was asked for, measured against the dense network."""

    def __init__(self, settings: PruneSettings, dense: Network) -> None:
        self.dense_cost = dense.cost
        self._settings = settings
        self._widths = per_group("--widths", settings.widths, dense.prunable) if settings.widths else {}

    def trim(self, counts: dict[str, int], network: Network) -> dict[str, int]:
        """The counts, reduced so that no group becomes narrower than its width asked for."""
        channels = {group.name: group.channels for group in network.groups}
        return {
            name: min(wanted, max(0, channels[name] - self._widths[name])) if self._widths else wanted
            for name, wanted in counts.items()
        }

    def met(self, network: Network, iterations: int) -> bool:
        """Whether the network is as small as asked for, or the iterations are used up; never so without a limit."""
        s = self._settings
        sized = any((s.macs, s.params, s.widths))
        out_of_turns = s.iterations is not None and iterations >= s.iterations
        return out_of_turns or (sized and self._small_enough(network))

    def satisfied(self, network: Network, iterations: int) -> bool:
        """Whether what was asked for is there: every size, or (where no size was asked for) every iteration."""
        s = self._settings
        if any((s.macs, s.params, s.widths)):
            return self._small_enough(network)
        return s.iterations is None or iterations >= s.iterations

    def ending(self, network: Network, iterations: int) -> str:
        """Why the loop ends here, for the report."""
        if not self.met(network, iterations):
            return "no group can lose another channel"
        return "the budget is met" if self.satisfied(network, iterations) else "the iterations are used up"

    def _small_enough(self, network: Network) -> bool:
        s = self._settings
        return (
            (s.macs is None or network.cost.macs <= s.macs * self.dense_cost.macs)
            and (s.params is None or network.cost.params <= s.params * self.dense_cost.params)
            and all(group.channels <= self._widths[group.name] for group in network.prunable if self._widths)
        )


def choose(network: Network, counts: dict[str, int], settings: PruneSettings, generator: torch.Generator) -> list[Choice]:
    """The criterion's decision for every group that is to lose channels."""
    criterion = CRITERIA[settings.criterion or ""]
    return [
        criterion(
            GroupView(
                group,
                network.history.of_group(group, settings.window) if settings.criterion == "history" else [],
                member_norms(network.model, group, settings.norm),
                settings.distance,
                generator,
            ),
            counts[group.name],
        )
        for group in network.prunable
        if counts[group.name]
    ]


def member_norms(model: nn.Module, group: ChannelGroup, norm: str) -> list[Tensor]:
    """Each member's filter norms, in the order of the group's units."""
    layers = layers_of(model)
    return [filter_norms(layers[m.layer].weight.detach(), norm).cpu()[list(m.channels)] for m in group.members]


def penalty_for(network: Network, choices: list[Choice], settings: PruneSettings) -> Callable[[nn.Module], Tensor] | None:
    """Eq. 8's second term for the chosen pairs, None where the method has none."""
    if settings.penalty in (None, "none"):
        return None
    groups = {group.name: group for group in network.groups}
    tied = tuple(
        TiedPair(tuple((m.layer, m.channels[i], m.channels[j]) for m in groups[choice.group].members))
        for choice in choices
        for i, j in choice.pairs
    )
    function, norms = PENALTIES[settings.penalty], partial(filter_norms, norm=settings.norm)
    return lambda model: settings.lambda_ * function(model, tied, norms)


def operate(network: Network, choices: list[Choice], data: Data, settings: PruneSettings, engine: Engine, note: Note) -> Score:
    """Remove what was chosen, tell the history, and measure what that alone cost."""
    groups = {group.name: group for group in network.groups}
    removal = {c.group: losers(c, member_norms(network.model, groups[c.group], settings.norm)) for c in choices}
    examples = [_example(network.history, groups[c.group], c, removal[c.group]) for c in choices if c.pairs]
    widths = {name: layer.weight.shape[0] for name, layer in layers_of(network.model).items()}
    kept = surgery.remove(network.model, data.shape, removal)
    for layer, filters in kept.items():
        network.history.keep(layer, filters)
        network.removed[layer] = also_removed(network.removed.get(layer, []), widths[layer], filters)
    reasons = {group.name: (group.prunable, group.reason) for group in network.groups}
    network.groups = tuple(
        replace(group, prunable=reasons[group.name][0], reason=reasons[group.name][1])
        for group in surgery.find_groups(network.model, data.shape, settings.linear)
    )
    network.cost = count(network.model, data.shape)
    score = engine.evaluate(network.model, data.held_out)
    note(
        "surgery",
        removed={name: list(units) for name, units in removal.items()},
        widths={group.name: group.channels for group in network.prunable},
        macs=network.cost.macs,
        params=network.cost.params,
        top1=score.top1,
        examples=examples,
    )
    return score


def also_removed(before: list[int], width: int, kept: list[int]) -> list[int]:
    """The removed filters of a layer in the dense network's numbering, after the `width` present ones shrank to `kept`."""
    alive = [c for c in range(width + len(before)) if c not in set(before)]
    return sorted([*before, *(alive[c] for c in range(width) if c not in set(kept))])


def _example(history: NormHistory, group: ChannelGroup, choice: Choice, gone: tuple[int, ...]) -> JsonDict:
    """The nearest pair of a group with its histories, for the report."""
    i, j = choice.pairs[0]
    rows = torch.stack(history.of_group(group)).sum(0)
    return {
        "group": group.name,
        "pair": [i, j],
        "removed": i if i in gone else j,
        "histories": [[round(value, 4) for value in rows[:, unit].tolist()] for unit in (i, j)],
    }


class _Trainer:
    """Training phases of the loop: each epoch goes into the norm history and the journal."""

    def __init__(self, engine: Engine, data: Data, note: Note) -> None:
        self._engine, self._data, self._note = engine, data, note

    def fit(self, network: Network, epochs: int, phase: str, penalty: Any = None) -> None:
        def after_epoch(epoch: Epoch) -> None:
            network.history.record(network.model)
            self._note("epoch", **asdict(epoch))

        annealed = "onecycle" if phase == "final" and self._engine.settings.schedule == "constant" else None
        self._engine.fit(network.model, self._data.train, epochs, phase, penalty, after_epoch, annealed)


def _line(step: Iteration, dense: Score, cost: NetworkCost, network: Network) -> str:
    widths = ",".join(str(group.channels) for group in network.prunable[:6]) + ("..." if len(network.prunable) > 6 else "")
    return (
        f"iteration {step.index}: MACs {step.macs / cost.macs:.1%}, parameters {step.params / cost.params:.1%}, "
        f"held-out top-1 {step.top1:.2f} ({step.top1 - dense.top1:+.2f}; {step.top1_after_surgery:.2f} right after surgery), "
        f"widths {widths}, {step.seconds:.1f} s" + ("" if step.kept else " - beyond the allowed drop, taken back")
    )
