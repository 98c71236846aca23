"""What the criteria choose."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from slimcli.pruning.history import filter_norms
from slimcli.pruning.methods import CRITERIA_NAMES
from slimcli.pruning.rankings import CRITERIA, GroupView, losers, sum_norms
from slimcli.records import ChannelGroup, Choice, Member


def view(histories: list[Tensor], norms: list[Tensor], seed: int = 0) -> GroupView:
    """Of filters that have one weight each, their norm."""
    channels = norms[0].shape[0]
    members = tuple(Member(f"layer{index}", tuple(range(channels))) for index in range(len(norms)))
    generator = torch.Generator().manual_seed(seed)
    return GroupView(ChannelGroup("layer0", members, channels), histories, [norm[:, None] for norm in norms], generator)


def some_view(channels: int = 8, members: int = 2, seed: int = 0) -> GroupView:
    generator = torch.Generator().manual_seed(seed)
    histories = [torch.rand(5, channels, generator=generator) for _ in range(members)]
    weights = [torch.randn(channels, 3 + index, generator=generator) for index in range(members)]
    flat = view(histories, [torch.zeros(channels)] * members, seed)
    return replace(flat, weights=weights, scores=torch.rand(channels, generator=generator))


def test_the_names_that_are_listed_are_the_criteria_there_are() -> None:
    assert set(CRITERIA) == set(CRITERIA_NAMES)


@pytest.mark.parametrize("criterion", CRITERIA)
@given(st.integers(2, 12), st.data())
def test_a_criterion_removes_as_many_as_it_was_told(criterion: str, channels: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, channels // 2))
    group = some_view(channels, data.draw(st.integers(1, 3)), data.draw(st.integers(0, 999)))
    choice = CRITERIA[criterion](group, count)
    gone = losers(choice, [filter_norms(weights) for weights in group.weights])
    assert choice.group == "layer0"
    assert len(set(gone)) == len(gone) == count
    assert set(gone) <= set(range(channels))
    assert list(gone) == sorted(gone)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_looks_and_does_not_touch(criterion: str) -> None:
    group = some_view()
    before = [tensor.clone() for tensor in (*group.histories, *group.weights)]
    CRITERIA[criterion](group, 3)
    assert all(torch.equal(one, other) for one, other in zip((*group.histories, *group.weights), before, strict=True))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_decides_the_same_twice(criterion: str) -> None:
    assert CRITERIA[criterion](some_view(seed=4), 3) == CRITERIA[criterion](some_view(seed=4), 3)


@pytest.mark.parametrize("criterion", ["history", "random-pairs", "cfp"])
@given(st.integers(0, 999), st.integers(1, 4))
def test_pairs_of_one_kind_come_before_pairs_of_two(criterion: str, seed: int, count: int) -> None:
    group = replace(some_view(8, 1, seed), kinds=(0, 0, 0, 0, 4, 5, 6, 7))
    pairs = CRITERIA[criterion](group, count).pairs
    alike = [pair for pair in pairs if max(pair) < 4]
    assert len(alike) == min(2, count)
    assert pairs[: len(alike)] == tuple(alike)
    assert len({unit for pair in pairs for unit in pair}) == 2 * count


def test_where_all_are_of_one_kind_kinds_change_nothing() -> None:
    group = some_view()
    assert CRITERIA["history"](replace(group, kinds=(3,) * 8), 3) == CRITERIA["history"](group, 3)


def test_history_pairs_what_ran_alike_over_all_members() -> None:
    one = torch.tensor([[1.0, 1.1, 5.0, 1.2], [2.0, 2.1, 5.0, 2.2]])
    other = torch.tensor([[7.0, 3.0, 3.0, 7.1], [7.0, 3.0, 3.0, 7.1]])
    norms = [torch.tensor([1.0, 1.0, 1.0, 1.0])]
    assert CRITERIA["history"](view([one], norms), 1).pairs == ((0, 1),)
    assert CRITERIA["history"](view([one, other], norms), 1).pairs == ((0, 3),)


def test_of_a_pair_the_lower_norm_goes_and_the_first_of_equals() -> None:
    choice = Choice("layer0", pairs=((0, 3), (1, 2), (4, 5)))
    norms = [torch.tensor([5.0, 1, 4, 2, 3, 3]), torch.tensor([0.0, 2, 4, 2, 1, 1])]
    assert losers(choice, norms) == (1, 3, 4)


@given(st.integers(2, 15), st.data())
def test_every_filter_that_goes_by_norm_is_below_every_one_that_stays(channels: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, channels - 1))
    values = data.draw(st.lists(st.integers(0, 4), min_size=2 * channels, max_size=2 * channels))
    norms = [torch.tensor(values[:channels]).float(), torch.tensor(values[channels:]).float()]
    gone = CRITERIA["l1"](view([torch.zeros(1, channels)], norms), count).filters
    total = sum_norms(norms)
    stay = [channel for channel in range(channels) if channel not in gone]
    assert len(gone) == count
    assert max((float(total[g]), g) for g in gone) < min((float(total[s]), s) for s in stay)


def test_random_reaches_every_filter() -> None:
    drawn: set[int] = set()
    for seed in range(60):
        drawn |= set(CRITERIA["random"](some_view(seed=seed), 2).filters)
    assert drawn == set(range(8))


def test_random_draws_anew_for_the_next_group() -> None:
    generator = torch.Generator().manual_seed(0)
    group = ChannelGroup("a", (Member("a", tuple(range(50))),), 50)
    groups = [GroupView(group, [torch.zeros(1, 50)], [torch.zeros(50, 1)], generator) for _ in range(2)]
    assert CRITERIA["random"](groups[0], 10) != CRITERIA["random"](groups[1], 10)


WEIGHTS = st.integers(2, 9).flatmap(
    lambda units: st.lists(st.lists(st.floats(-3, 3, width=32), min_size=4, max_size=4), min_size=2 * units, max_size=2 * units)
)


@given(WEIGHTS, st.data())
def test_fpgm_and_the_norms_are_those_of_their_definitions(rows: list[list[float]], data: st.DataObject) -> None:
    """By loops over filters, in numpy; which of two goes that are equally far is not asked."""
    units = len(rows) // 2
    members = [np.array(rows[:units]), np.array(rows[units:])]
    flat = view([torch.zeros(1, units)] * 2, [torch.zeros(units)] * 2)
    group = replace(flat, weights=[torch.tensor(member) for member in members])
    count = data.draw(st.integers(1, units - 1))
    importance = {
        "l1": [sum(float(np.abs(member[i]).sum()) for member in members) for i in range(units)],
        "l2": [sum(math.sqrt(float((member[i] ** 2).sum())) for member in members) for i in range(units)],
        "fpgm": [
            sum(math.sqrt(float(((member[i] - member[j]) ** 2).sum())) for member in members for j in range(units))
            for i in range(units)
        ],
    }
    for criterion, values in importance.items():
        gone = CRITERIA[criterion](group, count).filters
        assert len(gone) == count
        assert max(values[i] for i in gone) <= min(values[i] for i in range(units) if i not in gone) + 1e-5


@given(WEIGHTS)
def test_cfp_pairs_what_numpy_finds_most_correlated(rows: list[list[float]]) -> None:
    units = len(rows) // 2
    members = [np.array(rows[:units]), np.array(rows[units:])]
    flat = view([torch.zeros(1, units)] * 2, [torch.zeros(units)] * 2)
    ((i, j),) = CRITERIA["cfp"](replace(flat, weights=[torch.tensor(member) for member in members]), 1).pairs
    with np.errstate(all="ignore"):
        alike = sum(np.nan_to_num(np.abs(np.corrcoef(member))) for member in members)
    assume(all(member.std(1).min() > 1e-3 for member in members))
    assert alike[i, j] >= max(alike[a, b] for a in range(units) for b in range(a + 1, units)) - 1e-5
