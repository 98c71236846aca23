"""The PQ-index has the properties that its authors prove, and SAP's step never takes everything."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numpy.typing import NDArray

from slimcli.errors import SettingsError
from slimcli.pruning.sparsity import pq_index, sap_amount, sap_share

PQ = st.sampled_from([(1.0, 2.0), (0.5, 1.0), (0.3, 1.0), (0.7, 3.0), (1.0, 1.5)])
MAGNITUDES = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60)


def naive_index(values: NDArray[np.float64], p: float, q: float) -> float:
    """Straight from the formula."""
    d = len(values)
    norm_p = (values**p).sum() ** (1 / p)
    norm_q = (values**q).sum() ** (1 / q)
    return float(1 - d ** (1 / q - 1 / p) * norm_p / norm_q)


def naive_amount(values: NDArray[np.float64], p: float, q: float, gamma: float, beta: float, eta: float) -> float:
    """Before it is rounded down."""
    d = len(values)
    r = d * (1 + eta) ** (-q / (q - p)) * (1 - naive_index(values, p, q)) ** (q * p / (q - p))
    return float(d * min(gamma * (1 - r / d), beta))


@given(MAGNITUDES, PQ)
def test_it_is_the_formula(values: list[float], pq: tuple[float, float]) -> None:
    assert pq_index(torch.tensor(values, dtype=torch.float64), *pq) == pytest.approx(naive_index(np.array(values), *pq), abs=1e-6)


@given(MAGNITUDES, PQ, st.floats(0.1, 3), st.floats(0.05, 1), st.floats(0, 1))
def test_the_step_is_the_formula(values: list[float], pq: tuple[float, float], gamma: float, beta: float, eta: float) -> None:
    exact = naive_amount(np.array(values), *pq, gamma, beta, eta)
    assume(abs(exact - round(exact)) > 1e-6)  # where rounding down depends on the last bit
    count = sap_amount(torch.tensor(values, dtype=torch.float64), *pq, gamma, beta, eta)
    assert count == max(0, min(math.floor(exact), len(values) - 1))


@given(MAGNITUDES, PQ)
def test_it_lies_in_0_to_1_and_is_0_for_equal_magnitudes(values: list[float], pq: tuple[float, float]) -> None:
    assert 0 <= pq_index(torch.tensor(values), *pq) < 1
    assert pq_index(torch.full((len(values),), values[0], dtype=torch.float64), *pq) == pytest.approx(0, abs=1e-12)


@given(MAGNITUDES, PQ, st.floats(1e-20, 1e20), st.integers(2, 5))
def test_scaling_repeating_and_signs_change_nothing(
    values: list[float], pq: tuple[float, float], scale: float, times: int
) -> None:
    vector = torch.tensor(values, dtype=torch.float64)
    index = pq_index(vector, *pq)
    assert pq_index(vector * scale, *pq) == pytest.approx(index, abs=1e-9)
    assert pq_index(vector.repeat(times), *pq) == pytest.approx(index, abs=1e-9)
    assert pq_index(-vector.reshape(1, -1), *pq) == pytest.approx(index, abs=1e-12)


@given(st.lists(st.floats(0.1, 10), min_size=2, max_size=40), PQ, st.data())
def test_it_grows_when_the_rich_take_from_the_poor(values: list[float], pq: tuple[float, float], data: st.DataObject) -> None:
    vector = torch.tensor(sorted(values), dtype=torch.float64)
    taken = data.draw(st.floats(0.05, 0.95)) * vector[0]
    poorer = vector.clone()
    poorer[0] -= taken
    poorer[-1] += taken
    assert pq_index(poorer, *pq) > pq_index(vector, *pq)


@given(st.integers(1, 30), st.integers(0, 100), PQ)
def test_it_grows_with_zeros(alive: int, zeros: int, pq: tuple[float, float]) -> None:
    vector = torch.cat([torch.ones(alive), torch.zeros(zeros)])
    p, q = pq
    assert pq_index(vector, p, q) == pytest.approx(1 - (alive / (alive + zeros)) ** (1 / p - 1 / q), abs=1e-9)


@given(MAGNITUDES, PQ, st.floats(0.01, 100), st.floats(0.01, 1), st.floats(0, 10))
def test_something_always_stays(values: list[float], pq: tuple[float, float], gamma: float, beta: float, eta: float) -> None:
    vector = torch.tensor(values)
    count = sap_amount(vector, *pq, gamma, beta, eta)
    assert 0 <= count < len(values)
    assert count <= beta * len(values)
    assert sap_share([vector, vector], *pq, gamma, beta, eta) == pytest.approx(
        sap_amount(vector.repeat(2), *pq, gamma, beta, eta) / (2 * len(values))
    )


def test_extreme_magnitudes_neither_overflow_nor_vanish() -> None:
    for scale in (1e-300, 1e300):
        vector = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64) * scale
        assert pq_index(vector, 0.5, 2.0) == pytest.approx(pq_index(torch.tensor([1.0, 2.0, 4.0]), 0.5, 2.0), abs=1e-9)
    assert pq_index(torch.zeros(5), 1, 2) == 0


def test_a_vector_and_its_norms_say_different_things() -> None:
    """Filters of random weights: the weights are far from equal, the filters' norms nearly are. SAP on norms removes nothing."""
    weights = torch.randn(50, 500, generator=torch.Generator().manual_seed(0))
    assert sap_share([weights], 1, 2) > 0.3
    assert sap_share([weights.abs().sum(1)], 1, 2) < 0.02


@pytest.mark.parametrize(("p", "q"), [(0, 1), (-1, 2), (1, 1), (1.1, 2), (0.5, 0.9), (1, math.inf), (math.nan, 2), (1, math.nan)])
def test_p_and_q_outside_their_ranges_are_refused(p: float, q: float) -> None:
    with pytest.raises(SettingsError, match="--pq"):
        pq_index(torch.ones(3), p, q)


@pytest.mark.parametrize("wrong", [{"gamma": 0}, {"gamma": math.nan}, {"beta": 0}, {"beta": 1.1}, {"eta": -1}, {"eta": math.inf}])
def test_parameters_outside_their_ranges_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=f"--{next(iter(wrong))}"):
        sap_amount(torch.ones(3), 1, 2, **wrong)


@pytest.mark.parametrize("vector", [torch.ones(0), torch.tensor([1.0, math.nan]), torch.tensor([math.inf])])
def test_what_has_no_index_is_refused(vector: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="PQ-index"):
        pq_index(vector, 1, 2)
