"""A network takes the widths of a state dict, and new weights in them are drawn as a narrow network's would be."""

from __future__ import annotations

import pytest
import torch

from slimcli.networks import resolve, widths
from slimcli.networks.layers import layers_of
from slimcli.pruning import surgery


@pytest.mark.parametrize("arch", ["lenet5", "resnet20-cifar", "vgg16-cifar"])
def test_a_fresh_network_is_drawn_as_if_it_had_been_built_that_narrow(arch: str) -> None:
    shape = (1, 28, 28) if arch == "lenet5" else (3, 32, 32)
    slim = resolve.build(arch, 10, shape).eval()
    groups = [group for group in surgery.find_groups(slim, shape) if group.prunable]
    surgery.remove(slim, shape, {group.name: range(group.channels // 2) for group in groups})
    torch.manual_seed(1)
    drawn = resolve.build(arch, 10, shape)
    before = {name: layer.weight.detach().std() for name, layer in layers_of(drawn).items()}
    reads = {name: layer.weight[0].numel() for name, layer in layers_of(drawn).items()}
    widths.fresh(drawn, slim.state_dict())
    for name, layer in layers_of(drawn).items():
        assert layer.weight.shape == slim.get_submodule(name).weight.shape  # type: ignore[union-attr]
        wider = (reads[name] / layer.weight[0].numel()) ** 0.5
        assert float(layer.weight.detach().std()) == pytest.approx(float(before[name]) * wider, rel=0.35), name
    with torch.no_grad():
        assert drawn.eval()(torch.randn(2, *shape)).isfinite().all()
    for name, value in drawn.state_dict().items():
        if name.endswith("selects"):
            assert torch.equal(value, slim.state_dict()[name])


def test_a_fresh_network_as_wide_as_it_is_built_is_as_it_was_built() -> None:
    torch.manual_seed(1)
    expected = resolve.build("lenet5", 10, (1, 28, 28)).state_dict()
    torch.manual_seed(1)
    drawn = resolve.build("lenet5", 10, (1, 28, 28))
    widths.fresh(drawn, expected)
    assert all(torch.equal(value, expected[name]) for name, value in drawn.state_dict().items())
