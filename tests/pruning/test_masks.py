"""Masked weights are zero and stay zero, whatever the optimizer does; what died entirely is taken out."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from slimcli.networks.layers import layers_of
from slimcli.pruning import masks, surgery
from slimcli.pruning.wiring import wiring_of
from tests import tiny


def drawn(model: nn.Module, share: float, seed: int = 0) -> masks.Masks:
    """Masks with about that share of each layer's weights alive."""
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.rand(layer.weight.shape, generator=generator) < share for name, layer in layers_of(model).items()}


@given(st.floats(0, 1), st.floats(0, 0.9), st.booleans(), st.integers(0, 100))
def test_the_smallest_living_weights_go_and_one_stays(share: float, amount: float, together: bool, seed: int) -> None:
    torch.manual_seed(seed)
    model = tiny.Chain()
    before = drawn(model, share, seed)
    for mask in before.values():
        mask.view(-1)[0] = True
    counts = {name: int(amount * int(mask.sum())) for name, mask in before.items()}
    after = masks.without_smallest(model, before, counts, together)
    layers = layers_of(model)
    kept, gone = [], []
    for name, mask in after.items():
        assert not (mask & ~before[name]).any()
        assert mask.any()
        here = layers[name].weight.detach().abs()
        kept.append(here[mask])
        gone.append(here[before[name] & ~mask])
        if not together:
            assert int(before[name].sum()) - int(mask.sum()) == min(counts[name], int(before[name].sum()) - 1)
            assert not gone[-1].numel() or float(gone[-1].max()) <= float(kept[-1].min())
    if together:
        lost = masks.alive(before) - masks.alive(after)
        assert lost <= sum(counts.values())
        spared = [name for name, mask in after.items() if int(mask.sum()) == 1]  # its last weight stays, however small
        rest = torch.cat([k for name, k in zip(after, kept, strict=True) if name not in spared] or [torch.ones(1) * 9])
        everything = torch.cat(gone)
        assert not everything.numel() or float(everything.max()) <= float(rest.min())


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_masked_weights_stay_zero_and_have_no_momentum(momentum: float) -> None:
    torch.manual_seed(0)
    model = tiny.Chain()
    mask = drawn(model, 0.5)
    images, labels = torch.randn(8, *tiny.SHAPE), torch.arange(8) % 4
    free = copy.deepcopy(model)
    masks.apply(free, mask)
    with masks.held(model, mask):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum, weight_decay=0.1, nesterov=momentum > 0)
        reference = torch.optim.SGD(free.parameters(), 0.1, momentum, weight_decay=0.1, nesterov=momentum > 0)
        for _ in range(5):
            for each, steps in ((model, optimizer), (free, reference)):
                steps.zero_grad()
                F.cross_entropy(each(images), labels).backward()
                if each is free:  # the naive way: gradients are masked by hand
                    for name, layer in layers_of(free).items():
                        assert layer.weight.grad is not None
                        layer.weight.grad.mul_(mask[name])
                steps.step()
    for name, layer in layers_of(model).items():
        assert not layer.weight[~mask[name]].any()
        assert layer.weight[mask[name]].any()
        if momentum:
            assert not optimizer.state[layer.weight]["momentum_buffer"][~mask[name]].any()
    assert all(torch.equal(value, free.state_dict()[key]) for key, value in model.state_dict().items())


def test_nothing_is_held_afterwards() -> None:
    model = tiny.Chain()
    mask = drawn(model, 0.5)
    with masks.held(model, mask):
        pass
    F.cross_entropy(model(torch.randn(4, *tiny.SHAPE)), torch.arange(4)).backward()
    for name, layer in layers_of(model).items():
        assert layer.weight.grad is not None
        assert layer.weight.grad[~mask[name]].any()


def killed(model: nn.Module, made: dict[str, list[int]], read: dict[str, list[int]]) -> masks.Masks:
    """Full masks, but for those outputs and inputs of layers."""
    found = masks.full(model)
    for name, filters in made.items():
        found[name][filters] = False
    for name, inputs in read.items():
        found[name][:, inputs] = False
    return found


@pytest.mark.parametrize(
    ("network", "made", "read", "dead"),
    [
        (tiny.Chain, {"conv1": [1, 4]}, {}, {"conv1": (1, 4)}),
        (tiny.Chain, {}, {"conv2": [0]}, {"conv1": (0,)}),
        (tiny.Chain, {"conv1": [1]}, {"conv2": [5]}, {"conv1": (1, 5)}),
        (tiny.Chain, {}, {"fc1": [4, 5, 6, 7]}, {"conv2": (1,)}),  # four positions of one map
        (tiny.Chain, {}, {"fc1": [4, 5, 6]}, {}),
        (tiny.Chain, {"conv1": [0, 1, 2, 3, 4, 5]}, {}, {"conv1": (1, 2, 3, 4, 5)}),  # one always stays
        (tiny.Residual, {"stem": [2]}, {}, {}),  # the stream's other layer still makes it
        (tiny.Residual, {"stem": [2], "b": [2]}, {}, {"stem": (2,)}),
        (tiny.Residual, {}, {"a": [3], "c": [3], "short": [3]}, {"stem": (3,)}),
        (tiny.OptionA, {"layer2.0.conv2": [0, 9]}, {}, {"layer2.0.conv2": (0,)}),  # 9 is also copied from the stage before
        (tiny.Transposed, {"up": [3]}, {}, {"a": (3,)}),  # its first axis has the inputs
        (tiny.Transposed, {}, {"up": [1]}, {"up": (1,)}),
        (tiny.Concat, {"a": [2]}, {}, {"a": (2,)}),  # a batch norm over both branches only scales
    ],
)
def test_dead_units_are_those_that_nothing_makes_or_nothing_reads(
    network: type[nn.Module], made: dict[str, list[int]], read: dict[str, list[int]], dead: dict[str, tuple[int, ...]]
) -> None:
    model = network()
    groups = [group for group in surgery.find_groups(model, tiny.SHAPE) if group.prunable]
    assert masks.dead_units(model, killed(model, made, read), wiring_of(model, tiny.SHAPE, groups)) == dead


def test_masks_go_with_their_weights_through_surgery() -> None:
    torch.manual_seed(0)
    model = tiny.Residual()
    mask = drawn(model, 0.5)
    for name, layer in layers_of(model).items():  # living weights are positive, masked ones zero
        layer.weight.data = torch.where(mask[name], layer.weight.abs() + 0.1, 0.0)
    removal = {"stem": (1, 5), "c": (0,)}
    left = masks.after_removal(model, tiny.SHAPE, mask, removal)
    surgery.remove(model, tiny.SHAPE, removal)
    assert all(torch.equal(left[name], layer.weight.detach() > 0) for name, layer in layers_of(model).items())
