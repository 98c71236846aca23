"""`slimcli.prune`: the whole loop in memory."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from slimcli.data.loaders import Data
from slimcli.data.sources import open_data
from slimcli.errors import ArchError, DivergedError
from slimcli.measures import Score
from slimcli.networks.layers import check_numbers, check_weights
from slimcli.pipeline.origins import Known, builder
from slimcli.pipeline.outset import start, suited
from slimcli.pipeline.prune import Loop
from slimcli.pipeline.subject import check_takes
from slimcli.pipeline.work import Work
from slimcli.pruning import methods
from slimcli.pruning.history import NormHistory
from slimcli.records import ChannelGroup, Iteration, NetworkCost
from slimcli.settings import PruneSettings
from slimcli.training.engine import Engine


@dataclass(frozen=True)
class Pruned:
    """A slim network and how it was reached; `score` is its accuracy on the test split, `left_out` are the residual blocks that
    it does without, `groups` those of the dense network without them (with the reason of each that may lose nothing),
    `removed` the output channels that each of the dense network's layers lost.
    """

    model: nn.Module
    score: Score
    cost: NetworkCost
    iterations: tuple[Iteration, ...]
    removed: dict[str, list[int]]
    groups: tuple[ChannelGroup, ...]
    history: NormHistory
    budget_met: bool
    left_out: tuple[str, ...] = ()


def _builder_of(model: nn.Module, arch: str, data: Data) -> Callable[[], nn.Module]:
    """What builds the network anew; `ArchError` where `arch` names another one."""
    build = builder(arch, data.classes, data.shape)
    if build().state_dict().keys() != model.state_dict().keys():
        raise ArchError(f"the network given is no {arch}: their layers have other names", "name the arch that built it, or none")
    return build


def prune(model: nn.Module, *, history: NormHistory | None = None, **settings: Any) -> Pruned:
    """Prune a network in memory; the one given is left as it is.

    `settings` are the flags of `slim prune` (`data="cifar10"`, `method="hbfp"`, `macs=0.5`, ...). Without a `history` a few
    epochs are observed first. Raises `slimcli.errors.SlimError`.
    """
    check_numbers(model)
    check_weights(model)
    asked = PruneSettings(**settings)
    resolved = methods.resolve(asked)
    engine = Engine(resolved)
    data = open_data(resolved, batch_size=resolved.batch_size, seed=resolved.seed, device=str(engine.device))
    resolved = suited(resolved, asked, data)
    network = copy.deepcopy(model).to(engine.device)
    check_takes(network, data, type(model).__name__)
    known = copy.deepcopy(history) if history is not None else NormHistory(norm=resolved.norm)
    if history is not None:
        known.check_fits(network)
    past = Known(build=_builder_of(network, resolved.arch, data) if resolved.arch else None)
    resolved = replace(resolved, arch=type(model).__name__)
    engine.group.launch()
    state, plan, origins = start(network, data, known, resolved, past)
    outcome = Loop(Work(state, plan, origins, data, resolved, engine)).run()
    score = engine.evaluate(outcome.network.model, data.test)
    engine.group.part()
    if outcome.diverged:
        raise DivergedError(outcome.diverged, "try a lower learning rate")
    return Pruned(
        outcome.network.model,
        score,
        outcome.network.cost,
        outcome.iterations,
        outcome.network.removed,
        origins.groups,
        outcome.network.history,
        outcome.budget_met,
        outcome.network.left_out,
    )
