"""Which last retrainings are tried, and which of them is kept."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from slimcli.measures import Score
from slimcli.networks import resolve
from slimcli.networks.cost import count
from slimcli.pipeline.origins import Known, Origins
from slimcli.pipeline.state import Network, State
from slimcli.pipeline.trials import Trials, planned_for
from slimcli.pruning import surgery
from slimcli.pruning.history import NormHistory
from slimcli.settings import FINALS, PruneSettings

SHAPE = (1, 28, 28)


@given(st.sampled_from(FINALS), st.integers(0, 100), st.booleans(), st.none() | st.integers(1, 8))
def test_all_trials_together_take_the_epochs_that_were_given(final: str, epochs: int, fresh: bool, draws: int | None) -> None:
    planned = planned_for(PruneSettings(final=final, final_epochs=epochs, draws=draws), fresh)
    assert sum(each.epochs for each in planned) == epochs
    assert all(each.epochs > 0 for each in planned)
    if final == "auto" and epochs >= 4:
        assert ("fresh" in {each.start for each in planned}) == fresh
        assert planned[-1].start == "best"


def test_several_fresh_draws_are_tried_and_the_best_goes_on() -> None:
    planned = planned_for(PruneSettings(final="fresh", final_epochs=48, draws=4), fresh=True)
    assert [(each.start, each.epochs) for each in planned] == [("fresh", 4)] * 4 + [("best", 32)]
    planned = planned_for(PruneSettings(final="auto", final_epochs=40, draws=2), fresh=True)
    assert [each.start for each in planned] == ["finetune", "fresh", "rewind", "fresh", "best"]


@pytest.mark.parametrize(
    ("final", "epochs", "left_out"),
    [
        ("auto", 10, []),
        ("auto", 5, ["rewind", "fresh", "fresh"]),
        ("auto", 3, ["fresh", "rewind", "fresh", "fresh"]),
        ("fresh", 5, ["fresh", "fresh", "fresh"]),
        ("finetune", 1, []),
        ("finetune", 0, []),
    ],
)
def test_starts_that_the_epochs_do_not_suffice_for_are_named(final: str, epochs: int, left_out: list[str]) -> None:
    trials, _ = trials_and_state(epochs, final=final, draws=4 if final == "fresh" else None)
    assert trials.left_out == left_out


def trials_and_state(epochs: int, final: str = "auto", draws: int | None = None) -> tuple[Trials, State]:
    model = resolve.build("lenet5", 10, SHAPE).eval()
    groups = tuple(surgery.find_groups(model, SHAPE))
    settings = PruneSettings(final=final, final_epochs=epochs, draws=draws)
    network = Network(model, NormHistory(norm=settings.norm), groups, count(model, SHAPE))
    known = Known(build=lambda: resolve.build("lenet5", 10, SHAPE))
    return Trials(settings, Origins(model, groups, SHAPE, known)), State(network, network, torch.Generator().get_state())


def play(scores: list[Any]) -> State:
    """All trials, each of which reaches (top-1, loss), or nothing where its loss was lost."""
    trials, state = trials_and_state(20)
    for score in scores:
        assert not trials.over(state)
        state.network = trials.begin(state)
        if score is None:
            trials.give_up(state)
        else:
            trials.judge(state, Score(*score, samples=1000))
    assert trials.over(state)
    return state


@pytest.mark.parametrize(
    ("scores", "chosen"),
    [
        ([(90.0, 0.3), (95.0, 0.2), (91.0, 0.2), (92.0, 0.3), (93.0, 0.3), (96.0, 0.1)], 5),
        ([(95.0, 0.3), (95.1, 0.2), (94.9, 0.1), (90.0, 0.0), (90.0, 0.0), (94.9, 0.3)], 5),  # within the noise of 0.7 points
        ([(95.0, 0.3), (95.1, 0.2), (94.9, 0.1), (90.0, 0.0), (90.0, 0.0), (80.0, 0.0)], 2),  # going on was a loss
        ([None, (95.0, 0.3), None, None, None, (95.0, 0.3)], 5),
        ([None, None, None, None, None], None),  # nothing to go on from
    ],
)
def test_the_best_on_held_out_images_is_kept(scores: list[Any], chosen: int | None) -> None:
    state = play(scores)
    assert [number for number, trial in enumerate(state.trials) if trial.chosen] == ([] if chosen is None else [chosen])
    assert (state.best is None) == (chosen is None)
    assert [trial.lost for trial in state.trials] == [score is None for score in scores]


def test_going_on_names_the_start_that_it_goes_on_from() -> None:
    state = play([(90.0, 0.3), (95.0, 0.2), (91.0, 0.2), (92.0, 0.3), (93.0, 0.3), (96.0, 0.1)])
    assert (state.trials[-1].start, state.trials[-1].continued) == ("fresh", True)


def test_every_fresh_draw_is_another_one() -> None:
    trials, state = trials_and_state(20)
    drawn = []
    for _ in range(5):
        network = trials.begin(state)
        drawn.append(network.model.state_dict()["conv1.weight"].clone())
        state.network = network
        trials.judge(state, Score(90.0, 0.3, 1000))
    assert not torch.equal(drawn[2], drawn[3])
    assert not torch.equal(drawn[3], drawn[4])
    assert torch.equal(drawn[0], state.kept.model.state_dict()["conv1.weight"])  # fine-tuning starts where pruning ended
