"""Scores under the names that files have, and what of them may be lost."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from slimcli.measures import TOP1, Measure, Score, measure_of, told, value_of

MEASURES = st.sampled_from([TOP1, Measure("mIoU"), Measure("error", higher=False)])
VALUES = st.floats(-1e6, 1e6)


@given(MEASURES, VALUES, st.floats(0, 1e3), st.integers(1, 9))
def test_reading_a_score_equals_writing_it(measure: Measure, value: float, loss: float, samples: int) -> None:
    score = Score(value, loss, samples, measure)
    assert Score.of(json.loads(json.dumps(score.facts()))) == score


@given(MEASURES, VALUES)
def test_top1_is_null_where_another_score_is_shown(measure: Measure, value: float) -> None:
    facts = Score(value, 0.5, 10, measure).facts()
    assert (facts["top1"] is None) == (measure != TOP1) == ("score" in facts)
    assert value_of(facts) == value
    assert measure_of(facts) == measure
    step = told({"index": 1, "score": value, "score_after_surgery": value - 1}, measure)
    assert (value_of(step), value_of(step, "score_after_surgery")) == (value, value - 1)
    assert ("top1_after_surgery" in step, "index" in step) == (True, True)


@given(MEASURES, VALUES, st.floats(0, 100))
def test_an_allowed_loss_is_a_loss_and_no_loss_is_allowed(measure: Measure, dense: float, allowed: float) -> None:
    limit = measure.limit(dense, allowed)
    assert measure.gain(limit, dense) <= 0
    assert measure.gain(dense, measure.limit(dense, 0)) == 0
    lost = abs(limit - dense)
    wanted = allowed if measure.is_top1 else abs(dense) * allowed / 100
    assert abs(lost - wanted) <= 1e-9 * max(1.0, abs(dense))


def test_figures_are_written_as_they_are_counted() -> None:
    assert TOP1.figure(93.384) + TOP1.unit == "93.38 %"
    assert TOP1.change(93.0, 93.5) == "-0.50"
    error = Measure("mm", higher=False)
    assert error.figure(0.12345) + error.unit == "0.1235"
    assert (error.gain(2.0, 3.0), error.limit(2.0, 10.0)) == (1.0, 2.2)
