"""One streaming pass gives what numpy gives on all values at once; the model is left alone; survivors compare like with like."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from slimcli.errors import ArchError, FlowError
from slimcli.networks.layers import layers_of
from slimcli.pruning import surgery
from slimcli.pruning.dataflow import consecutive
from slimcli.pruning.flow import gradient_flow, information_flow
from slimcli.pruning.gap import gap, surviving
from tests import tiny

NETWORKS = pytest.mark.parametrize(
    "network",
    [tiny.Chain, tiny.Residual, tiny.Depthwise, tiny.Concat, tiny.Grouped, tiny.Gated, tiny.Twice, tiny.OptionA, tiny.Hourglass],
    ids=lambda network: network.__name__,
)


def images_of(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, *tiny.SHAPE, generator=torch.Generator().manual_seed(seed))


def batches_of(images: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    for part in images.split(size):
        yield part, torch.arange(len(part)) % 4


def outputs_of(model: nn.Module, images: Tensor) -> dict[str, np.ndarray[Any, Any]]:
    """Each layer's spatial means over all images, by hand: float64 arrays (images, filters), the mean over its calls."""
    found: dict[str, list[Tensor]] = {}
    handles = [
        layer.register_forward_hook(lambda _, __, output, name=name: found.setdefault(name, []).append(output.double()))
        for name, layer in layers_of(model).items()
    ]
    with torch.no_grad():
        model.eval()(images)
    for handle in handles:
        handle.remove()
    return {
        name: np.mean([(call.mean((2, 3)) if call.ndim == 4 else call).numpy() for call in calls], axis=0)
        for name, calls in found.items()
    }


@NETWORKS
def test_correlation_is_numpys(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, images = network(), images_of(200)
    values = outputs_of(model, images)
    flow = information_flow(model, batches_of(images, 64))
    assert flow
    for (writer, reader), matrix in flow.items():
        both = np.corrcoef(values[writer].T, values[reader].T)
        expected = both[: values[writer].shape[1], values[writer].shape[1] :]
        np.testing.assert_allclose(matrix.numpy(), np.nan_to_num(expected), atol=2e-4)


def test_raw_is_the_mean_product() -> None:
    model, images = tiny.Residual(), images_of(100)
    values = outputs_of(model, images)
    for (writer, reader), matrix in information_flow(model, [images[:60], images[60:]], "raw").items():
        np.testing.assert_allclose(matrix.numpy(), values[writer].T @ values[reader] / 100, atol=1e-5)


class _Shifted(nn.Module):
    """Two linear layers whose values have means far larger than their deviations."""

    def __init__(self, offset: float) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 5), nn.Linear(5, 4)
        with torch.no_grad():
            self.a.bias.fill_(offset)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.a(x))
        return y


@pytest.mark.parametrize("offset", [0.0, 30.0, 1000.0])
def test_fifty_thousand_samples_in_float32_agree_with_float64(offset: float) -> None:
    torch.manual_seed(0)
    model = _Shifted(offset)
    images = torch.randn(50_000, 6)
    now = information_flow(model, images.split(128), writers={"b": ("a",)})["a", "b"].numpy()
    with torch.no_grad():
        a = model.double().a(images.double())
        b = model.b(a)
    exact = np.corrcoef(a.numpy(), b.numpy(), rowvar=False)[: a.shape[1], a.shape[1] :]
    # With means of 1000 the values themselves carry no more than four digits of their deviations in float32.
    assert float(np.abs(now - exact).max()) < (1e-4 if offset < 100 else 1e-3)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_how_the_images_are_batched_changes_nothing(sizes: list[int]) -> None:
    torch.manual_seed(0)
    model, images = tiny.Chain(), images_of(sum(sizes) + 2)
    whole = information_flow(model, [images])
    parts = information_flow(model, images.split([*sizes, 2]))
    gradients = [gradient_flow(model, batches) for batches in (
        [(images, torch.zeros(len(images), dtype=torch.int64))],
        [(part, torch.zeros(len(part), dtype=torch.int64)) for part in images.split([*sizes, 2])],
    )]  # fmt: skip
    assert all(torch.allclose(whole[key], parts[key], atol=1e-4) for key in whole)
    assert all(torch.allclose(gradients[0][key], gradients[1][key], rtol=1e-4, atol=1e-6) for key in gradients[0])


@pytest.mark.parametrize("parts", [(40, 40), (70, 10), (80, 0)])
def test_processes_that_see_a_part_each_get_what_one_gets(parts: tuple[int, int]) -> None:
    """Both processes in one: what `total` would add is collected in a first pass and given back in further ones."""
    torch.manual_seed(0)
    model, images = tiny.Residual(), images_of(80)
    labels = torch.arange(80) % 4
    shares = list(zip(images.split(list(parts)), labels.split(list(parts)), strict=True))

    def run(measure: Any) -> Any:
        totals: list[Tensor] = []
        while True:  # each pass learns one more sum over both
            seen: list[list[Tensor]] = [[], []]

            def total(tensor: Tensor, rank: int, seen: list[list[Tensor]] = seen) -> Tensor:
                number = len(seen[rank])
                seen[rank].append(tensor)
                if number < len(totals):
                    return totals[number]
                raise StopIteration

            try:
                for rank in (1, 0):
                    try:
                        result = measure(shares[rank], lambda tensor, rank=rank: total(tensor, rank))
                    except StopIteration:
                        if rank == 0:
                            raise
                return result
            except StopIteration:
                totals.append(seen[0][len(totals)] + seen[1][len(totals)])

    writers = consecutive(model, tiny.SHAPE)
    shared = run(lambda share, total: information_flow(model, [share[0][:0], share[0]], writers=writers, total=total))
    alone = information_flow(model, [images])
    assert all(torch.allclose(shared[key], alone[key], atol=1e-5) for key in alone)
    shared = run(lambda share, total: gradient_flow(model, [share], total=total))
    alone_gradient = gradient_flow(model, [(images, labels)])
    assert all(torch.allclose(shared[key], alone_gradient[key], atol=1e-6) for key in alone_gradient)


def test_a_half_precision_network_is_averaged_in_single() -> None:
    """A mean over many positions of bfloat16 values has more digits than they have."""
    torch.manual_seed(0)
    model, images = tiny.Chain().bfloat16(), images_of(64).bfloat16()
    values = outputs_of(model, images)
    exact = np.corrcoef(values["conv1"], values["conv2"], rowvar=False)[:6, 6:]
    assert np.abs(information_flow(model, [images])["conv1", "conv2"].numpy() - exact).max() < 1e-4


def test_gradient_flow_is_autograds() -> None:
    torch.manual_seed(0)
    model, images = tiny.Chain().eval(), images_of(50)
    labels = torch.arange(50) % 4
    mask = (torch.rand(model.conv1.weight.shape) < 0.5).float()
    flow = gradient_flow(model, [(images[:30], labels[:30]), (images[30:], labels[30:])], masks={"conv1": mask})
    F.cross_entropy(model(images), labels).backward()
    for name, layer in layers_of(model).items():
        assert layer.weight.grad is not None
        gradient = layer.weight.grad * (mask if name == "conv1" else 1)
        assert torch.allclose(flow[name], gradient.flatten(1).norm(dim=1), rtol=1e-4, atol=1e-7)


class _Noisy(tiny.Chain):
    """Draws random numbers in eval mode too."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x + 0 * torch.rand(1))
        return y


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_was(broken: bool) -> None:
    model, images = _Noisy(), images_of(20)
    model.bn1.eval()
    model.conv2.weight.requires_grad_(False)
    model.fc1.weight.grad = torch.ones_like(model.fc1.weight)
    if broken:
        images[3] = math.nan
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    state = torch.get_rng_state()
    for measure in (information_flow, gradient_flow):
        try:
            measure(model, list(batches_of(images, 10)))  # type: ignore[operator]
            assert not broken
        except FlowError:
            assert broken
        assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert [name for name, parameter in model.named_parameters() if not parameter.requires_grad] == ["conv2.weight"]
    assert [name for name, parameter in model.named_parameters() if parameter.grad is not None] == ["fc1.weight"]


@pytest.mark.parametrize("measure", [information_flow, gradient_flow])
def test_a_loader_that_draws_moves_no_random_numbers(measure: Callable[..., object]) -> None:
    class _Flipped(TensorDataset):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return (image if random.random() < np.random.rand() else image.flip(-1)), label

    loader = DataLoader(_Flipped(images_of(20), torch.arange(20) % 4), 10, shuffle=True)
    model = _Noisy()
    before = torch.get_rng_state(), random.getstate(), str(np.random.get_state())
    measure(model, loader)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), str(np.random.get_state())) == before[1:]


def test_a_filter_that_does_not_vary_has_correlation_0() -> None:
    model = tiny.Chain()
    with torch.no_grad():
        model.conv2.weight[1] = 0
    flow = information_flow(model, [images_of(64)])
    assert not flow["conv1", "conv2"][:, 1].any()
    assert not flow["conv2", "fc1"][1].any()
    assert all(matrix.isfinite().all() and matrix.abs().max() <= 1 for matrix in flow.values())


def test_survivors_are_compared_with_themselves() -> None:
    """Filters that nothing reads are removed: the flow of the rest is what it was, bit for bit but rounding."""
    torch.manual_seed(0)
    model, images = tiny.Chain(), images_of(64)
    with torch.no_grad():
        model.conv2.weight[:, [1, 4]] = 0
    dense = information_flow(model, [images])
    slim_groups = [group for group in surgery.find_groups(model, tiny.SHAPE) if group.name == "conv1"]
    kept = surgery.remove(model, tiny.SHAPE, {slim_groups[0].name: (1, 4)})
    assert kept == {"conv1": [0, 2, 3, 5]}
    now, reference = information_flow(model, [images]), surviving(dense, {"conv1": [1, 4]})
    assert {key: value.shape for key, value in reference.items()} == {key: value.shape for key, value in now.items()}
    assert gap(now, reference).total < 1e-3


def test_what_has_no_flow_is_refused() -> None:
    with pytest.raises(ArchError, match="no layer"):
        information_flow(nn.Sequential(nn.Conv2d(3, 4, 3)), [images_of(4)])
    for measure in (information_flow, gradient_flow):
        with pytest.raises(FlowError, match="no images"):
            measure(tiny.Chain(), [])
    with pytest.raises(ValueError, match="form"):
        information_flow(tiny.Chain(), [images_of(4)], "covariance")
