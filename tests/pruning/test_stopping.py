"""Each rule stops where its words say, and nowhere else."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimcli.pruning.stopping import (
    PLATEAU,
    AccuracyBack,
    AllEpochs,
    Allotted,
    FlowNoNearer,
    FlowWithin,
    Look,
    LossPlateau,
    Rule,
    allotment,
)

POSITIVE = st.floats(1e-3, 1e3)
LOOKS = st.lists(st.builds(Look, POSITIVE, st.floats(0, 100), POSITIVE), min_size=1, max_size=8)


def first_stop(rule: Rule, looks: list[Look]) -> int | None:
    """After how many epochs the rule ends a retraining; None where it does not."""
    return next((count for count in range(1, len(looks) + 1) if rule.enough(looks[:count])), None)


@given(LOOKS, st.floats(0, 100), POSITIVE)
def test_each_rule_stops_at_the_first_epoch_that_it_names(looks: list[Look], target: float, epsilon: float) -> None:
    numbered = list(enumerate(looks, 1))
    assert first_stop(AllEpochs(), looks) is None
    assert first_stop(AccuracyBack(target), looks) == next((n for n, look in numbered if (look.score or 0) >= target), None)
    near = [n for n, look in numbered[1:] if (look.distance or 0) <= epsilon]
    assert first_stop(FlowWithin(epsilon), looks) == next(iter(near), None)
    still = [n for n, look in numbered[1:] if (look.distance or 0) > 0.7 * (looks[n - 2].distance or 0)]
    assert first_stop(FlowNoNearer(0.3), looks) == next(iter(still), None)
    flat = [n for n, look in numbered[1:] if (look.loss or 0) > (1 - PLATEAU) * (looks[n - 2].loss or 0)]
    assert first_stop(LossPlateau(), looks) == next(iter(flat), None)


@pytest.mark.parametrize("rule", [AccuracyBack(0.0), FlowWithin(1e9), FlowNoNearer(1.0)])
def test_what_was_not_looked_at_stops_nothing(rule: Rule) -> None:
    assert not rule.enough([Look(loss=1.0), Look(loss=1.0)])


def test_a_flow_is_not_back_before_an_epoch() -> None:
    """InCoP's Algorithm 1 trains first, then looks."""
    for rule in (FlowWithin(1.0), FlowNoNearer()):
        assert not rule.enough([Look(None, distance=0.5)])
        assert rule.enough([Look(None, distance=0.5), Look(1.0, distance=0.5)])


def test_a_plateau_is_one_of_two_epochs() -> None:
    assert not LossPlateau().enough([Look(None)])
    assert not LossPlateau().enough([Look(None), Look(1.0)])
    assert LossPlateau().enough([Look(None), Look(1.0), Look(1.0)])


@given(st.lists(st.floats(0, 2), min_size=1, max_size=20), st.floats(0.05, 1))
def test_epochs_are_given_out_for_all_that_was_broken(broken: list[float], per_epoch: float) -> None:
    """Whatever order the removals come in: what is carried over is less than an epoch's worth, and nothing is lost."""
    owed, epochs = 0.0, 0
    for each in broken:
        given_out, owed = allotment(owed + each, per_epoch)
        epochs += given_out
        assert 0 <= owed < per_epoch * (1 + 1e-9)
    assert epochs * per_epoch + owed == pytest.approx(sum(broken))


def test_a_retraining_that_should_have_more_epochs_than_its_limit_does_not_meet_the_rule() -> None:
    for owed, per_epoch in ((1.05, 0.1), (0.0, 0.0), (float("inf"), 0.15)):
        epochs, rest = allotment(owed, per_epoch)
        assert epochs > 5
        assert rest < 0.1
        assert not Allotted(epochs).enough([Look(None)] + [Look(1.0)] * 5)
