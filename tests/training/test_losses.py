"""The tie penalties: their values by hand, and no weight on which they or their gradients are not finite."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from slimcli.pruning.history import filter_norms
from slimcli.training import losses
from slimcli.training.losses import PENALTIES, TiedPair, batch_norm_scales, exponential_tie, tie
from tests import tiny

WEIGHT = st.one_of(
    st.sampled_from([0.0, 1e-45, -1e-45, 1e-38, 1e-20, 1.0, -1.0, 1e20, 1e38, -3e38]),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
)
L1 = partial(filter_norms, norm="l1")


def layer(rows: list[list[float]]) -> nn.Sequential:
    """A network of one linear layer, named "0", with these weights."""
    weight = torch.tensor(rows)
    linear = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        linear.weight.copy_(weight)
    return nn.Sequential(linear)


def pair(first: int, second: int, name: str = "0") -> TiedPair:
    return TiedPair(((name, first, second),))


def gradient(model: nn.Module, penalty: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(penalty, [model[0].weight])
    return found


rows_of_weights = st.tuples(st.integers(2, 5), st.integers(1, 4)).flatmap(
    lambda shape: st.lists(st.lists(WEIGHT, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0])
)


@pytest.mark.parametrize("name", PENALTIES)
@pytest.mark.parametrize("norm", ["l1", "l2"])
@given(rows_of_weights)
def test_penalty_and_gradient_are_finite_for_all_finite_weights(name: str, norm: str, rows: list[list[float]]) -> None:
    model = layer(rows)
    pairs = [pair(index, index + 1) for index in range(0, len(rows) - 1, 2)]
    penalty = PENALTIES[name](model, pairs, partial(filter_norms, norm=norm))
    assert penalty.isfinite()
    assert penalty >= 0
    assert gradient(model, penalty).isfinite().all()


@given(rows_of_weights)
def test_the_relative_gap_is_at_most_two(rows: list[list[float]]) -> None:
    pairs = [pair(index, index + 1) for index in range(0, len(rows) - 1, 2)]
    assert tie(layer(rows), pairs, L1).item() <= 2 + 1e-6


@given(rows_of_weights)
def test_the_exponential_pulls_no_weight_harder_than_its_bound(rows: list[list[float]]) -> None:
    pairs = [pair(index, index + 1) for index in range(0, len(rows) - 1, 2)]
    model = layer(rows)
    assert gradient(model, exponential_tie(model, pairs, L1)).abs().max() <= 0.03 * (1 + 1e-6)


@pytest.mark.parametrize("gap", [0.0, 0.5, 0.999, 1.0, 1.001, 5.0, 1e6])
def test_the_exponential_is_the_papers_below_its_bound_and_a_tangent_above(gap: float) -> None:
    model = layer([[2.0 + gap], [2.0]])
    raw = (L1(model[0].weight)[0] - L1(model[0].weight)[1]).item()  # float32 rounds 2 + gap
    penalty = exponential_tie(model, [pair(0, 1)], L1, bound=1.0, max_slope=0.03)
    expected = math.exp(raw) if raw <= 1 else math.e * raw
    assert penalty.item() == pytest.approx(0.03 / math.e * expected, rel=1e-6)
    if raw not in (0, 1):  # the slope is that of the value, but for the two corners
        slope = float(gradient(model, penalty)[0, 0])
        assert slope == pytest.approx(0.03 / math.e * (math.exp(raw) if raw < 1 else math.e), rel=1e-6)


@given(st.lists(st.floats(0.125, 8, width=32), min_size=4, max_size=4))
def test_the_tie_is_the_mean_relative_gap(norms: list[float]) -> None:
    model = layer([[norm] for norm in norms])
    floor = sum(norms) / 4 / 10
    a, b, c, d = norms
    expected = (abs(a - b) / max((a + b) / 2, floor) + abs(c - d) / max((c + d) / 2, floor)) / 2
    assert tie(model, [pair(0, 1), pair(2, 3)], L1).item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


@given(st.floats(1e-3, 1e3))
def test_the_tie_does_not_depend_on_how_large_the_weights_are(scale: float) -> None:
    rows = torch.tensor([[1.0, -2.0], [0.5, 0.25], [3.0, 1.0], [1.0, 1.0]])
    pairs = [pair(0, 1), pair(2, 3)]
    small, large = tie(layer(rows.tolist()), pairs, L1), tie(layer((rows * scale).tolist()), pairs, L1)
    assert small.item() == pytest.approx(large.item(), rel=1e-5)


def test_dead_filters_are_pulled_on_no_harder_than_small_ones() -> None:
    rows = [[0.0, 0.0], [1e-12, 0.0], *[[1.0, 1.0]] * 8]
    model = layer(rows)
    steep = gradient(model, tie(model, [pair(0, 1)], L1)).abs().max()
    mean = 2 * 8 / 10
    assert float(steep) <= 1 / (mean / 10) * (1 + 1e-5)


@pytest.mark.parametrize("name", ["tie", "exp"])
def test_equal_norms_cost_the_least_and_are_left_alone(name: str) -> None:
    model = layer([[1.0, -2.0], [1.5, 1.5], [4.0, 4.0]])
    even, odd = (PENALTIES[name](model, [pair(0, other)], L1) for other in (1, 2))
    assert even < odd
    assert gradient(model, even).abs().max() == 0


@pytest.mark.parametrize("name", ["tie", "exp"])
def test_descending_the_penalty_closes_the_gap(name: str) -> None:
    model = layer([[1.0, 1.0, 1.0], [1.2, 1.2, 1.2]])
    before = float((L1(model[0].weight)[0] - L1(model[0].weight)[1]).detach().abs())
    for _ in range(50):
        step = gradient(model, PENALTIES[name](model, [pair(0, 1)], L1))
        with torch.no_grad():
            model[0].weight -= 0.05 * step
    after = float((L1(model[0].weight)[0] - L1(model[0].weight)[1]).detach().abs())
    assert after < 0.9 * before


@pytest.mark.parametrize("name", ["tie", "exp"])
def test_filters_outside_of_the_pairs_feel_nothing(name: str) -> None:
    model = layer([[1.0], [2.0], [3.0], [4.0]])
    found = gradient(model, PENALTIES[name](model, [pair(1, 3)], L1))
    assert found[[0, 2]].abs().max() == 0
    assert found[[1, 3]].abs().min() > 0


def test_a_groups_gap_is_the_sum_over_its_members() -> None:
    model = tiny.Residual()
    tied = TiedPair((("stem", 0, 1), ("b", 0, 1)))
    norms = {name: filter_norms(model.get_submodule(name).weight) for name in ("stem", "b")}
    gaps = sum(float((n[0] - n[1]).detach().abs()) for n in norms.values())
    sizes = sum(float((n[0] + n[1]).detach()) / 2 for n in norms.values())
    assert tie(model, [tied], L1).item() == pytest.approx(gaps / sizes)
    assert exponential_tie(model, [tied], L1, bound=100.0, max_slope=math.exp(100)).item() == pytest.approx(math.exp(gaps))


def test_cfps_term_is_that_of_its_definition_and_makes_pairs_more_alike() -> None:
    torch.manual_seed(0)
    model = tiny.Residual()
    tied = [TiedPair((("stem", 0, 1), ("b", 0, 1))), TiedPair((("stem", 2, 3), ("b", 2, 3)))]

    def alike() -> float:
        rows = {name: model.get_submodule(name).weight.detach().flatten(1).numpy() for name in ("stem", "b")}  # type: ignore[operator]
        each = [
            abs(np.corrcoef(rows[name][first], rows[name][second])[0, 1]) for pair in tied for name, first, second in pair.members
        ]
        return float(sum(each)) / len(each)

    before = alike()
    assert float(PENALTIES["correlation"](model, tied, L1).detach()) == pytest.approx(math.exp(-before), rel=1e-5)
    for _ in range(50):
        weights = [model.stem.weight, model.b.weight]
        steps = torch.autograd.grad(PENALTIES["correlation"](model, tied, L1), weights)
        with torch.no_grad():
            for weight, step in zip(weights, steps, strict=True):
                assert step[4:].abs().max() == 0
                weight -= step
    assert alike() > before + 0.1


def test_network_slimmings_term_shrinks_the_scales_of_batch_norms_alone() -> None:
    model = tiny.Chain()
    term = batch_norm_scales(model)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert float(term.detach()) == pytest.approx(1e-4 * sum(float(norm.weight.detach().abs().sum()) for norm in norms))
    term.backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {"bn1.weight", "bn2.weight"}


@pytest.mark.parametrize("name", PENALTIES)
def test_no_pairs_have_no_pull(name: str) -> None:
    model = layer([[1.0], [2.0]])
    assert PENALTIES[name](model, [], L1).isfinite()


@pytest.mark.parametrize("name", PENALTIES)
def test_a_loss_with_its_penalty_can_be_trained_on(name: str) -> None:
    model = tiny.Chain()
    loss = model(torch.randn(4, *tiny.SHAPE)).square().mean() + PENALTIES[name](model, [pair(0, 1, "conv1")], L1)
    loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in model.parameters())


def test_a_taught_loss_is_that_of_its_definition_and_leaves_the_teacher_alone() -> None:
    torch.manual_seed(0)
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.randn(6, 3, 2, 2)
    before = copy.deepcopy(model.state_dict())
    logits, temperature, weight = torch.randn(6, 5, requires_grad=True), 3.0, 0.7
    loss = nn.functional.cross_entropy(logits, torch.arange(6) % 5)
    blended = losses.Teacher(model, weight, temperature).blend(loss, logits, images)
    expected = 0.0
    for student, teacher in zip(logits.detach(), model(images).detach(), strict=True):
        p = [math.exp(v / temperature) for v in teacher.tolist()]
        q = [math.exp(v / temperature) for v in student.tolist()]
        expected += sum(a / sum(p) * math.log((a / sum(p)) / (b / sum(q))) for a, b in zip(p, q, strict=True)) / 6
    assert float(blended.detach()) == pytest.approx(
        (1 - weight) * float(loss.detach()) + weight * temperature**2 * expected, rel=1e-4
    )
    blended.backward()
    assert logits.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_a_network_has_nothing_to_learn_from_itself() -> None:
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(12, 5)), torch.randn(6, 3, 2, 2)
    blended = losses.Teacher(model, 1.0, 4.0).blend(torch.zeros(()), model(images), images)
    assert float(blended.detach()) == pytest.approx(0, abs=1e-5)
