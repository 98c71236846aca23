"""Costs that are foretold are those that a removal gives."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from slimcli.networks.cost import count
from slimcli.networks.resolve import build
from slimcli.networks.shapes import shapes_of
from slimcli.pruning import surgery
from slimcli.pruning.outlook import Outlook, TimeOutlook
from slimcli.pruning.verification import verify
from slimcli.pruning.wiring import wiring_of
from slimcli.records import LayerShape
from tests import tiny

NETWORKS = {
    name: (getattr(tiny, name), tiny.SHAPE)
    for name in dir(tiny)
    if isinstance(getattr(tiny, name), type) and issubclass(getattr(tiny, name), tiny.Tiny) and name != "Tiny"
}


def check(model: nn.Module, shape: tuple[int, ...], draw: st.DataObject) -> None:
    groups = [group for group in verify(model, shape, surgery.find_groups(model, shape, linear=True)) if group.prunable]
    outlook = Outlook(model, count(model, shape), wiring_of(model, shape, groups))
    counts = {group.name: draw.draw(st.integers(0, group.channels - group.least)) for group in groups}
    slim = copy.deepcopy(model)
    surgery.remove(slim, shape, {name: tuple(range(number)) for name, number in counts.items()})
    cost = count(slim, shape)
    assert outlook.after(counts) == (cost.macs, cost.params)


@pytest.mark.parametrize("name", NETWORKS)
@given(draw=st.data())
@settings(max_examples=5)
def test_what_is_foretold_is_what_a_removal_gives(name: str, draw: st.DataObject) -> None:
    network, shape = NETWORKS[name]
    torch.manual_seed(0)
    check(network().eval(), shape, draw)


@pytest.mark.parametrize("name", ["Chain", "Grouped", "Depthwise", "Residual"])
@given(draw=st.data())
@settings(max_examples=5)
def test_time_that_is_macs_is_foretold_as_macs_are(name: str, draw: st.DataObject) -> None:
    """Where each layer takes its MACs, the network takes what is left of its MACs, in proportion."""
    torch.manual_seed(0)
    model, shape = NETWORKS[name][0]().eval(), tiny.SHAPE
    groups = [group for group in verify(model, shape, surgery.find_groups(model, shape)) if group.prunable]
    wirings, cost, shapes = wiring_of(model, shape, groups), count(model, shape), shapes_of(model, shape)

    def macs(layer: LayerShape) -> float:
        """For outputs of one position, which the ratio does without: strides do not change with widths."""
        return layer.inputs // layer.groups * layer.outputs * weight[layer.size, layer.kernel, layer.strides]

    weight = {}
    for line in cost.layers:
        layer = shapes[line.name]
        weight[layer.size, layer.kernel, layer.strides] = line.macs / (layer.inputs // layer.groups * layer.outputs)
    counts = {group.name: draw.draw(st.integers(0, group.channels - group.least)) for group in groups}
    foretold = TimeOutlook(shapes, wirings, macs, 2.0).after(counts)
    after, _ = Outlook(model, cost, wirings).after(counts)
    assert foretold == pytest.approx(2.0 * after / cost.macs)


class Multiplier(tiny.Tiny):
    """A depthwise conv that gives two channels for each that it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(tiny.SHAPE[0], 8, 3, padding=1)
        self.b = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.c = nn.Conv2d(16, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.c(self.b(self.a(input=x))).mean((2, 3)))


@pytest.mark.parametrize("network", [Multiplier, tiny.Chain, tiny.Depthwise, tiny.Grouped, tiny.Concat, tiny.Residual])
def test_the_layers_whose_times_are_asked_for_are_those_of_the_cut_network(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, shape = network().eval(), tiny.SHAPE
    groups = [group for group in verify(model, shape, surgery.find_groups(model, shape)) if group.prunable]
    counts = {group.name: (group.channels - group.least) // 2 for group in groups}
    assert any(counts.values())
    asked: list[LayerShape] = []
    outlook = TimeOutlook(shapes_of(model, shape), wiring_of(model, shape, groups), lambda each: asked.append(each) or 1.0, 1.0)
    asked.clear()
    outlook.after(counts)
    surgery.remove(model, shape, {name: tuple(range(number)) for name, number in counts.items()})
    assert asked == list(shapes_of(model, shape).values())


@pytest.mark.parametrize("name", ["lenet5", "resnet20-cifar", "torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x0_5"])
@given(draw=st.data())
@settings(max_examples=1)
def test_of_whole_networks_too(name: str, draw: st.DataObject) -> None:
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    check(build(name, 10, shape).eval(), shape, draw)
