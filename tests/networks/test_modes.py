"""A network that was used is as it was before."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import nn

from slimcli.networks.modes import channels_last, evaluating, same_random_numbers
from tests import tiny


def strides(model: nn.Module) -> list[tuple[int, ...]]:
    return [parameter.stride() for parameter in model.parameters()]


@pytest.mark.parametrize("fails", [False, True])
def test_everything_is_put_back(fails: bool) -> None:
    model = tiny.Chain()
    model.bn1.eval()
    modes, layout = {module: module.training for module in model.modules()}, strides(model)
    numbers = str((torch.get_rng_state().sum(), random.getstate(), np.random.get_state()))
    try:
        with evaluating(model), channels_last(model), same_random_numbers(model):
            assert not any(module.training for module in model.modules())
            assert strides(model) != layout
            torch.rand(3), random.random(), np.random.rand()
            if fails:
                raise RuntimeError
    except RuntimeError:
        assert fails
    assert {module: module.training for module in model.modules()} == modes
    assert strides(model) == layout
    assert str((torch.get_rng_state().sum(), random.getstate(), np.random.get_state())) == numbers


def test_a_network_that_is_in_that_layout_stays_in_it() -> None:
    model = tiny.Chain().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layout = strides(model)
    with channels_last(model), channels_last(model):
        assert strides(model) == layout
    assert strides(model) == layout
