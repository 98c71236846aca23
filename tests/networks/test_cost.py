"""Costs against Eq. 1-3 of HBFP, computed by hand, and against the published counts."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from slimcli.networks import resolve
from slimcli.networks.cost import count
from slimcli.networks.layers import layers_of
from slimcli.pruning import surgery
from tests import tiny


def by_hand(model: nn.Module, shape: tuple[int, ...]) -> dict[str, int]:
    """Eq. 1-3 for every conv and linear layer: K * K * Cin * Hout * Wout * Cout, and Cin * Cout."""
    found: dict[str, int] = {}
    handles = []
    for name, layer in layers_of(model).items():

        def hook(module: nn.Module, inputs: tuple[Tensor], output: Tensor, name: str = name) -> None:
            if isinstance(module, nn.ConvTranspose2d):  # each input is multiplied with a kernel for each output channel
                macs = math.prod(module.kernel_size) * inputs[0][0].numel() * module.out_channels // module.groups
            elif isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
                macs = math.prod(module.kernel_size) * module.in_channels // module.groups * output[0].numel()
            else:
                macs = module.in_features * module.out_features * output[0].numel() // output.shape[-1]
            found[name] = found.get(name, 0) + macs

        handles.append(layer.register_forward_hook(hook))
    model.eval()(torch.zeros(1, *shape))
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    ("arch", "shape", "macs", "params"),
    [
        ("lenet5", (1, 28, 28), 2_293_000, 431_080),
        ("resnet20-cifar", (3, 32, 32), 40_551_040, 269_722),
        ("resnet56-cifar", (3, 32, 32), 125_485_696, 853_018),
        ("resnet110-cifar", (3, 32, 32), 252_887_680, 1_727_962),
        ("vgg16-cifar", (3, 32, 32), 313_463_808, 14_982_474 + 8_448),
    ],
)
def test_the_published_counts(arch: str, shape: tuple[int, int, int], macs: int, params: int) -> None:
    cost = count(resolve.build(arch, 10, shape), shape)
    assert (cost.macs, cost.params) == (macs, params)


@given(st.data())
def test_a_convs_cost_is_its_formula(data: st.DataObject) -> None:
    groups = data.draw(st.integers(1, 3))
    conv = nn.Conv2d(
        groups * data.draw(st.integers(1, 3)),
        groups * data.draw(st.integers(1, 3)),
        (data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))),
        stride=data.draw(st.integers(1, 3)),
        padding=data.draw(st.integers(0, 2)),
        dilation=data.draw(st.integers(1, 2)),
        groups=groups,
        bias=data.draw(st.booleans()),
    )
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    padding, dilation = int(conv.padding[0]), conv.dilation[0]
    reach = [dilation * (k - 1) + 1 for k in conv.kernel_size]
    assume(height + 2 * padding >= reach[0] and width + 2 * padding >= reach[1])
    out = [(n + 2 * padding - r) // conv.stride[0] + 1 for n, r in zip((height, width), reach, strict=True)]
    expected = conv.kernel_size[0] * conv.kernel_size[1] * conv.in_channels // groups * out[0] * out[1] * conv.out_channels
    cost = count(nn.Sequential(conv), (conv.in_channels, height, width))
    assert cost.macs == cost.layer("0").macs == expected
    assert cost.params == cost.layer("0").params == sum(p.numel() for p in conv.parameters())
    assert cost.layer("0").filters == conv.out_channels


@pytest.mark.parametrize("network", tiny.ALL, ids=lambda network: network.__name__)
def test_every_layer_is_counted_at_its_place(network: type[nn.Module]) -> None:
    model = network()
    cost = count(model, tiny.SHAPE)
    assert {layer.name: layer.macs for layer in cost.layers} == by_hand(model, tiny.SHAPE)
    assert [layer.name for layer in cost.layers] == list(layers_of(model))
    assert cost.macs == sum(layer.macs for layer in cost.layers)
    assert cost.params == sum(parameter.numel() for parameter in model.parameters())


def test_a_slim_networks_cost_is_that_of_its_shape() -> None:
    model = resolve.build("lenet5", 10, (1, 28, 28))
    surgery.remove(model, (1, 28, 28), {"conv1": [*range(18)], "conv2": [*range(47)]})
    cost = count(model, (1, 28, 28))
    conv1, conv2 = 25 * 1 * 24 * 24 * 2, 25 * 2 * 8 * 8 * 3
    fc1, fc2 = 3 * 16 * 500, 500 * 10
    assert [layer.macs for layer in cost.layers] == [conv1, conv2, fc1, fc2]
    assert cost.macs == conv1 + conv2 + fc1 + fc2
    assert cost.params == (25 + 1) * 2 + (25 * 2 + 1) * 3 + (3 * 16 + 1) * 500 + 501 * 10


class _Functional(nn.Module):
    """A conv whose weights no layer holds."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.conv2d(x, self.kernel).mean((2, 3)))


def test_products_outside_of_layers_are_in_the_total() -> None:
    cost = count(_Functional(), (3, 8, 8))
    assert cost.macs == 9 * 3 * 6 * 6 * 4 + 4 * 2
    assert [layer.name for layer in cost.layers] == ["fc"]
    assert cost.params == 4 * 27 + 4 * 2 + 2


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x.flatten(2).transpose(1, 2)).mean(1)


def test_attention_is_counted() -> None:
    tokens, width, hidden = 16, 8, 16
    cost = count(_Attention(), (8, 4, 4))
    projections = tokens * (4 * width * width + 2 * width * hidden)
    products = 2 * tokens * tokens * width
    assert cost.macs == projections + products


def test_shared_layers_are_counted_as_often_as_they_run() -> None:
    conv = nn.Conv2d(3, 3, 3, padding=1)
    cost = count(nn.Sequential(conv, nn.ReLU(), conv), (3, 8, 8))
    assert cost.macs == 2 * 9 * 9 * 64
    assert cost.params == 9 * 9 + 3
    assert [layer.macs for layer in cost.layers] == [cost.macs]


def test_a_single_layer_is_a_network_too() -> None:
    cost = count(nn.Conv2d(3, 4, 3), (3, 8, 8))
    assert cost.macs == 27 * 4 * 36 == sum(layer.macs for layer in cost.layers)


@pytest.mark.parametrize("training", [False, True])
def test_counting_changes_nothing(training: bool) -> None:
    model = tiny.Chain().train(training)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fastpath = torch.backends.mha.get_fastpath_enabled()
    for _ in range(2):
        cost = count(model, tiny.SHAPE)
    assert cost == count(model, tiny.SHAPE)
    assert model.training is training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled() is fastpath


def test_a_failed_count_leaves_the_model_as_it_was() -> None:
    model = tiny.Chain().train()
    with pytest.raises(RuntimeError):
        count(model, (5, 8, 8))
    assert model.training
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_precision_does_not_matter(dtype: torch.dtype) -> None:
    assert count(tiny.Chain().to(dtype), tiny.SHAPE) == count(tiny.Chain(), tiny.SHAPE)
