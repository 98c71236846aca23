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
from slimcli.networks.layers import Layer, check_weights, filters, owns_weight
from slimcli.pruning.graph import Graph, cannot_run
from slimcli.records import ChannelGroup, Member

Removal = Mapping[str, Sequence[int]]
"""For each group by name: the units (of the group's present numbering) to remove."""


def find_groups(model: nn.Module, input_shape: Sequence[int], linear: bool = False) -> tuple[ChannelGroup, ...]:
    """The channel groups of all conv and linear layers, in definition order; those that must stay name their reason.

    `linear` lets hidden linear layers take part. Nothing is verified yet: see `verify`.
    """
    check_weights(model)
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
        if layer not in graph.graph.module2node:
            groups.append(_alone(root, layer, "not seen in a forward pass"))
            continue
        try:
            units = graph.units(root)
            tied = graph.group(root, range(units))
        except Exception:  # torch-pruning raises whatever comes where it could not infer a shape
            groups.append(_alone(root, layer, "its channels cannot be followed to what reads them"))
            continue
        members: dict[str, tuple[Member, ...]] = {}
        one_to_one = True
        for module, own, of_units in graph.outputs(tied):
            name = graph.names[module]
            if name not in graph.layers:
                continue
            seen.add(name)
            found = _members(name, own, of_units, units)
            one_to_one &= bool(found) and members.get(name, found) == found
            members.setdefault(name, found or (Member(name, tuple(own)),))
        reason = ""
        if graph.reaches_output(tied):
            reason = "the network's output"
        elif kind := graph.normalised_over(tied):
            reason = f"{kind} over its channels: without some of them the others change"
        elif computed := [graph.names[module] for module in graph.touched(tied) if not owns_weight(module)]:
            reason = f"the weight of {computed[0]} is computed (weight norm or another parametrization): remove that first"
        elif uneven := graph.uneven(tied):
            reason = f"its channels are not spread evenly over {uneven}"
        elif not one_to_one or root in graph.joined:
            reason = "its channels are not tied one to one"
        elif units == 1:
            reason = "its channels can only go all together"
        elif not linear and all(isinstance(graph.layers[name], nn.Linear) for name in members):
            reason = "linear (takes part with --linear)"
        ordered = [member for name in sorted(members, key=order.__getitem__) for member in members[name]]
        groups.append(ChannelGroup(root, tuple(ordered), units, not reason, reason))
    return tuple(groups)


def _alone(name: str, layer: Layer, reason: str) -> ChannelGroup:
    channels = filters(layer)
    return ChannelGroup(name, (Member(name, tuple(range(channels))),), channels, False, reason)


def _members(name: str, own: Sequence[int], of_units: Sequence[int], units: int) -> tuple[Member, ...]:
    """A layer's channels in the order of the units that they belong to; once for each channel that a unit has there. Empty where
    the units have different numbers of them, or share one.
    """
    channels: list[list[int]] = [[] for _ in range(units)]
    for channel, unit in sorted(zip(own, of_units, strict=True)):
        channels[unit].append(channel)
    each = len(channels[0])
    even = each and all(len(those) == each for those in channels) and len(set(own)) == len(own)
    return tuple(Member(name, column) for column in zip(*channels, strict=True)) if even else ()


def taking_part(
    groups: Sequence[ChannelGroup],
    include: Sequence[str] | None = None,
    exclude: Sequence[str] | None = None,
    known: Sequence[str] = (),
) -> tuple[ChannelGroup, ...]:
    """The same groups, those frozen of which no layer matches a pattern of `include` (like `layer1.*`; None: all do), or any
    matches one of `exclude`.

    Raises `SettingsError` for a pattern that no layer matches, nor any of those `known` beside the groups'.
    """
    layers = [*(member.layer for group in groups for member in group.members), *known]
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
    items = [item for root, units in removal.items() if units for item in graph.group(root, sorted(units))]
    gone: dict[str, set[int]] = {}
    for module, own, _ in graph.outputs(items):
        gone.setdefault(graph.names[module], set()).update(own)
    kept = {
        name: [channel for channel in range(filters(layer)) if channel not in gone[name]]
        for name, layer in graph.layers.items()
        if name in gone
    }
    graph.prune(items)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])
    model.zero_grad(set_to_none=True)
    return kept
