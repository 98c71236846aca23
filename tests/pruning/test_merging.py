"""With a perfect tie removal changes nothing; with an imperfect one it changes as little as one factor can."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from slimcli.networks import resolve
from slimcli.networks.shortcut import ChannelPad
from slimcli.pruning import merging, surgery
from slimcli.pruning.wiring import wiring_of
from slimcli.records import ChannelGroup, Pair, Reader, Wiring
from tests import tiny
from tests.pruning.test_surgery import CERTAIN

GROUPS = CERTAIN | {tiny.OneSlope: {"a", "b"}}
NETWORKS = [network for network in GROUPS if GROUPS[network]]


def grown(model: nn.Module, seed: int) -> nn.Module:
    """The network with other weights, statistics and scales (some of them negative), as after a training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
                module.running_mean.copy_(torch.randn(module.running_mean.shape, generator=generator))
                module.running_var.copy_(0.5 + torch.rand(module.running_var.shape, generator=generator))  # type: ignore[union-attr]
    return model.eval()


def images(shape: Sequence[int], count: int, seed: int) -> Tensor:
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


def tied(model: nn.Module, shape: Sequence[int], chosen: dict[str, list[Pair]], steps: int = 1) -> None:
    """Tie the pairs (kept, gone) of these groups completely."""
    wirings = wired(model, shape, chosen)
    tie = merging.WeightTie(
        [merging.TiedUnits(wirings[n], tuple(p), merging.is_scalable(model, shape, wirings[n])) for n, p in chosen.items()]
    )
    for step in range(1, steps + 1):
        tie(model, step, steps)


def wired(model: nn.Module, shape: Sequence[int], names: Sequence[str] | dict[str, list[Pair]]) -> dict[str, Wiring]:
    return wiring_of(model, shape, [g for g in surgery.find_groups(model, shape) if g.name in names])


def merged(model: nn.Module, shape: Sequence[int], chosen: dict[str, list[Pair]], seen: Tensor) -> nn.Module:
    """A copy in which the second unit of each pair is merged into the first, and removed."""
    slim = copy.deepcopy(model)
    merges = [(wiring, chosen[name]) for name, wiring in wired(slim, shape, chosen).items()]
    merging.merge(slim, merges, merging.factors_of(slim, iter([seen]), merges))
    surgery.remove(slim, shape, {name: [gone for _, gone in pairs] for name, pairs in chosen.items()})
    return slim


def same_sources(model: nn.Module, shape: Sequence[int], group: ChannelGroup) -> list[int]:
    """The largest set of the group's units that get the same from option-A shortcuts, which no tie can change."""
    kinds = wired(model, shape, [group.name])[group.name].kinds
    most = max(set(kinds), key=kinds.count)
    return [unit for unit, kind in enumerate(kinds) if kind == most]


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.__name__)
@settings(max_examples=4)
@given(st.data())
def test_removal_after_a_perfect_tie_is_exact(network: type[tiny.Tiny], data: st.DataObject) -> None:
    seed = data.draw(st.integers(0, 10**6))
    model = grown(network(), seed)
    groups = [group for group in surgery.find_groups(model, tiny.SHAPE) if group.name in GROUPS[network]]
    chosen: dict[str, list[Pair]] = {}
    for group in data.draw(st.lists(st.sampled_from(groups), min_size=1, unique_by=lambda g: g.name)):
        units = data.draw(st.permutations(same_sources(model, tiny.SHAPE, group)))
        count = data.draw(st.integers(1, len(units) // 2))
        chosen[group.name] = [(units[2 * n], units[2 * n + 1]) for n in range(count)]
    tied(model, tiny.SHAPE, chosen, steps=data.draw(st.integers(1, 4)))
    slim = merged(model, tiny.SHAPE, chosen, images(tiny.SHAPE, 16, seed))
    fresh = images(tiny.SHAPE, 8, seed + 1)
    with torch.no_grad():
        found, expected = tiny.together(slim(fresh)), tiny.together(model(fresh))
        assert torch.allclose(found, expected, rtol=0, atol=1e-5 * float(1 + expected.abs().max())), chosen


@pytest.mark.parametrize("arch", ["lenet5", "resnet20-cifar", "vgg16-cifar"])
def test_a_whole_network_that_is_tied_loses_a_quarter_for_nothing(arch: str) -> None:
    shape = (1, 28, 28) if arch == "lenet5" else (3, 32, 32)
    torch.manual_seed(0)
    model = resolve.build(arch, 10, shape).eval()
    groups = [group for group in surgery.find_groups(model, shape) if group.prunable]
    chosen = {}
    for group in groups:
        units = same_sources(model, shape, group)
        count = max(1, min(group.channels // 4, len(units) // 2))
        chosen[group.name] = [(units[2 * n], units[2 * n + 1]) for n in range(count)]
    tied(model, shape, chosen, steps=3)
    slim = merged(model, shape, chosen, images(shape, 32, 1))
    fresh = images(shape, 8, 2)
    with torch.no_grad():
        expected = model(fresh)
        assert torch.allclose(slim(fresh), expected, rtol=0, atol=1e-5 * float(1 + expected.abs().max()))


def test_without_a_tie_removal_is_not_exact() -> None:
    model = grown(tiny.Chain(), 0)
    slim = merged(model, tiny.SHAPE, {"conv1": [(0, 1)]}, images(tiny.SHAPE, 16, 0))
    fresh = images(tiny.SHAPE, 8, 1)
    with torch.no_grad():
        assert (slim(fresh) - model(fresh)).abs().max() > 1e-2


@pytest.mark.parametrize(
    "network", [tiny.Chain, tiny.Residual, tiny.Depthwise, tiny.Concat], ids=lambda network: network.__name__
)
def test_a_merge_errs_less_than_a_plain_removal(network: type[tiny.Tiny]) -> None:
    """Over ten untied networks: the least-squares factor stands in for the removed unit better than nothing does."""
    errors = {"merged": 0.0, "removed": 0.0}
    for seed in range(10):
        model, seen = grown(network(), seed), images(tiny.SHAPE, 64, seed)
        group = next(g for g in surgery.find_groups(model, tiny.SHAPE) if g.prunable)
        plain = copy.deepcopy(model)
        surgery.remove(plain, tiny.SHAPE, {group.name: [1]})
        with torch.no_grad():
            errors["merged"] += float(
                (merged(model, tiny.SHAPE, {group.name: [(0, 1)]}, seen)(seen) - model(seen)).square().mean()
            )
            errors["removed"] += float((plain(seen) - model(seen)).square().mean())
    assert errors["merged"] < errors["removed"]


def test_factors_are_those_of_a_naive_least_squares() -> None:
    model, seen = grown(tiny.Chain(), 3), images(tiny.SHAPE, 40, 3)
    wiring = wired(model, tiny.SHAPE, ["conv2"])["conv2"]
    pairs = [(0, 3), (2, 1)]
    found = merging.factors_of(model, iter(seen.split(16)), [(wiring, pairs)])[0][0]
    with torch.no_grad():
        x = F.relu(model.bn1(model.conv1(seen)))  # type: ignore[operator]
        maps = F.max_pool2d(F.relu(model.bn2(model.conv2(x))), 2)  # type: ignore[operator]
    for (kept, gone), factor in zip(pairs, found, strict=True):
        solution = torch.linalg.lstsq(maps[:, kept].double().reshape(-1, 1), maps[:, gone].double().reshape(-1, 1)).solution
        assert factor == pytest.approx(float(solution), rel=1e-6)


def test_units_that_are_never_active_are_taken_as_long_as_their_weights_say() -> None:
    model = grown(tiny.Chain(), 0)
    with torch.no_grad():
        for unit in (0, 1, 2):
            model.get_submodule("bn1").weight[unit], model.get_submodule("bn1").bias[unit] = 0, -1 - unit  # type: ignore[index, operator]
    wiring = wired(model, tiny.SHAPE, ["conv1"])["conv1"]
    found = merging.factors_of(model, iter([images(tiny.SHAPE, 8, 0)]), [(wiring, [(0, 1), (2, 3)])])
    assert found == [[[2.0, 0.0]]]  # a silent one cannot stand in for one that is active


class Activated(tiny.Tiny):
    """A plain chain with an activation to choose."""

    functions: ClassVar = {"relu": F.relu, "leaky": F.leaky_relu, "relu6": F.relu6, "gelu": F.gelu, "silu": F.silu}

    def __init__(self, activation: str) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 4)
        self.activation = self.functions[activation]

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.max_pool2d(self.activation(self.a(x)), 2))).mean((2, 3)))


@pytest.mark.parametrize(("activation", "scalable"), [("relu", 1), ("leaky", 1), ("relu6", 0), ("gelu", 0), ("silu", 0)])
def test_only_homogeneous_activations_let_a_pair_keep_its_lengths(activation: str, scalable: int) -> None:
    model = grown(Activated(activation), 0)
    before = [parameter.clone() for parameter in model.parameters()]
    wiring = wired(model, tiny.SHAPE, ["a"])["a"]
    assert merging.is_scalable(model, tiny.SHAPE, wiring) is bool(scalable)
    assert all(torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True))
    whole = torch.cat([model.a.weight.flatten(1), model.a.bias[:, None]], 1).norm(dim=1)  # type: ignore[union-attr, operator, index, list-item]
    tied(model, tiny.SHAPE, {"a": [(0, 1)]}, steps=5)
    rows = torch.cat([model.a.weight.flatten(1), model.a.bias[:, None]], 1)  # type: ignore[union-attr, operator, index, list-item]
    if scalable:
        assert torch.allclose(rows.norm(dim=1), whole, rtol=1e-5)
        assert torch.allclose(rows[0] / whole[0], rows[1] / whole[1], atol=1e-6)
    else:
        assert torch.equal(rows[0], rows[1])
    assert torch.equal(rows[2:], torch.cat([before[0].flatten(1), before[1][:, None]], 1)[2:])  # nobody else is touched


def test_a_tie_goes_its_share_of_the_way_and_leaves_frozen_parameters() -> None:
    model = grown(tiny.Chain(), 0)
    wiring = wired(model, tiny.SHAPE, ["conv1"])["conv1"]
    tie = merging.WeightTie([merging.TiedUnits(wiring, ((1, 4),), scalable=False)])
    model.get_submodule("bn1").weight.data.abs_()  # type: ignore[union-attr, operator]
    gap = model.conv1.weight[1] - model.conv1.weight[4]  # type: ignore[index]
    tie(model, 1, 20)  # a quarter of the way: it is gone in a fifth of the phase
    assert torch.allclose(model.conv1.weight[1] - model.conv1.weight[4], 0.75 * gap, atol=1e-6)  # type: ignore[index]
    model.conv1.weight.requires_grad_(False)  # type: ignore[union-attr, operator]
    before = model.conv1.weight.clone()  # type: ignore[union-attr, operator]
    tie(model, 8, 8)
    assert torch.equal(model.conv1.weight, before)  # type: ignore[arg-type]


def test_a_grouped_reader_merges_within_its_groups_only() -> None:
    model = tiny.Grouped().eval()
    before = model.b.weight.clone()
    reader = Reader("b", tuple((channel,) for channel in range(8)))
    merging.merge(model, [(Wiring((), (reader,)), [(0, 1), (2, 5)])], [[[0.5, 0.5]]])
    changed = before.clone()
    changed[:4, 0] += 0.5 * before[:4, 1]
    assert torch.equal(model.b.weight, changed)


@given(st.integers(2, 6), st.integers(6, 12), st.floats(0.1, 3), st.data())
def test_a_shortcut_copies_the_kept_channel_times_the_factor(
    inputs: int, outputs: int, factor: float, data: st.DataObject
) -> None:
    kept, gone = data.draw(st.permutations(range(inputs)))[:2]
    pad, x = ChannelPad(inputs, outputs, 2), torch.randn(2, inputs, 6, 6)
    x[:, gone] = factor * x[:, kept]
    expected = pad(x)
    pad.merge_input(kept, gone, factor)
    pad.remove_inputs([gone])
    left = x[:, [channel for channel in range(inputs) if channel != gone]]
    assert torch.allclose(pad(left), expected, atol=1e-6)
    again = ChannelPad(inputs, outputs, 2)
    again.adopt(pad.state_dict()["selects"])
    assert torch.equal(again(left), pad(left))


def test_silent_units_are_those_that_no_image_wakes() -> None:
    model = grown(tiny.Residual(), 0)
    wirings = wired(model, tiny.SHAPE, ["a", "stem"])
    seen = images(tiny.SHAPE, 32, 0)
    assert merging.silent_units(model, iter(seen.split(8)), list(wirings.values())) == [0, 0]
    norm = model.get_submodule("bna")
    with torch.no_grad():
        norm.weight[:2], norm.bias[:2] = 0, -1  # type: ignore[index, operator]
    counts = dict(zip(wirings, merging.silent_units(model, iter(seen.split(8)), list(wirings.values())), strict=True))
    assert counts == {"stem": 0, "a": 2}


def test_channels_that_copy_different_inputs_are_of_different_kinds() -> None:
    model = resolve.build("resnet20-cifar", 10, (3, 32, 32))
    wirings = wired(model, (3, 32, 32), ["conv1", "layer2.0.conv1", "layer2.0.conv2"])
    assert len(set(wirings["conv1"].kinds)) == len(set(wirings["layer2.0.conv1"].kinds)) == 1
    kinds = wirings["layer2.0.conv2"].kinds
    assert len(set(kinds)) == 17  # eight channels of zeros on both sides, and a source of its own for each of the others
    assert len({kinds[unit] for unit in (*range(8), *range(24, 32))}) == 1


def test_of_a_tied_pair_the_one_that_its_norm_silences_goes() -> None:
    """Behind batch norm tied filters have equal norms: the scale says which of them the network hears."""
    model = grown(tiny.Chain(), 0)
    norm = model.get_submodule("bn1")
    with torch.no_grad():
        norm.weight[0], norm.bias[0] = 0, 0  # type: ignore[index, operator]
    tied(model, tiny.SHAPE, {"conv1": [(0, 1)]})
    wiring = wired(model, tiny.SHAPE, ["conv1"])["conv1"]
    long = merging.lengths(model, wiring, 6)
    assert long[0] < long[1]
    slim = merged(model, tiny.SHAPE, {"conv1": [(1, 0)]}, images(tiny.SHAPE, 16, 0))
    fresh = images(tiny.SHAPE, 8, 1)
    with torch.no_grad():
        assert torch.allclose(slim(fresh), model(fresh), atol=1e-5)


class Loose(tiny.Tiny):
    """A scale per channel that no module owns."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Linear(5, 4)
        self.scale = nn.Parameter(torch.randn(6, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(F.relu(self.a(x) * self.scale))).mean((2, 3)))


def test_channels_with_parameters_that_no_module_owns_are_all_of_different_kinds() -> None:
    model = Loose()
    (group,) = [group for group in surgery.find_groups(model, tiny.SHAPE) if group.name == "a"]
    assert group.prunable
    assert len(set(wired(model, tiny.SHAPE, ["a"])["a"].kinds)) == 6
