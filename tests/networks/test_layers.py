"""A filter's weights are those that its output depends on, whatever the layer."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from slimcli.networks.layers import by_filter, filters, layers_of, owns_weight


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 4), (5,)),
        (nn.Conv1d(4, 6, 3, groups=2), (4, 7)),
        (nn.Conv2d(3, 4, 2), (3, 4, 4)),
        (nn.Conv3d(2, 3, 2), (2, 3, 3, 3)),
        (nn.ConvTranspose1d(3, 4, 2), (3, 4)),
        (nn.ConvTranspose2d(6, 4, 2, groups=2), (6, 3, 3)),
        (nn.ConvTranspose2d(4, 4, 2, groups=4), (4, 3, 3)),
        (nn.ConvTranspose3d(4, 6, 2, groups=2), (4, 2, 2, 2)),
    ],
    ids=str,
)
def test_a_filters_weights_are_those_that_its_output_depends_on(layer: nn.Module, shape: tuple[int, ...]) -> None:
    (found,) = layers_of(nn.Sequential(layer)).values()
    output = layer(torch.rand(2, *shape) + 0.1)
    axis = -1 if isinstance(layer, nn.Linear) else 1
    assert filters(found) == output.shape[axis] == len(by_filter(found))
    for number in range(filters(found)):
        (gradient,) = torch.autograd.grad(output.select(axis, number).sum(), layer.weight, retain_graph=True)
        touched = by_filter(found, gradient).flatten(1) != 0
        assert touched[number].all()
        assert touched.sum() == touched[number].sum() == (gradient != 0).sum()


def test_a_computed_weight_is_not_the_layers_own() -> None:
    assert owns_weight(nn.Conv2d(2, 3, 1))
    assert owns_weight(nn.BatchNorm2d(3, affine=False))
    assert owns_weight(nn.ReLU())
    assert not owns_weight(weight_norm(nn.Conv2d(2, 3, 1)))
