"""The named combinations and what may override them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from slimcli.errors import SettingsError
from slimcli.pruning.methods import CRITERIA_NAMES, METHODS, resolve, without_effect
from slimcli.pruning.rankings import CRITERIA
from slimcli.settings import PENALTIES, PruneSettings
from slimcli.training import losses


@pytest.mark.parametrize("name", METHODS)
def test_every_method_stands_for_known_parts(name: str) -> None:
    settings = resolve(PruneSettings(method=name))
    assert settings.criterion in CRITERIA_NAMES
    assert settings.penalty in PENALTIES
    assert METHODS[name].summary
    assert resolve(settings) == settings


def test_hbfp_paper_is_what_the_paper_says_and_hbfp_what_was_measured() -> None:
    paper, measured = resolve(PruneSettings(method="hbfp-paper")), resolve(PruneSettings())
    assert (paper.criterion, paper.penalty, paper.merge) == ("history", "exp", False)
    assert (paper.final, paper.distill) == ("finetune", False)
    assert (measured.criterion, measured.penalty, measured.merge) == ("history", "weights", True)
    assert (measured.final, measured.distill) == ("finetune", True)


@pytest.mark.parametrize("control", ["cfp", "l1", "l2", "fpgm", "bn", "taylor", "hrank", "random"])
def test_the_controls_of_hbfp_are_retrained_as_it_is(control: str) -> None:
    hbfp, other = resolve(PruneSettings()), resolve(PruneSettings(method=control))
    retraining = ("amount", "stop", "epochs", "tie_epochs", "final", "final_epochs", "distill")
    assert [getattr(other, part) for part in retraining] == [getattr(hbfp, part) for part in retraining]


def test_a_network_that_is_only_retrained_does_not_teach_itself() -> None:
    assert not resolve(PruneSettings(iterations=0)).distill
    assert resolve(PruneSettings(iterations=0, distill=True)).distill


def test_a_teacher_wants_a_method_that_is_taught() -> None:
    assert resolve(PruneSettings(teacher="x.pt", iterations=0)).distill
    with pytest.raises(SettingsError, match="--distill"):
        resolve(PruneSettings(teacher="x.pt", method="sap"))
    assert resolve(PruneSettings(teacher="x.pt", method="sap", distill=True)).distill


@pytest.mark.parametrize(
    ("given", "penalty", "merge"),
    [
        ({"merge": False}, "tie", False),
        ({"penalty": "tie"}, "tie", False),
        ({"penalty": "weights"}, "weights", True),
        ({"penalty": "none", "merge": True}, "none", True),
        ({"criterion": "random-pairs"}, "weights", True),
        ({"method": "hbfp-paper", "merge": True}, "weights", True),
        ({"method": "l1", "criterion": "history", "merge": True}, "weights", True),
    ],
)
def test_merging_brings_its_tie_unless_another_is_named(given: dict[str, Any], penalty: str, merge: bool) -> None:
    settings = resolve(PruneSettings(**given))
    assert (settings.penalty, settings.merge) == (penalty, merge)


def test_the_papers_methods_have_the_papers_parts() -> None:
    parts = {name: resolve(PruneSettings(method=name)) for name in ("lth", "sap", "incop-if", "incop-gf")}
    assert {s.criterion for s in parts.values()} == {"magnitude"}
    assert [s.amount for s in parts.values()] == ["20%", "pq", "pq", "pq"]
    assert [s.stop for s in parts.values()] == ["epochs", "epochs", "if", "gf"]
    assert [s.rewind for s in parts.values()] == [True, False, False, False]
    assert {s.tie_epochs for s in parts.values()} == {0}
    combined = resolve(PruneSettings(stop="if"))
    assert (combined.method, combined.criterion, combined.stop, combined.epochs) == ("hbfp", "history", "if", 20)


@pytest.mark.parametrize("budget", [{"macs": 0.5}, {"params": 0.5}, {"widths": (4,)}])
def test_masks_save_no_computation(budget: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="a mask saves no computation") as caught:
        resolve(PruneSettings(method="lth", granularity="weight", **budget))
    assert "--granularity filter" in caught.value.hint


@pytest.mark.parametrize("which", ["include", "exclude"])
def test_masks_are_on_all_layers(which: str) -> None:
    with pytest.raises(SettingsError, match=f"--{which} chooses groups"):
        resolve(PruneSettings(**{"method": "lth", "granularity": "weight", which: ("conv*",)}))


@pytest.mark.parametrize("method", ["hbfp", "l1"])
def test_criteria_of_filters_choose_no_weights(method: str) -> None:
    with pytest.raises(SettingsError, match="not weights"):
        resolve(PruneSettings(method=method, granularity="weight"))


@pytest.mark.parametrize("method", ["l1", "random"])
def test_merging_without_pairs_is_a_contradiction(method: str) -> None:
    with pytest.raises(SettingsError, match="--merge"):
        resolve(PruneSettings(method=method, merge=True))


@pytest.mark.parametrize(
    ("given", "criterion", "penalty"),
    [
        ({"method": "hbfp", "penalty": "none"}, "history", "none"),
        ({"method": "hbfp", "penalty": "exp"}, "history", "exp"),
        ({"method": "hbfp", "criterion": "l1"}, "l1", "none"),
        ({"method": "l1", "criterion": "history"}, "history", "none"),
        ({"method": "l1", "criterion": "history", "penalty": "tie"}, "history", "tie"),
        ({"method": "random", "penalty": "none"}, "random", "none"),
        ({"method": "cfp"}, "cfp", "correlation"),
        ({"method": "cfp", "criterion": "l1"}, "l1", "none"),
        ({"method": "bn"}, "bn", "scales"),
        ({"method": "bn", "penalty": "none"}, "bn", "none"),
        ({"method": "taylor", "penalty": "scales"}, "taylor", "scales"),
    ],
)
def test_parts_override_their_method(given: dict[str, str], criterion: str, penalty: str) -> None:
    settings = resolve(PruneSettings(**given))
    assert (settings.criterion, settings.penalty) == (criterion, penalty)


def test_the_rest_of_the_settings_stays() -> None:
    settings = PruneSettings(method="l1", macs=0.25, amount="3", lr=0.1)
    resolved = resolve(settings)
    assert (resolved.macs, resolved.amount, resolved.lr, resolved.method) == (0.25, "3", 0.1, "l1")


@pytest.mark.parametrize(
    ("idle", "used"),
    [
        ({"draws": 4}, {"draws": 4, "final": "fresh"}),
        ({"epsilon": 0.1, "stop": "accuracy"}, {"epsilon": 0.1, "stop": "flow"}),
        ({"window": 3, "method": "l1"}, {"window": 3}),
        ({"history": ("a.pt",), "criterion": "random-pairs"}, {"history": ("a.pt",)}),
        ({"final_lr": 0.1, "final_epochs": 0}, {"final_lr": 0.1}),
        ({"stop": "plateau", "epochs": 0}, {"stop": "plateau"}),
    ],
)
def test_a_setting_that_nothing_reads_is_named(idle: dict[str, Any], used: dict[str, Any]) -> None:
    (sentence,) = without_effect(resolve(PruneSettings(**idle)))
    assert sentence.startswith(f"--{next(iter(idle)).replace('_', '-')} has no effect")
    assert without_effect(resolve(PruneSettings(**used))) == []


@pytest.mark.parametrize("method", ["l1", "random"])
def test_a_penalty_without_pairs_is_a_contradiction(method: str) -> None:
    with pytest.raises(SettingsError, match="pairs") as caught:
        resolve(PruneSettings(method=method, penalty="tie"))
    assert "--criterion history" in caught.value.hint


@pytest.mark.parametrize(
    ("given", "nearest"),
    [({"method": "hbpf"}, "hbfp"), ({"method": "InCoP-IF"}, "'incop-if'"), ({"criterion": "histroy"}, "history")],
)
def test_an_unknown_name_suggests_the_nearest(given: dict[str, str], nearest: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve(PruneSettings(**given))
    assert nearest in caught.value.hint


def test_the_penalties_that_may_be_named_are_the_penalties_there_are() -> None:
    assert {*losses.PENALTIES, "weights", "scales", "none"} == set(PENALTIES)


def test_listing_the_methods_loads_no_torch() -> None:
    code = "import sys; from slimcli.pruning.methods import METHODS; assert METHODS; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_the_names_that_are_listed_are_those_that_exist() -> None:
    assert set(CRITERIA_NAMES) == set(CRITERIA)
