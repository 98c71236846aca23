"""What the tests of exported files share."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from slimcli.networks.resolve import build
from slimcli.pruning import surgery


@pytest.fixture(scope="module")
def slim_resnet() -> nn.Module:
    """A ResNet-20 that lost an uneven share of every group, its padded shortcuts included."""
    torch.manual_seed(0)
    model = build("resnet20-cifar", 10, (3, 32, 32)).eval()
    groups = surgery.find_groups(model, (3, 32, 32))
    surgery.remove(model, (3, 32, 32), {g.name: list(range(0, g.channels, 3)) for g in groups if g.prunable})
    return model
