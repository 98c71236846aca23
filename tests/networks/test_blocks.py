"""Residual blocks: without one, a network computes what it computes with the block's parameters at zero."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcli.networks import resolve
from slimcli.networks.blocks import Block, chains_of, changes, leave_out, residual_blocks
from slimcli.networks.layers import layers_of
from tests import tiny

SHAPE = (3, 8, 8)


class Around(nn.Module):
    """Something around a body that keeps the width."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Sequential(*body), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(F.relu(self.stem(x))).mean((2, 3)))


class Added(nn.Module):
    """`after(x + f(x))`; `f` may be called with zeros only where it has no constant."""

    def __init__(self, inner: nn.Module, after: Callable[[Tensor], Tensor] = F.relu, times: float = 1.0) -> None:
        super().__init__()
        self.inner, self.after, self.times = inner, after, times

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.times * x + self.inner(x))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6))


def names(model: nn.Module) -> list[str]:
    return [block.name for block in residual_blocks(model.eval(), SHAPE)]


@pytest.mark.parametrize(
    ("arch", "shape", "expected"),
    [
        ("resnet20-cifar", (3, 32, 32), [3, 2, 2]),
        ("torchvision:resnet50", (3, 64, 64), [2, 3, 5, 2]),
        ("torchvision:mobilenet_v2", (3, 64, 64), [1, 2, 3, 2, 2]),
        ("torchvision:efficientnet_b0", (3, 64, 64), [1, 1, 2, 2, 3]),
        ("torchvision:convnext_tiny", (3, 64, 64), [3, 3, 9, 3]),
        ("torchvision:densenet121", (3, 64, 64), []),
        ("lenet5", (1, 28, 28), []),
    ],
)
def test_the_blocks_of_known_networks(arch: str, shape: tuple[int, ...], expected: list[int]) -> None:
    torch.manual_seed(0)
    model = resolve.build(arch, 10, shape).eval()
    blocks = residual_blocks(model, shape)
    assert [len(chain.blocks) for chain in chains_of(blocks, dict.fromkeys([block.name for block in blocks], 0.5))] == expected
    zeroed, without = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        for block in blocks:
            for parameter in zeroed.get_submodule(block.name).parameters():
                parameter.zero_()
        leave_out(without, [block.name for block in blocks])
        images = torch.randn(3, *shape)
        assert torch.equal(zeroed(images), without(images))
    gone = {layer for block in blocks for layer in block.layers}
    assert set(layers_of(without)) == set(layers_of(model)) - gone


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ([Added(conv()), Added(conv())], ["body.0", "body.1"]),
        ([Added(conv(), nn.Identity()), Added(conv())], ["body.0"]),  # what comes to the second one may be negative
        ([Added(conv(), nn.Identity()), Added(conv(), nn.Identity())], ["body.0", "body.1"]),
        ([nn.Sequential(Added(conv()), Added(conv()))], ["body.0.0", "body.0.1"]),  # the innermost ones
        ([Added(conv(), times=2.0)], []),
        ([Added(conv(), torch.sigmoid)], []),
        ([Added(nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6, affine=False)))], ["body.0"]),  # 0 of a norm that knows of 0
        ([Added(nn.Sequential(nn.Conv2d(6, 6, 1), nn.Sigmoid()))], []),
        ([nn.Conv2d(6, 6, 1)], []),
        ([nn.Conv2d(6, 6, 1), nn.ReLU()], []),
    ],
    ids=str,
)
def test_what_is_a_block_and_what_is_not(body: list[nn.Module], expected: list[str]) -> None:
    assert names(Around(*body)) == expected


def test_a_norm_that_has_seen_something_is_no_zero() -> None:
    norm = nn.BatchNorm2d(6, affine=False)
    model = Around(Added(nn.Sequential(nn.Conv2d(6, 6, 1), norm)))
    assert norm.running_mean is not None
    norm.running_mean.fill_(-1.0)
    assert names(model) == []


def test_a_block_that_is_called_twice_goes_only_with_both_calls() -> None:
    block = Added(conv())
    assert names(Around(block, block)) == ["body"]
    assert names(Around(nn.Conv2d(6, 6, 1), nn.ReLU(), block, block)) == []


def test_what_two_blocks_share_stays() -> None:
    one, other = Added(conv()), Added(conv())
    other.inner[3] = one.inner[3]  # type: ignore[index, operator]
    assert names(Around(one, other, Added(conv()))) == ["body.2"]
    other.inner[3] = conv()[3]  # type: ignore[index, operator]
    other.inner[3].weight = one.inner[3].weight  # type: ignore[index, union-attr, operator]
    assert names(Around(one, other)) == ["body"]


def test_what_cannot_compute_with_zeros_is_no_block() -> None:
    class Inverts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.turn = nn.Conv2d(6, 6, 1), nn.Parameter(torch.eye(6))

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(torch.einsum("ij,bjhw->bihw", torch.linalg.inv(self.turn), x))

    assert names(Around(Inverts(), nn.ReLU(), Added(conv()))) == ["body.2"]


def test_what_is_given_nothing_is_no_block() -> None:
    """A gate behind a norm whose scale is zero hands on nothing, whatever its weights are."""

    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 6, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x * torch.sigmoid(self.conv(x.mean((2, 3), keepdim=True)))

    norm = nn.BatchNorm2d(6)
    nn.init.zeros_(norm.weight)
    inner = nn.Sequential(nn.Conv2d(6, 6, 1), norm, Gate())
    assert names(Around(Added(inner))) == ["body.0"]


def test_a_block_of_which_something_else_is_used_stays() -> None:
    class Peeks(Around):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + self.body[1].inner[0].weight.sum()  # type: ignore[index, union-attr, operator]

    assert names(Peeks(Added(conv()), Added(conv()))) == ["body.0"]


@pytest.mark.parametrize("network", [tiny.Chain, tiny.Residual, tiny.Concat, tiny.Gated, tiny.PaddedShortcut])
def test_looking_for_blocks_leaves_the_network_as_it_was(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = network().train()
    before, random_state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    residual_blocks(model, tiny.SHAPE)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_what_a_block_changes_is_measured_on_images() -> None:
    torch.manual_seed(0)
    model = Around(Added(conv()), Added(conv())).eval()
    images = torch.randn(5, *SHAPE)
    found = changes(model, residual_blocks(model, SHAPE), images)
    with torch.no_grad():
        x = F.relu(model.stem(images))
        for name, block in model.body.named_children():
            y = block(x)
            assert found[f"body.{name}"] == pytest.approx(float((y - x).norm() / x.norm()))
            x = y


def test_a_chain_loses_first_what_changes_least_and_more_for_each() -> None:
    blocks = [Block(f"body.{number}", (f"body.{number}.a", f"body.{number}.b"), (6, 8, 8)) for number in (2, 9, 10)]
    (chain,) = chains_of(blocks, {"body.2": 0.3, "body.9": 0.1, "body.10": 0.2})
    assert chain.name == "body.2"
    assert [[block.name for block in chain.without(kept)] for kept in (3, 2, 1, 0)] == [
        [],
        ["body.9"],
        ["body.9", "body.10"],
        ["body.9", "body.10", "body.2"],
    ]
    assert [chain.lost(kept) for kept in (3, 2, 1, 0)] == pytest.approx([0, 1 / 3 * 2 * 0.1, 2 / 3 * 2 * 0.3, 2 * 0.6])


def test_chains_are_of_one_parent_and_one_size() -> None:
    sizes = {"a.0": (6, 8, 8), "a.1": (6, 8, 8), "a.2": (9, 4, 4), "b.0": (9, 4, 4)}
    found = chains_of([Block(name, (f"{name}.conv",), size) for name, size in sizes.items()], dict.fromkeys(sizes, 0.5))
    assert [[block.name for block in chain.blocks] for chain in found] == [["a.0", "a.1"], ["a.2"], ["b.0"]]
