"""Removing equals zeroing, and the check of that can fail.

Zeroing is done here by hand, in the weights: a layer's filters, and those of the batch norm and the shortcut behind it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from slimcli.errors import ArchError, SettingsError
from slimcli.networks import resolve
from slimcli.networks.layers import layers_of
from slimcli.pruning import surgery
from slimcli.pruning.history import NormHistory
from slimcli.pruning.verification import verify
from slimcli.records import ChannelGroup
from tests import tiny

CERTAIN = {
    tiny.Chain: {"conv1", "conv2"},
    tiny.Residual: {"stem", "a", "c"},
    tiny.Depthwise: {"a", "b"},
    tiny.Concat: {"a", "b", "c"},
    tiny.ConcatDepthwise: {"c"},
    tiny.Grouped: {"a", "b", "c"},
    tiny.GroupedConcat: {"both", "c"},
    tiny.Multiplied: {"deep", "c"},
    tiny.GatedHalves: {"a", "b"},
    tiny.CrossStage: {"a", "b", "c"},
    tiny.FlattenedConcat: {"a", "b"},
    tiny.ConcatFlattened: {"a", "b", "c"},
    tiny.BesideImage: {"a", "b"},
    tiny.FixedSplit: {"c", "d"},
    tiny.SlopedConcat: {"a", "b", "c"},
    tiny.OwnStep: {"a", "b"},
    tiny.SizedSplit: {"c"},
    tiny.SpatialSplit: {"a"},
    tiny.UnevenChunk: {"b"},
    tiny.FlattenedSignal: {"a", "b", "c", "d"},
    tiny.SummedHalves: {"a", "left"},
    tiny.Gated: {"a", "squeeze", "b"},
    tiny.Twice: {"a"},
    tiny.Transposed: {"a", "up", "b"},
    tiny.Hourglass: {"down", "deep", "up", "last"},
    tiny.Signal: {"a", "b"},
    tiny.Volume: {"a", "b"},
    tiny.TwoHeads: {"a", "b"},
    tiny.Labels: {"a", "b"},
    tiny.Parametrized: {"c"},
    tiny.Sloped: {"a", "c"},
    tiny.Unscaled: {"a", "b"},
    tiny.Sigmoid: {"b"},
    tiny.Shuffle: {"b"},
    tiny.LayerNormed: set(),
    tiny.GroupNormed: {"b"},
    tiny.FixedView: {"a"},
    tiny.PaddedShortcut: {"a", "c"},
    tiny.OptionA: {"conv1", "layer1.0.conv1", "layer2.0.conv1", "layer2.0.conv2", "layer3.0.conv1", "layer3.0.conv2"},
}
"""For each network the groups that can be removed. Whether one of the others can is up to the check: it may not be wrong."""

IMPOSSIBLE = {
    tiny.Sigmoid: {"a"},
    tiny.Shuffle: {"a"},
    tiny.LayerNormed: {"a"},
    tiny.GroupNormed: {"a"},
    tiny.FixedView: {"b"},
    tiny.PaddedShortcut: {"stem"},
    tiny.Parametrized: {"a", "b"},
    tiny.GroupedConcat: {"a", "b"},
    tiny.Multiplied: {"a"},
    tiny.FixedSplit: {"a"},
    tiny.SizedSplit: {"a", "b", "both"},
    tiny.UnevenChunk: {"a"},
}

NETWORKS = pytest.mark.parametrize("network", CERTAIN, ids=lambda network: network.__name__)


def verified(model: nn.Module, linear: bool = False) -> tuple[ChannelGroup, ...]:
    return verify(model, tiny.SHAPE, surgery.find_groups(model, tiny.SHAPE, linear))


def names(groups: Sequence[ChannelGroup], prunable: bool = True) -> set[str]:
    return {group.name for group in groups if group.prunable is prunable}


@torch.no_grad()
def zeroed(model: Any, groups: Sequence[ChannelGroup], removal: Mapping[str, Sequence[int]]) -> nn.Module:
    """A copy with the units of the removal at zero, by hand."""
    dead = copy.deepcopy(model)
    for group in groups:
        for member in group.members if group.name in removal else ():
            channels = [member.channels[unit] for unit in removal[group.name]]
            layer = dead.get_submodule(member.layer)
            layer.weight[(slice(None), channels) if isinstance(layer, nn.ConvTranspose2d) else channels] = 0
            if layer.bias is not None:
                layer.bias[channels] = 0
            if member.layer in getattr(dead, "norms", {}):
                name, start = dead.norms[member.layer]
                norm = dead.get_submodule(name)
                for tensor in (norm.weight, norm.bias) if norm.affine else (norm.running_mean,):
                    tensor[[start + c for c in channels]] = 0
            if member.layer in getattr(dead, "pads", {}):
                pad = dead.get_submodule(dead.pads[member.layer])
                selects = pad.selects.clone()
                selects[channels] = False
                pad.adopt(selects)
    return dead


@torch.no_grad()
def outputs(model: nn.Module, inputs: Tensor) -> Tensor:
    return tiny.together(model.eval()(inputs))


def assert_removal_is_zeroing(model: nn.Module, groups: Sequence[ChannelGroup], removal: Mapping[str, Sequence[int]]) -> None:
    slim = copy.deepcopy(model)
    surgery.remove(slim, tiny.SHAPE, removal)
    inputs = tiny.images()
    torch.testing.assert_close(
        outputs(slim, inputs),
        outputs(zeroed(model, groups, removal), inputs),
        rtol=1e-9,
        atol=1e-9,
        msg=lambda text: f"removing {dict(removal)}: {text}",
    )


@NETWORKS
def test_what_can_be_removed_is_found(network: type[nn.Module]) -> None:
    groups = verified(network())
    assert names(groups) >= CERTAIN[network], {g.name: g.reason for g in groups if not g.prunable}
    assert not names(groups) & IMPOSSIBLE.get(network, set())
    assert all(group.reason for group in groups if not group.prunable)


@NETWORKS
def test_removing_any_one_unit_equals_zeroing_it(network: type[nn.Module]) -> None:
    model = tiny.lively(network())
    groups = verified(model)
    for group in groups:
        for unit in range(0, group.channels, max(1, group.channels // 8)) if group.prunable else ():
            assert_removal_is_zeroing(model, groups, {group.name: [unit]})


@NETWORKS
@pytest.mark.parametrize("seed", range(3))
def test_removing_many_at_once_equals_zeroing_them(network: type[nn.Module], seed: int) -> None:
    model = tiny.lively(network(), seed)
    generator = torch.Generator().manual_seed(seed)
    groups = verified(model)
    removal = {
        group.name: torch.randperm(group.channels, generator=generator)[: 1 + seed * (group.channels // 4)].tolist()
        for group in groups
        if group.prunable
    }
    assert_removal_is_zeroing(model, groups, removal)


@pytest.mark.parametrize(("width", "wider"), [(3, 6), (4, 8), (4, 9), (5, 6), (6, 8), (8, 16)])
def test_a_shortcut_padded_in_the_forward_function_is_never_wrong(width: int, wider: int) -> None:
    model = tiny.lively(tiny.PaddedShortcut(width, wider))
    groups = verified(model)
    for group in groups:
        for unit in range(group.channels) if group.prunable else ():
            assert_removal_is_zeroing(model, groups, {group.name: [unit]})


def test_a_removal_returns_what_is_left_and_narrows_the_layers() -> None:
    model = tiny.Chain()
    before = {name: layer.weight.detach().clone() for name, layer in layers_of(model).items()}
    kept = surgery.remove(model, tiny.SHAPE, {"conv1": [4, 0], "conv2": []})
    assert kept == {"conv1": [1, 2, 3, 5]}
    assert torch.equal(model.conv1.weight, before["conv1"][[1, 2, 3, 5]])
    assert torch.equal(model.conv2.weight, before["conv2"][:, [1, 2, 3, 5]])
    assert torch.equal(model.fc1.weight, before["fc1"])
    assert model.bn1.num_features == 4


def test_tied_layers_lose_the_same_units() -> None:
    model = tiny.Residual()
    kept = surgery.remove(model, tiny.SHAPE, {"stem": [1], "c": [0, 8]})
    assert kept == {"stem": [0, 2, 3, 4, 5], "b": [0, 2, 3, 4, 5], "c": [*range(1, 8)], "short": [*range(1, 8)]}


def test_a_layer_of_two_groups_reports_what_it_keeps_of_all_its_filters() -> None:
    model = tiny.ConcatDepthwise()
    before = model.deep.weight.detach().clone()
    kept = surgery.remove(model, tiny.SHAPE, {"a": [0], "b": [1]})  # the depthwise conv loses channels 0 and 4 + 1
    assert torch.equal(model.deep.weight, before[[1, 2, 3, 4, 6, 7, 8, 9]])
    assert kept["deep"] == [1, 2, 3, 4, 6, 7, 8, 9]


@given(st.data())
def test_two_removals_equal_one(data: st.DataObject) -> None:
    first = data.draw(st.sets(st.integers(0, 5), min_size=1, max_size=3))
    second = data.draw(st.sets(st.integers(0, 5 - len(first)), min_size=1, max_size=2))
    model = tiny.lively(tiny.Chain())
    once, stepwise = copy.deepcopy(model), copy.deepcopy(model)
    alive = surgery.remove(stepwise, tiny.SHAPE, {"conv1": sorted(first)})["conv1"]
    surgery.remove(stepwise, tiny.SHAPE, {"conv1": sorted(second)})
    surgery.remove(once, tiny.SHAPE, {"conv1": sorted(first | {alive[unit] for unit in second})})
    assert {k: v.tolist() for k, v in once.state_dict().items()} == {k: v.tolist() for k, v in stepwise.state_dict().items()}


def test_history_rows_stay_with_the_survivors() -> None:
    model = tiny.Residual()
    history = NormHistory(model)
    for _ in range(3):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(1.5)
        history.record()
    before = {name: rows.clone() for name, rows in history.layers.items()}
    kept = surgery.remove(model, tiny.SHAPE, {"stem": [5, 2], "a": [0]})
    for layer, filters in kept.items():
        history.keep(layer, filters)
    history.record()
    survivors = {"stem": [0, 1, 3, 4], "b": [0, 1, 3, 4], "a": [1, 2, 3]}
    for name, rows in history.layers.items():
        assert torch.equal(rows[:3], before[name][:, survivors.get(name, slice(None))])
        assert len(rows) == 4
    # Nobody trained in between, so a survivor of a layer that kept its inputs has the norm that it had before.
    assert torch.equal(history.layers["stem"][3], history.layers["stem"][2])


def test_surgery_leaves_modes_flags_and_gradients_in_order() -> None:
    model = tiny.Chain().train()
    model.conv1.weight.requires_grad_(False)
    model(torch.randn(2, *tiny.SHAPE)).sum().backward()
    surgery.remove(model, tiny.SHAPE, {"conv1": [0], "conv2": [1]})
    assert model.training
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"conv1.weight"}
    assert all(parameter.grad is None for parameter in model.parameters())
    model(torch.randn(2, *tiny.SHAPE)).sum().backward()


def test_frozen_parameters_are_seen() -> None:
    model = tiny.Chain().requires_grad_(False)
    assert names(verified(model)) == CERTAIN[tiny.Chain]
    surgery.remove(model, tiny.SHAPE, {"conv1": [0]})
    assert model.conv1.weight.shape[0] == 5
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_looking_for_groups_and_verifying_them_changes_nothing() -> None:
    model = tiny.Residual().train()
    model.c.weight.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    verified(model)
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert {name for name, p in model.named_parameters() if not p.requires_grad} == {"c.weight"}
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("network", [tiny.Chain, tiny.Residual, tiny.OptionA, tiny.LayerNormed])
def test_the_classifier_is_never_prunable(network: type[nn.Module], linear: bool) -> None:
    model = network()
    last = list(layers_of(model))[-1]
    group = next(g for g in verified(model, linear) if any(member.layer == last for member in g.members))
    assert not group.prunable
    assert "output" in group.reason


def test_a_network_without_linear_layer_keeps_its_outputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert names(verified(model, linear=True)) == {"0"}


def test_a_unit_of_a_grouped_conv_has_the_same_place_in_each_of_its_groups() -> None:
    groups = {group.name: group for group in verified(tiny.Grouped())}
    assert [member.channels for member in groups["b"].members] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert (groups["b"].channels, groups["b"].per_unit, groups["b"].width, groups["b"].layers) == (4, 2, 8, ("b",))
    assert (groups["a"].channels, groups["a"].width) == (4, 8)
    assert (groups["c"].channels, groups["c"].per_unit) == (6, 1)
    model = tiny.Grouped()
    assert surgery.remove(model, tiny.SHAPE, {"a": [1], "b": [0, 3]}) == {"a": [0, 2, 3, 4, 6, 7], "b": [1, 2, 5, 6]}
    assert (model.b.weight.shape, model.b.groups) == ((4, 3, 3, 3), 2)


def test_what_breaks_on_an_image_is_told_in_its_own_words() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(5, 3))
    with pytest.raises(ArchError, match="mat1 and mat2"):
        surgery.find_groups(model, tiny.SHAPE)


def test_a_grouped_conv_with_one_filter_in_each_group_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 8, 3, groups=4), nn.Conv2d(8, 2, 3), nn.Flatten(), nn.Linear(8, 3))
    reasons = {group.name: group.reason for group in verified(model)}
    assert reasons["0"] == "its channels can only go all together"
    assert reasons["1"] == ""  # two filters in each of four groups: one of each can go


def test_hidden_linear_layers_take_part_when_asked() -> None:
    model = tiny.lively(tiny.Chain())
    assert names(verified(model)) == {"conv1", "conv2"}
    assert "--linear" in next(g.reason for g in verified(model) if g.name == "fc1")
    groups = verified(model, linear=True)
    assert names(groups) == {"conv1", "conv2", "fc1"}
    for unit in range(7):
        assert_removal_is_zeroing(model, groups, {"fc1": [unit], "conv2": [unit % 5]})


def test_a_layer_that_no_image_reaches_is_named() -> None:
    model = tiny.Chain()
    model.unused = nn.Conv2d(3, 4, 3)
    group = next(g for g in verified(model) if g.name == "unused")
    assert not group.prunable
    assert "forward" in group.reason


def test_every_layer_is_in_exactly_one_group() -> None:
    for network in (tiny.Chain, tiny.Residual, tiny.Concat, tiny.Gated, tiny.OptionA):
        model = network()
        members = [member.layer for group in surgery.find_groups(model, tiny.SHAPE) for member in group.members]
        assert sorted(members) == sorted(layers_of(model))


def test_resnet20_can_lose_channels_everywhere_but_in_its_classifier() -> None:
    model = resolve.build("resnet20-cifar", 10, (3, 16, 16))
    groups = verify(model, (3, 16, 16), surgery.find_groups(model, (3, 16, 16)))
    assert names(groups, prunable=False) == {"linear"}
    assert sorted(g.channels for g in groups if len(g.members) > 1) == [16, 32, 64]  # the three streams


def names_of(groups: Sequence[ChannelGroup]) -> set[str]:
    return {group.name for group in groups if group.prunable}


def test_patterns_choose_the_groups_that_take_part() -> None:
    """A pattern that matches one layer of a group speaks for all that are tied to it; what was frozen before stays so."""
    model = resolve.build("resnet20-cifar", 10, (3, 32, 32))
    groups = surgery.find_groups(model, (3, 32, 32))
    everything = names_of(groups)
    assert names_of(surgery.taking_part(groups)) == everything
    without = surgery.taking_part(groups, exclude=("layer2.*.conv2",))
    assert everything - names_of(without) == {g.name for g in groups if any(m.layer == "layer2.1.conv2" for m in g.members)}
    assert {g.reason for g in without if g.name in everything and not g.prunable} == {"excluded (--exclude layer2.*.conv2)"}
    some = surgery.taking_part(groups, include=("layer1.*", "linear"), exclude=("layer1.0.*",))
    assert names_of(some) == {"layer1.1.conv1", "layer1.2.conv1"}  # the stream has layer1.0.conv2 in it
    assert next(g for g in some if g.name == "linear").reason == "the network's output"


@pytest.mark.parametrize("which", ["include", "exclude"])
def test_a_pattern_that_no_layer_matches_is_refused(which: str) -> None:
    groups = surgery.find_groups(tiny.Chain(), tiny.SHAPE)
    with pytest.raises(SettingsError, match=f"--{which} 'convv1' matches no layer") as caught:
        surgery.taking_part(groups, **{which: ("convv1",)})
    assert "conv1" in caught.value.hint


@pytest.mark.parametrize("kind", [nn.utils.weight_norm, nn.utils.spectral_norm])
@pytest.mark.filterwarnings("ignore:.*deprecated")
def test_hooks_that_compute_weights_are_named(kind: Callable[[nn.Module], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), kind(nn.Conv2d(4, 5, 3)), nn.Flatten(), nn.Linear(5 * 16, 3))
    model(tiny.images().float())
    with pytest.raises(ArchError, match=f"the weight of 2 is computed by a hook of torch.nn.utils.{kind.__name__}"):
        surgery.find_groups(model, tiny.SHAPE)
