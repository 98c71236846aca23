"""What is measured on the network is what the papers define, by loops that know nothing of hooks and batches."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from slimcli.errors import ArchError
from slimcli.pruning import surgery
from slimcli.pruning.history import filter_norms
from slimcli.pruning.scores import MEASURES, Examples
from slimcli.pruning.wiring import wiring_of
from slimcli.records import ChannelGroup, Wiring
from tests import tiny

IMAGES = torch.randn(12, *tiny.SHAPE, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(12) % 4


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    yield from zip(IMAGES.split(5), LABELS.split(5), strict=True)


def of(model: nn.Module) -> tuple[list[ChannelGroup], dict[str, Wiring]]:
    groups = [group for group in surgery.find_groups(model, tiny.SHAPE, linear=True) if group.prunable]
    return groups, wiring_of(model, tiny.SHAPE, groups)


@pytest.mark.parametrize("criterion", MEASURES)
@pytest.mark.parametrize("network", [tiny.Chain, tiny.Residual, tiny.Concat, tiny.OptionA])
def test_every_unit_has_a_score_and_the_network_is_left_alone(criterion: str, network: type[nn.Module]) -> None:
    model = network()
    groups, wirings = of(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    if criterion == "bn":
        groups = [group for group in groups if all(maker.norm for maker in wirings[group.name].makers if not maker.scales)]
    scores = MEASURES[criterion](model, groups, wirings, Examples(batches))
    assert [len(score) for score in scores] == [group.channels for group in groups]
    assert all(bool(score.isfinite().all()) and bool((score >= 0).all()) for score in scores)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_taylor_is_the_square_of_weight_times_gradient() -> None:
    model = tiny.Residual().eval()
    groups, wirings = of(model)
    scores = dict(
        zip([group.name for group in groups], MEASURES["taylor"](model, groups, wirings, Examples(batches)), strict=True)
    )
    (group,) = (group for group in groups if group.name == "stem")
    expected = np.zeros(group.channels)
    for images, labels in batches():
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        for member in group.members:
            weight = model.get_submodule(member.layer).weight
            assert isinstance(weight, nn.Parameter)
            for unit, channel in enumerate(member.channels):
                assert weight.grad is not None
                expected[unit] += float(((weight[channel] * weight.grad[channel]).detach().double() ** 2).sum())
    assert scores["stem"].numpy() == pytest.approx(expected, rel=1e-4)


def test_batch_norms_scales_are_summed_over_the_group() -> None:
    model = tiny.Chain()
    groups, wirings = of(model)
    convs = [group for group in groups if group.name.startswith("conv")]
    with torch.no_grad():
        model.bn1.weight.copy_(torch.linspace(-1, 1, len(model.bn1.weight)))
    (first, *_) = MEASURES["bn"](model, convs[:1], wirings, Examples(batches))
    assert torch.equal(first, model.bn1.weight.detach().abs().double())
    with pytest.raises(ArchError, match="batch norm"):
        MEASURES["bn"](model, [group for group in groups if group.name == "fc1"], wirings, Examples(batches))


def test_ranks_are_numpys_of_maps_behind_norm_and_relu_and_equal_ones_go_by_norm() -> None:
    model = tiny.Chain().eval()
    groups, wirings = of(model)
    scores = dict(
        zip([group.name for group in groups], MEASURES["hrank"](model, groups, wirings, Examples(batches)), strict=True)
    )
    with torch.no_grad():
        first = F.relu(model.bn1(model.conv1(IMAGES)))
        maps = {"conv1": first, "conv2": F.relu(model.bn2(model.conv2(first)))}
    for name, values in maps.items():
        ranks = [sum(int(np.linalg.matrix_rank(image[unit].numpy())) for image in values) for unit in range(values.shape[1])]
        assert scores[name].floor().tolist() == ranks
    for name in ("conv1", "conv2", "fc1"):  # fc1 has no maps
        norms = filter_norms(model.get_submodule(name).weight.detach())  # type: ignore[arg-type, operator]
        fractions = scores[name] - scores[name].floor()
        assert torch.equal(fractions.argsort(), norms.argsort())
