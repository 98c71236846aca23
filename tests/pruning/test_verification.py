"""The check that removing equals zeroing finds what is wrong, and blames the right group."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from slimcli.errors import ArchError
from slimcli.pruning import surgery
from slimcli.pruning.verification import verify
from tests import tiny
from tests.pruning.test_surgery import CERTAIN, names, verified


class _Sabotage:
    """A removal that is right except for one consumer, which keeps the wrong ones of its inputs or statistics."""

    def __init__(self, module: str, tensor: str, dim: int, only_with: tuple[str, int] | None = None) -> None:
        self.module, self.tensor, self.dim, self.only_with = module, tensor, dim, only_with
        self.right = surgery.remove
        self.used = False

    def __call__(self, model: nn.Module, shape: Sequence[int], removal: surgery.Removal) -> dict[str, list[int]]:
        before = getattr(model.get_submodule(self.module), self.tensor).shape
        kept = self.right(model, shape, removal)
        value = getattr(model.get_submodule(self.module), self.tensor)
        hit = self.only_with is None or self.only_with[1] in removal.get(self.only_with[0], ())
        if value.shape[self.dim] != before[self.dim] and hit:
            self.used = True
            with torch.no_grad():
                value.copy_(value.roll(1, self.dim))
        return kept


@pytest.mark.parametrize(
    ("network", "module", "tensor", "dim", "guilty"),
    [
        (tiny.Chain, "conv2", "weight", 1, "conv1"),
        (tiny.Chain, "fc1", "weight", 1, "conv2"),
        (tiny.Chain, "bn1", "running_mean", 0, "conv1"),
        (tiny.Chain, "bn1", "running_var", 0, "conv1"),
        (tiny.Chain, "bn2", "bias", 0, "conv2"),
        (tiny.Residual, "b", "weight", 1, "a"),
        (tiny.Residual, "short", "weight", 1, "stem"),
        (tiny.Residual, "b", "weight", 0, "stem"),
        (tiny.Residual, "fc", "weight", 1, "c"),
        (tiny.Depthwise, "deep", "weight", 0, "a"),
        (tiny.OptionA, "layer2.0.conv1", "weight", 1, "conv1"),
        (tiny.OptionA, "linear", "weight", 1, "layer3.0.conv2"),
    ],
)
def test_a_wrong_removal_freezes_exactly_its_group(
    monkeypatch: pytest.MonkeyPatch, network: type[nn.Module], module: str, tensor: str, dim: int, guilty: str
) -> None:
    sabotage = _Sabotage(module, tensor, dim)
    monkeypatch.setattr(surgery, "remove", sabotage)
    groups = verified(network())
    assert sabotage.used
    assert names(groups) == CERTAIN[network] - {guilty}
    assert "something else" in next(group.reason for group in groups if group.name == guilty)


@pytest.mark.parametrize("unit", range(6))
def test_a_removal_that_is_wrong_for_one_unit_only_is_noticed(monkeypatch: pytest.MonkeyPatch, unit: int) -> None:
    monkeypatch.setattr(surgery, "remove", _Sabotage("conv2", "weight", 1, only_with=("conv1", unit)))
    assert names(verified(tiny.Chain())) == {"conv2"}


def test_a_wrong_removal_is_noticed_however_dull_the_weights_are(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.Chain()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1e-8)
    monkeypatch.setattr(surgery, "remove", _Sabotage("conv2", "weight", 1))
    assert names(verified(model)) == {"conv2"}


def test_a_removal_that_breaks_the_network_freezes_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    right = surgery.remove

    def breaking(model: nn.Module, shape: Sequence[int], removal: surgery.Removal) -> dict[str, list[int]]:
        kept = right(model, shape, removal)
        if "conv1" in kept:
            model.conv2.weight = nn.Parameter(model.conv2.weight[:, :1].detach().repeat(1, 2, 1, 1))
        return kept

    monkeypatch.setattr(surgery, "remove", breaking)
    groups = verified(tiny.Chain())
    assert names(groups) == {"conv2"}
    assert "breaks" in next(group.reason for group in groups if group.name == "conv1")


def test_faults_in_different_places_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    right = surgery.remove
    first, second = _Sabotage("conv2", "weight", 1), _Sabotage("fc1", "weight", 1)
    first.right = right
    second.right = first
    monkeypatch.setattr(surgery, "remove", second)
    assert names(verified(tiny.Chain())) == set()
    monkeypatch.setattr(surgery, "remove", right)
    assert names(verified(tiny.Chain())) == {"conv1", "conv2"}


@pytest.mark.parametrize(("wrong", "most"), [(None, 12), ("layer2.0.conv1", 24)])
def test_checking_costs_a_few_forward_passes(monkeypatch: pytest.MonkeyPatch, wrong: str | None, most: int) -> None:
    """Of four images each, tracing included; not one for each channel or group."""
    model, seen = tiny.OptionA(), []
    model.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    groups = surgery.find_groups(model, tiny.SHAPE)
    seen.clear()
    if wrong:
        monkeypatch.setattr(surgery, "remove", _Sabotage(wrong, "weight", 1))
    assert verify(model, tiny.SHAPE, groups)
    assert sum(seen) <= most * 4


class _TwoOutputs(tiny.Chain):
    """Returns a dict, as segmentation networks do."""

    def forward(self, x: Tensor) -> Any:
        return {"out": super().forward(x)}


class _Single(tiny.Chain):
    """Converts its images to float32 whatever it was given."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


@pytest.mark.parametrize("network", [_TwoOutputs, _Single])
def test_a_network_that_cannot_be_checked_is_frozen_or_refused(network: type[nn.Module]) -> None:
    try:
        groups = verified(network())
    except ArchError:
        return
    assert names(groups) <= {"conv1", "conv2"}
    assert all(group.reason for group in groups if not group.prunable)


class _Scaled(nn.Conv2d):
    """Filters times a table that does not shrink with them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)
        self.register_buffer("scales", torch.rand(outputs, 1, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight * self.scales, self.bias)


def test_layers_that_break_hide_none_of_those_behind_them() -> None:
    layers = [
        nn.Conv2d(3, 6, 1),
        *(layer for _ in range(20) for layer in (nn.ReLU(), _Scaled(6, 6), nn.ReLU(), nn.Conv2d(6, 6, 1))),
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(6 * 16, 5))
    found = verify(model, (3, 4, 4), surgery.find_groups(model, (3, 4, 4)))
    scaled = {name for name, module in model.named_modules() if isinstance(module, _Scaled)}
    assert {group.name for group in found if not group.prunable} == {*scaled, str(len(layers) + 1)}
    assert all("removal breaks the network" in group.reason for group in found if group.name in scaled)


class _Merging(nn.Module):
    """So many operations before a concatenation that torch-pruning gives up on inferring its width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 1), nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).movedim(1, -1)
        for _ in range(520):
            x = x * 1.0
        return self.last(torch.cat([x[:, 0::2], x[:, 1::2], x[:, 0::2], x[:, 1::2]], -1)).mean((1, 2))


def test_a_concatenation_of_unknown_width_is_no_crash() -> None:
    """swin_s merges its patches so: what cannot be followed stays."""
    groups = verify(_Merging(), (3, 4, 4), surgery.find_groups(_Merging(), (3, 4, 4), True))
    assert not any(group.prunable for group in groups)
