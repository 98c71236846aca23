"""Layers are consecutive where one reads what the other wrote, call by call."""

from __future__ import annotations

import pytest
from torch import Tensor, nn

from slimcli.errors import ArchError
from slimcli.networks import resolve
from slimcli.pruning.dataflow import consecutive
from tests import tiny


class _Shared(nn.Module):
    """One PReLU behind every conv, one of which is called twice and reads itself."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.fc = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 5, 1), nn.Linear(5, 2)
        self.relu = nn.PReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.b(self.relu(self.b(input=self.relu(self.a(x))))))
        y: Tensor = self.fc(self.relu(self.c(x)).mean((2, 3)))
        return y


def test_layers_are_consecutive_in_the_data_flow() -> None:
    assert consecutive(tiny.Chain(), tiny.SHAPE) == {"conv2": ("conv1",), "fc1": ("conv2",), "fc2": ("fc1",)}
    assert consecutive(tiny.Residual(), tiny.SHAPE) == {
        "a": ("stem",),
        "b": ("a",),
        "c": ("stem", "b"),  # the identity shortcut leads back to the stem
        "short": ("stem", "b"),
        "fc": ("c", "short"),  # a conv shortcut is a layer like any other
    }
    assert consecutive(_Shared(), tiny.SHAPE) == {"b": ("a",), "c": ("b",), "fc": ("c",)}
    resnet = consecutive(resolve.build("resnet20-cifar", 10, (3, 32, 32)), (3, 32, 32))
    assert resnet["layer1.1.conv1"] == ("conv1", "layer1.0.conv2")
    assert resnet["layer2.0.conv2"] == ("layer2.0.conv1",)


def test_a_network_without_two_consecutive_layers_is_refused() -> None:
    with pytest.raises(ArchError, match="no layer"):
        consecutive(nn.Sequential(nn.Conv2d(3, 4, 3)), tiny.SHAPE)
