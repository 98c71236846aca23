"""Where a run begins, or where it goes on: its state, what its settings mean, and the dense network that it came from."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from slimcli import processes
from slimcli.data.loaders import Data
from slimcli.errors import ArchError, ParityError, SettingsError
from slimcli.networks.blocks import Chain
from slimcli.networks.cost import count
from slimcli.networks.layers import layers_of, owns_weight
from slimcli.pipeline import depth
from slimcli.pipeline.decisions import found_again
from slimcli.pipeline.origins import UNKNOWN, Known, Origins
from slimcli.pipeline.pace import Pace
from slimcli.pipeline.plan import Plan
from slimcli.pipeline.state import Network, State, units_of_others
from slimcli.progress import Progress
from slimcli.pruning import masks, surgery
from slimcli.pruning.dataflow import consecutive
from slimcli.pruning.history import NormHistory
from slimcli.pruning.scores import batch_norm_scales
from slimcli.pruning.verification import verify
from slimcli.records import JsonDict
from slimcli.settings import PruneSettings


def start(
    model: nn.Module,
    data: Data,
    history: NormHistory,
    settings: PruneSettings,
    known: Known = UNKNOWN,
    progress: Progress | None = None,
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
    if settings.stop in ("if", "flow"):
        consecutive(model, data.shape)  # refuses a network through which nothing flows
    progress = progress or Progress()
    found = surgery.find_groups(model, data.shape, settings.linear)
    whole = Network(copy.deepcopy(model), history, found, count(model, data.shape))
    network, units = _shortened(whole, data, settings, progress)
    groups = network.groups
    if settings.granularity == "filter" and not network.left_out and not any(group.prunable for group in groups):
        reasons = "; ".join(f"{group.name}: {group.reason}" for group in groups[:8])
        raise ArchError(
            f"{settings.arch or 'the network'} has no group of channels that can be pruned ({reasons})",
            "see `slim inspect`",
        )
    if settings.final == "fresh" and known.build is None:
        raise SettingsError("--final fresh needs to know how the network is built", "name it with arch=")
    if settings.criterion == "bn":
        batch_norm_scales(network.model, network.prunable, network.wirings(data.shape))
    if settings.penalty == "scales" and not any(isinstance(m, _BatchNorm) and m.affine for m in model.modules()):
        raise ArchError(f"{settings.arch or 'the network'} has no batch norm whose scales could shrink", "use --penalty none")
    if settings.granularity == "weight":
        for name, layer in layers_of(network.model).items():
            if not owns_weight(layer):
                raise ArchError(
                    f"the weight of {name} is computed (weight norm or another parametrization), so it cannot be masked",
                    "remove the parametrization first, or use --granularity filter",
                )
        network.masks = masks.of(network.model)
    draws = torch.Generator().manual_seed(settings.seed).get_state()
    state = State(network, network, draws)
    if network.left_out:
        state = State(network, whole, draws, stage="shorten")
    plan = Plan.of(settings, network, data.shape, whole.cost)
    plan.budget.check_possible(network)
    if settings.latency is not None and processes.is_main():
        if units is None:
            units = _units_in_time(model, network, plan, data, settings, progress)
        elif network.left_out:
            network.latency = Pace(model, data.shape, progress.say).time(network.model)
        state.units = plan.budget.units = units
    return state, plan, Origins(model, groups, data.shape, known, network.left_out)


def _shortened(whole: Network, data: Data, settings: PruneSettings, progress: Progress) -> tuple[Network, dict[str, int] | None]:
    """The network without what `--leave-out` takes, its groups verified; and what each is narrowed to, where blocks were weighed
    against widths.
    """
    layers = [layer for group in whole.groups for layer in group.layers]

    def verified(network: Network) -> Network:
        taking_part = surgery.taking_part(network.groups, settings.include, settings.exclude, layers)
        return replace(network, groups=verify(network.model, data.shape, taking_part))

    def without(left_out: Sequence[str]) -> Network:
        return verified(whole.without(left_out, data.shape, settings.linear) if left_out else whole)

    chains = depth.chains(whole.model, data, settings)
    if not chains:
        return without(depth.named(whole.model, data, settings)), None
    network = verified(whole)
    plan = Plan.of(settings, network, data.shape)
    units = _units_in_time(whole.model, network, plan, data, settings, progress, chains)
    left_out = [block.name for chain in chains for block in chain.without(units[chain.name])]
    if not left_out:
        return network, {group.name: units[group.name] for group in network.prunable}
    shorter = without(left_out)
    return shorter, units_of_others(units, network.prunable, shorter.prunable)


def _units_in_time(
    model: nn.Module,
    network: Network,
    plan: Plan,
    data: Data,
    settings: PruneSettings,
    progress: Progress,
    chains: Sequence[Chain] = (),
) -> dict[str, int]:
    """What each group is narrowed to for `--latency`, and each chain shortened to; `ArchError` for a network that cannot be
    exported, `SettingsError` for a time that cannot be had.
    """
    pace = Pace(model, data.shape, progress.say)
    try:
        network.latency = pace.time(network.model)
        units = pace.aim(network, plan.budget, chains)
    except ParityError as error:
        raise ArchError(
            f"{settings.arch or 'the network'} cannot be timed, as it cannot be exported: {error.message}",
            "give a budget in --macs or --params",
        ) from error
    if units is None:
        raise SettingsError(
            f"--latency {settings.latency} is out of reach: the network takes {network.latency.dense:.3g} ms here, and "
            f"{pace.least or 1:.1%} of that as narrow as it gets",
            "allow more time" + ("" if settings.linear else ", or let hidden linear layers shrink too: --linear"),
        )
    return units


def suited(settings: PruneSettings, asked: PruneSettings, data: Data) -> PruneSettings:
    """The settings for what the data ask of a network; `asked` are those before `methods.resolve`.

    Raises `SettingsError` where a teacher was asked for, and there are no classes to teach.
    """
    if data.task.classifies or not settings.distill:
        return settings
    if asked.distill or asked.teacher is not None:
        raise SettingsError(
            f"a teacher teaches classes, and {data.name} has a loss of its own", "leave --distill and --teacher out"
        )
    return replace(settings, distill=False)


def go_on(
    content: JsonDict, model: nn.Module, data: Data, settings: PruneSettings, known: Known = UNKNOWN
) -> tuple[State, Plan, Origins]:
    """What `start` gave, as it stood when the state was saved; `model` is the dense network. Nothing is verified again."""
    state = State.from_content(content, model, data.shape)
    whole = Network(model, state.kept.history, (), count(model, data.shape))
    present = state.network if state.network.left_out else state.kept
    dense = whole.without(present.left_out, data.shape, settings.linear)
    groups = dense.groups = found_again(present.groups, dense.groups)
    plan = Plan.of(settings, dense, data.shape, whole.cost)
    return state, plan, Origins(model, groups, data.shape, known, dense.left_out)
