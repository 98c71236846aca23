"""What the criteria choose."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from slimcli.pruning.methods import CRITERIA_NAMES
from slimcli.pruning.rankings import CRITERIA, GroupView, losers, sum_norms
from slimcli.records import ChannelGroup, Choice, Member


def view(histories: list[Tensor], norms: list[Tensor], seed: int = 0) -> GroupView:
    channels = norms[0].shape[0]
    members = tuple(Member(f"layer{index}", tuple(range(channels))) for index in range(len(norms)))
    return GroupView(ChannelGroup("layer0", members, channels), histories, norms, "l1", torch.Generator().manual_seed(seed))


def some_view(channels: int = 8, members: int = 2, seed: int = 0) -> GroupView:
    generator = torch.Generator().manual_seed(seed)
    return view(
        [torch.rand(5, channels, generator=generator) for _ in range(members)],
        [torch.rand(channels, generator=generator) for _ in range(members)],
        seed,
    )


def test_the_names_that_are_listed_are_the_criteria_there_are() -> None:
    assert set(CRITERIA) == set(CRITERIA_NAMES)


@pytest.mark.parametrize("criterion", CRITERIA)
@given(st.integers(2, 12), st.data())
def test_a_criterion_removes_as_many_as_it_was_told(criterion: str, channels: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, channels // 2))
    group = some_view(channels, data.draw(st.integers(1, 3)), data.draw(st.integers(0, 999)))
    choice = CRITERIA[criterion](group, count)
    gone = losers(choice, group.norms)
    assert choice.group == "layer0"
    assert len(set(gone)) == len(gone) == count
    assert set(gone) <= set(range(channels))
    assert list(gone) == sorted(gone)


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_looks_and_does_not_touch(criterion: str) -> None:
    group = some_view()
    before = [tensor.clone() for tensor in (*group.histories, *group.norms)]
    CRITERIA[criterion](group, 3)
    assert all(torch.equal(one, other) for one, other in zip((*group.histories, *group.norms), before, strict=True))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_a_criterion_decides_the_same_twice(criterion: str) -> None:
    assert CRITERIA[criterion](some_view(seed=4), 3) == CRITERIA[criterion](some_view(seed=4), 3)


@pytest.mark.parametrize("criterion", ["history", "random-pairs"])
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
    groups = [GroupView(group, [torch.zeros(1, 50)], [torch.zeros(50)], "l1", generator) for _ in range(2)]
    assert CRITERIA["random"](groups[0], 10) != CRITERIA["random"](groups[1], 10)
