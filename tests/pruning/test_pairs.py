"""Pair distances and their selection against plain loops over Eq. 5-6."""

from __future__ import annotations

import math
import signal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slimcli.pruning.pairs import disjoint_pairs, pair_distances
from slimcli.records import Pair


def distances_by_hand(histories: list[Tensor], distance: str) -> list[float]:
    """Every pair (i, j), i < j, row by row; a group's distance is the sum of its members'."""
    found = []
    filters = histories[0].shape[1]
    for i in range(filters):
        for j in range(i + 1, filters):
            total = 0.0
            for history in histories:
                a, b = history[:, i].tolist(), history[:, j].tolist()
                if distance == "l1":
                    total += math.fsum(abs(x - y) for x, y in zip(a, b, strict=True))
                elif distance == "l2":
                    total += math.dist(a, b)
                else:
                    total += 1 - math.fsum(x * y for x, y in zip(a, b, strict=True)) / (math.hypot(*a) * math.hypot(*b))
            found.append(total)
    return found


def pairs_by_hand(distances: list[float], filters: int, count: int) -> tuple[Pair, ...]:
    """Ascending distance, ties by index; a pair that shares a filter with a chosen one is skipped."""
    pairs = [(i, j) for i in range(filters) for j in range(i + 1, filters)]
    chosen: list[Pair] = []
    for _, pair in sorted(zip(distances, pairs, strict=True)):
        if len(chosen) < count and not set(pair) & {filter_ for other in chosen for filter_ in other}:
            chosen.append(pair)
    return tuple(chosen)


@given(st.integers(1, 7), st.integers(1, 5), st.integers(1, 3), st.integers(0, 10**6))
@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_distances_equal_the_loop(distance: str, filters: int, epochs: int, members: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    histories = [torch.rand(epochs, filters, generator=generator) * 10 + 0.1 for _ in range(members)]
    found = pair_distances(histories, distance)
    expected = torch.tensor(distances_by_hand(histories, distance))
    assert found.shape == (filters * (filters - 1) // 2,)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_filters_that_ran_alike_are_at_no_distance(distance: str) -> None:
    history = torch.tensor([[1.0, 2, 1, 0, 0], [3.0, 6, 3, 0, 0]])
    found = dict(
        zip([(i, j) for i in range(5) for j in range(i + 1, 5)], pair_distances([history], distance).tolist(), strict=True)
    )
    assert found[0, 2] == pytest.approx(0, abs=1e-6)
    assert found[3, 4] == 0  # two dead filters
    assert (found[0, 1] == pytest.approx(0, abs=1e-6)) == (distance == "cosine")  # the same course at another height
    assert all(math.isfinite(value) and value >= 0 for value in found.values())


@given(st.integers(2, 9), st.data())
def test_a_selection_equals_the_loop(filters: int, data: st.DataObject) -> None:
    """Few distinct distances, so that nearly every choice is a tie."""
    size = filters * (filters - 1) // 2
    values = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size))
    count = data.draw(st.integers(0, filters))
    expected = pairs_by_hand([float(value) for value in values], filters, min(count, filters // 2))
    assert disjoint_pairs(torch.tensor(values, dtype=torch.float32), filters, count) == expected


@pytest.mark.parametrize("filters", [2, 3, 16, 61])
@pytest.mark.parametrize("kind", ["random", "ties", "all equal", "ascending", "descending", "one hub", "infinite"])
def test_a_selection_among_many_equals_the_loop(filters: int, kind: str) -> None:
    size = filters * (filters - 1) // 2
    distances = {
        "random": torch.rand(size),
        "ties": torch.randint(0, 5, (size,)).float(),
        "all equal": torch.ones(size),
        "ascending": torch.arange(size).float(),
        "descending": -torch.arange(size).float(),
        "one hub": torch.rand(size) + 100,
        "infinite": torch.full((size,), math.inf),
    }[kind]
    if kind == "one hub":  # the nearest pairs all share filter 0
        distances[: filters - 1] = torch.arange(filters - 1).float()
    for count in (1, filters // 4, filters // 2, filters):
        expected = pairs_by_hand(distances.tolist(), filters, min(count, filters // 2))
        assert disjoint_pairs(distances, filters, count) == expected


@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 10**6))
def test_pairs_are_disjoint_and_as_many_as_can_be(filters: int, count: int, seed: int) -> None:
    distances = torch.rand(filters * (filters - 1) // 2, generator=torch.Generator().manual_seed(seed))
    pairs = disjoint_pairs(distances, filters, count)
    members = [member for pair in pairs for member in pair]
    assert len(pairs) == min(count, filters // 2)
    assert len(set(members)) == len(members)
    assert all(0 <= i < j < filters for i, j in pairs)


def test_distances_that_are_no_numbers_come_last() -> None:
    def give_up(*_: object) -> None:
        raise TimeoutError("the selection does not end")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, 2)
    try:
        distances = torch.tensor([math.nan, 1.0, math.nan, 2.0, 0.5, math.nan])  # (0,1) (0,2) (0,3) (1,2) (1,3) (2,3)
        assert disjoint_pairs(distances, 4, 2) == ((1, 3), (0, 2))
        assert disjoint_pairs(torch.full((6,), math.nan), 4, 2) == ((0, 1), (2, 3))
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_selecting_leaves_the_distances_alone() -> None:
    distances = torch.rand(15)
    before = distances.clone()
    disjoint_pairs(distances, 6, 3)
    assert torch.equal(distances, before)


def test_a_wide_layer_is_paired_quickly() -> None:
    history = torch.rand(20, 512)
    assert len(disjoint_pairs(pair_distances([history]), 512, 52)) == 52
