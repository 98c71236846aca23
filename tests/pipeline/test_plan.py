"""How much goes: a budget is met, and with no more than it takes."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slimcli.errors import SettingsError
from slimcli.networks import resolve
from slimcli.pipeline.plan import Plan
from slimcli.settings import PruneSettings
from tests.shrinking import dense, pruned, without

SHAPE = (1, 28, 28)
DENSE = dense(resolve.build("lenet5", 10, SHAPE), SHAPE)


@given(st.sampled_from(["macs", "params"]), st.floats(0.1, 1.0), st.sampled_from(["10%", "25%", "2,5", "50%"]))
@settings(max_examples=6, deadline=None)
def test_a_budget_in_size_is_met_with_the_least_that_meets_it(kind: str, budget: float, amount: str) -> None:
    plan = Plan.of(PruneSettings(amount=amount, **{kind: budget}), DENSE, SHAPE)
    network = pruned(DENSE, plan, SHAPE)
    assert getattr(network.cost, kind) <= budget * getattr(DENSE.cost, kind)
    (conv1, conv2) = (group.channels for group in network.prunable)
    if conv1 < 20 and conv2 < 50:  # a filter more of each, and it would not be met
        wider = without(DENSE, {"conv1": 20 - conv1 - 1, "conv2": 50 - conv2 - 1}, SHAPE)
        assert getattr(wider.cost, kind) > budget * getattr(DENSE.cost, kind)


def test_no_filter_more_goes_than_a_budget_takes() -> None:
    """Scaled in proportion alone, conv1 would end with 12."""
    network = pruned(DENSE, Plan.of(PruneSettings(amount="10%", macs=0.5), DENSE, SHAPE), SHAPE)
    assert [group.channels for group in network.prunable] == [13, 33]


@pytest.mark.parametrize(("budget", "least"), [({"macs": 0.001}, "0.0126"), ({"params": 0.01}, "0.0315")])
def test_a_budget_that_no_removal_can_meet_is_refused(budget: dict[str, float], least: str) -> None:
    with pytest.raises(SettingsError, match=least):
        Plan.of(PruneSettings(amount="10%", **budget), DENSE, SHAPE)


def test_both_budgets_are_met() -> None:
    network = pruned(DENSE, Plan.of(PruneSettings(amount="10%", macs=0.5, params=0.5), DENSE, SHAPE), SHAPE)
    assert network.cost.macs <= 0.5 * DENSE.cost.macs
    assert network.cost.params <= 0.5 * DENSE.cost.params


def test_widths_beyond_the_dense_ones_are_refused() -> None:
    with pytest.raises(SettingsError, match="conv1, which has 20"):
        Plan.of(PruneSettings(amount="50%", widths=(40, 50)), DENSE, SHAPE)


@pytest.mark.parametrize("widths", [(4, 5), (20, 3)])
def test_widths_are_met_exactly(widths: tuple[int, ...]) -> None:
    network = pruned(DENSE, Plan.of(PruneSettings(amount="50%", widths=widths), DENSE, SHAPE), SHAPE)
    assert tuple(group.channels for group in network.prunable) == widths
