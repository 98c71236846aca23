"""Channel groups, and removing channels for real.

A removal is right when the network computes what the dense one computes with the outputs of those channels (and of every
channel tied to them) set to zero: `verification.py` holds every group to that before a method may choose from it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from slimcli.errors import SettingsError, suggest
from slimcli.pruning.graph import Graph, cannot_run
from slimcli.records import ChannelGroup, Member

Removal = Mapping[str, Sequence[int]]
"""For each group by name: the units (of the group's present numbering) to remove."""


def find_groups(model: nn.Module, input_shape: Sequence[int], linear: bool = False) -> tuple[ChannelGroup, ...]:
    """The channel groups of all conv and linear layers, in definition order; those that must stay name their reason.

    `linear` lets hidden linear layers take part. Nothing is verified yet: see `verify`.
    """
    try:
        graph = Graph(model, input_shape)
    except Exception as error:
        raise cannot_run(input_shape, error) from error
    groups: list[ChannelGroup] = []
    seen: set[str] = set()
    order = {name: position for position, name in enumerate(graph.layers)}
    for root, layer in graph.layers.items():
        if root in seen:
            continue
        channels = layer.weight.shape[0]
        if layer not in graph.graph.module2node:
            groups.append(
                ChannelGroup(root, (Member(root, tuple(range(channels))),), channels, False, "not seen in a forward pass")
            )
            continue
        group = graph.group(root, range(channels))
        members: list[Member] = []
        one_to_one = True
        for module, own, units in graph.outputs(group):
            name = graph.names[module]
            if name not in graph.layers:
                continue
            seen.add(name)
            by_unit = dict(zip(units, own, strict=True))
            one_to_one &= len(by_unit) == len(own) == channels
            member = Member(name, tuple(by_unit.get(unit, -1) for unit in range(channels)))
            one_to_one &= all(other == member for other in members if other.layer == name)
            if member not in members:
                members.append(member)
        members.sort(key=lambda member: order[member.layer])
        reason = ""
        if graph.reaches_output(group):
            reason = "the network's output"
        elif not one_to_one:
            reason = "its channels are not tied one to one"
        elif not linear and all(isinstance(graph.layers[m.layer], nn.Linear) for m in members):
            reason = "linear (takes part with --linear)"
        groups.append(ChannelGroup(root, tuple(members), channels, not reason, reason))
    return tuple(groups)


def taking_part(
    groups: Sequence[ChannelGroup], include: Sequence[str] | None = None, exclude: Sequence[str] | None = None
) -> tuple[ChannelGroup, ...]:
    """The same groups, those frozen of which no layer matches a pattern of `include` (like `layer1.*`; None: all do), or any
    matches one of `exclude`.

    Raises `SettingsError` for a pattern that no layer matches.
    """
    layers = [member.layer for group in groups for member in group.members]
    for flag, patterns in (("--include", include), ("--exclude", exclude)):
        for pattern in patterns or ():
            if not fnmatch.filter(layers, pattern):
                raise SettingsError(f"{flag} {pattern!r} matches no layer", suggest(pattern, layers))

    def reason(group: ChannelGroup) -> str:
        names = [member.layer for member in group.members]
        for pattern in exclude or ():
            if fnmatch.filter(names, pattern):
                return f"excluded (--exclude {pattern})"
        included = include is None or any(fnmatch.filter(names, pattern) for pattern in include)
        return "" if included else "not included (--include)"

    return tuple(
        replace(group, prunable=False, reason=why) if group.prunable and (why := reason(group)) else group for group in groups
    )


def remove(model: nn.Module, input_shape: Sequence[int], removal: Removal) -> dict[str, list[int]]:
    """Remove the units from the model, in place. Returns, for every conv and linear layer that lost any, the filters it keeps.

    Parameters are replaced by new ones: build the optimizer anew.
    """
    graph = Graph(model, input_shape)
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    kept: dict[str, list[int]] = {}
    for root, units in removal.items():
        if not units:
            continue
        group = graph.group(root, sorted(units))
        for module, own, _ in graph.outputs(group):
            name = graph.names[module]
            if name in graph.layers:
                # Behind a concatenation a layer loses channels with several groups, each time in its present numbering.
                before = kept.get(name) or list(range(graph.layers[name].weight.shape[0]))
                gone = set(own)
                kept[name] = [filter_ for position, filter_ in enumerate(before) if position not in gone]
        group.prune()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])
    model.zero_grad(set_to_none=True)
    return kept
