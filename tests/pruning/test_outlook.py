"""Costs that are foretold are those that a removal gives."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from slimcli.networks.cost import count
from slimcli.networks.resolve import build
from slimcli.pruning import surgery
from slimcli.pruning.outlook import Outlook
from slimcli.pruning.verification import verify
from slimcli.pruning.wiring import wiring_of
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


@pytest.mark.parametrize("name", ["lenet5", "resnet20-cifar", "torchvision:mobilenet_v2", "torchvision:shufflenet_v2_x0_5"])
@given(draw=st.data())
@settings(max_examples=1)
def test_of_whole_networks_too(name: str, draw: st.DataObject) -> None:
    shape = (1, 28, 28) if name == "lenet5" else (3, 32, 32)
    check(build(name, 10, shape).eval(), shape, draw)
