"""How much goes: a budget is met, and with no more than it takes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from slimcli.errors import SettingsError
from slimcli.networks import resolve, widths
from slimcli.pipeline import budget
from slimcli.pipeline.plan import ITERATIONS_USED_UP, NO_CHANNEL, STEP_TOO_SMALL, WAYS_OUT, Plan
from slimcli.pipeline.state import Network
from slimcli.pruning import methods
from slimcli.settings import PruneSettings
from tests import tiny
from tests.shrinking import dense, pruned, without

SHAPE = (1, 28, 28)
DENSE = dense(resolve.build("lenet5", 10, SHAPE), SHAPE)


@given(st.sampled_from(["macs", "params"]), st.floats(0.1, 0.99), st.sampled_from(["10%", "25%", "2,5", "50%"]))
@settings(max_examples=6, deadline=None)
def test_a_budget_in_size_is_met_with_the_least_that_meets_it(kind: str, share: float, amount: str) -> None:
    plan = Plan.of(PruneSettings(amount=amount, **{kind: share}), DENSE, SHAPE)
    network, before, counts = DENSE, DENSE, dict[str, int]()
    while not plan.budget.met(network, 0):
        before, counts = network, plan.counts(network)
        network = without(before, counts, SHAPE)
    assert getattr(network.cost, kind) <= share * getattr(DENSE.cost, kind)
    for name in [name for name, number in counts.items() if number]:
        wider = without(before, counts | {name: counts[name] - 1}, SHAPE)
        assert getattr(wider.cost, kind) > share * getattr(DENSE.cost, kind), "one filter less, and it would be met too"


def test_no_filter_more_goes_than_a_budget_takes() -> None:
    """Scaled in proportion alone, conv1 would end with 12."""
    network = pruned(DENSE, Plan.of(PruneSettings(amount="10%", macs=0.5), DENSE, SHAPE), SHAPE)
    assert [group.channels for group in network.prunable] == [13, 33]


@pytest.mark.parametrize(("asked", "least"), [({"macs": 0.001}, "0.0126"), ({"params": 0.01}, "0.0315")])
def test_a_budget_that_no_removal_can_meet_is_refused(asked: dict[str, float], least: str) -> None:
    with pytest.raises(SettingsError, match=least):
        Plan.of(PruneSettings(amount="10%", **asked), DENSE, SHAPE).budget.check_possible(DENSE)


def test_both_budgets_are_met() -> None:
    network = pruned(DENSE, Plan.of(PruneSettings(amount="10%", macs=0.5, params=0.5), DENSE, SHAPE), SHAPE)
    assert network.cost.macs <= 0.5 * DENSE.cost.macs
    assert network.cost.params <= 0.5 * DENSE.cost.params


def test_where_groups_give_something_else_than_was_asked_for_it_is_said() -> None:
    network = dense(tiny.Grouped(), tiny.SHAPE)
    assert Plan.of(PruneSettings(amount="2"), network, tiny.SHAPE).forced(network) == []
    assert Plan.of(PruneSettings(amount="3", widths=(3, 4, 6)), network, tiny.SHAPE).forced(network) == [
        "a (and 1 more) loses 4 of 8 channels in an iteration, not 3: 2 of its channels go together",
        "a keeps 4 channels, not 3: 2 of its channels go together",
    ]
    assert Plan.of(PruneSettings(amount="5"), network, tiny.SHAPE).forced(network)[-1] == (
        "c loses 3 of 6 channels in an iteration, not 5: no more than half of a group goes at once"
    )


def test_widths_in_channels_hold_for_units_of_several() -> None:
    network = dense(tiny.Grouped(), tiny.SHAPE)
    end = pruned(network, Plan.of(PruneSettings(amount="2", widths=(3, 4, 6)), network, tiny.SHAPE), tiny.SHAPE)
    assert [group.width for group in end.prunable] == [4, 4, 6]


@pytest.mark.parametrize("settings", [{"iterations": 6}, {"widths": (2, 2, 1)}], ids=str)
def test_a_grouped_conv_keeps_two_channels_in_each_group_and_loads(settings: dict[str, Any]) -> None:
    network = dense(tiny.Grouped(), tiny.SHAPE)
    plan = Plan.of(PruneSettings(amount="50%", **settings), network, tiny.SHAPE)
    while any((counts := plan.counts(network)).values()):
        network = without(network, counts, tiny.SHAPE)
    assert [group.width for group in network.prunable] == [4, 4, 1]
    again = tiny.Grouped()
    widths.take(again, network.model.state_dict())
    again.load_state_dict(network.model.state_dict())
    images = torch.randn(2, *tiny.SHAPE)
    assert torch.equal(again(images), network.model(images))


@pytest.mark.parametrize(("multiple", "share"), [(4, 0.5), (8, 0.3), (16, 0.6)])
def test_rounded_widths_meet_the_budget(multiple: int, share: float) -> None:
    plan = Plan.of(PruneSettings(amount="10%", macs=share, round_to=(multiple,)), DENSE, SHAPE)
    network = pruned(DENSE, plan, SHAPE)
    kept = [group.channels for group in network.prunable]
    assert network.cost.macs <= share * DENSE.cost.macs
    assert all(channels % multiple == 0 for channels in kept)
    asked = plan.budget.widths
    told = " ".join(plan.forced(DENSE))
    for group, channels in zip(DENSE.prunable, kept, strict=True):
        if channels != asked[group.name]:
            assert (
                f"keeps {channels} channels, by multiples of {multiple} (the budget's even share is {asked[group.name]})" in told
            )


def test_a_budget_out_of_reach_of_multiples_is_refused() -> None:
    with pytest.raises(SettingsError, match="multiples of 16"):
        Plan.of(PruneSettings(amount="10%", macs=0.1, round_to=(16,)), DENSE, SHAPE)
    with pytest.raises(SettingsError, match="--widths"):
        methods.resolve(PruneSettings(widths=(4,), macs=0.5, round_to=(4,)))


def test_auto_takes_what_is_fast_here_up_to_a_quarter_of_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """And halves it where the budget would be out of reach, or much of it would not be used."""
    monkeypatch.setattr(budget, "fast_multiples", lambda: {"spatial": 16, "linear": 4})
    plan = Plan.of(PruneSettings(amount="10%", macs=0.5, round_to="auto"), DENSE, SHAPE)
    assert plan.budget.multiples == {"conv1": 4, "conv2": 8}
    tight = PruneSettings(amount="10%", macs=0.04, round_to="auto")
    assert Plan.of(tight, DENSE, SHAPE).budget.multiples == {"conv1": 1, "conv2": 1}
    for macs in (0.2, 0.35, 0.5, 0.65, 0.8):
        plan = Plan.of(PruneSettings(amount="10%", macs=macs, round_to="auto"), DENSE, SHAPE)
        size = pruned(DENSE, plan, SHAPE).cost.macs / DENSE.cost.macs
        assert 0.9 * macs < size <= macs
    with pytest.raises(SettingsError, match="multiples of 8"):
        Plan.of(replace(tight, round_to=(4, 8)), DENSE, SHAPE)


def test_widths_are_rounded_where_they_follow_from_a_budget() -> None:
    """Not where they are given, or those of a paper."""
    assert methods.resolve(PruneSettings(macs=0.5)).round_to == "auto"
    assert methods.resolve(PruneSettings(params=0.5)).round_to == "auto"
    assert methods.resolve(PruneSettings(macs=0.5, round_to=(1,))).round_to == (1,)
    for asked in (PruneSettings(), PruneSettings(widths=(4,), macs=0.5), PruneSettings(macs=0.5, method="hbfp-paper")):
        assert methods.resolve(asked).round_to is None


def test_units_of_several_channels_are_rounded_in_channels() -> None:
    network = dense(tiny.Grouped(), tiny.SHAPE)
    slim = pruned(network, Plan.of(PruneSettings(amount="25%", macs=0.6, round_to=(4,)), network, tiny.SHAPE), tiny.SHAPE)
    for before, after in zip(network.prunable, slim.prunable, strict=True):
        assert after.width % 4 == 0 or after.width == before.width


def test_widths_beyond_the_dense_ones_are_refused() -> None:
    with pytest.raises(SettingsError, match="conv1, which has 20"):
        Plan.of(PruneSettings(amount="50%", widths=(40, 50)), DENSE, SHAPE)


def test_widths_are_met_where_a_budget_is_met_before_them() -> None:
    settings = PruneSettings(amount="10%", macs=0.9, widths=(10, 25))
    network = pruned(DENSE, Plan.of(settings, DENSE, SHAPE), SHAPE)
    assert [group.channels for group in network.prunable] == [10, 25]


@pytest.mark.parametrize("widths", [(4, 5), (20, 3)])
def test_widths_are_met_exactly(widths: tuple[int, ...]) -> None:
    network = pruned(DENSE, Plan.of(PruneSettings(amount="50%", widths=widths), DENSE, SHAPE), SHAPE)
    assert tuple(group.channels for group in network.prunable) == widths


def ending(network: Network, done: int = 0, **asked: Any) -> str:
    return Plan.of(PruneSettings(**asked), DENSE, SHAPE).ending(network, done)


def test_why_a_loop_ends() -> None:
    narrowest = without(DENSE, {"conv1": 19, "conv2": 49}, SHAPE)
    assert ending(narrowest, amount="10%", macs=0.5) == "the budget is met"
    assert ending(DENSE, 3, amount="10%", iterations=3) == "the budget is met"
    assert ending(DENSE, 3, amount="10%", iterations=3, macs=0.5) == ITERATIONS_USED_UP
    for asked in ({}, {"macs": 0.001}):
        assert ending(narrowest, amount="pq", **asked) == NO_CHANNEL
        assert ending(narrowest, amount="10%", **asked) == NO_CHANNEL
        assert ending(DENSE, amount="pq", gamma=0.01, **asked) == STEP_TOO_SMALL
    asked_for = without(DENSE, {"conv1": 10, "conv2": 25}, SHAPE)
    assert ending(asked_for, amount="pq", widths=(10, 25), macs=0.1) == NO_CHANNEL
    assert "--pq 1,2" in WAYS_OUT[STEP_TOO_SMALL]
