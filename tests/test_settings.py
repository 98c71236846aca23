"""Settings: what a recipe says is what runs, and nonsense is refused with the flag's name."""

from __future__ import annotations

import math
import tomllib
from dataclasses import fields
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from slimcli.errors import SettingsError
from slimcli.settings import (
    DISTANCES,
    NORMS,
    PENALTIES,
    SCHEDULES,
    DataSettings,
    FitSettings,
    PruneSettings,
    TrainSettings,
    milliseconds,
)

FRACTION = st.floats(0.01, 0.5)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "data": st.text(min_size=1, max_size=20),
    "holdout": FRACTION,
    "train_samples": st.integers(1, 10**6),
    "augment": st.sampled_from(["auto", "none", "shift:2,flip"]),
    "batch_size": st.integers(1, 4096),
    "lr": st.floats(1e-9, 10),
    "momentum": st.floats(0, 1),
    "weight_decay": st.floats(0, 1),
    "label_smoothing": FRACTION,
    "schedule": st.sampled_from(SCHEDULES),
    "seed": st.integers(0, 2**31),
    "epochs": st.integers(1, 500),
    "norm": st.sampled_from(NORMS),
}
PRUNING: dict[str, st.SearchStrategy[Any]] = {
    "model": st.text(max_size=20),
    "method": st.sampled_from(["hbfp", "l1"]),
    "history": st.lists(st.text(min_size=1, max_size=9), min_size=1, max_size=3).map(tuple),
    "trust_pickle": st.booleans(),
    "macs": st.floats(0.01, 1),
    "widths": st.lists(st.integers(1, 99), min_size=1, max_size=4).map(tuple),
    "iterations": st.integers(1, 40),
    "max_drop": st.floats(0, 100),
    "penalty": st.sampled_from(PENALTIES),
    "lambda_": st.floats(0, 5),
    "distance": st.sampled_from(DISTANCES),
    "window": st.integers(1, 50),
    "linear": st.booleans(),
    "tie_epochs": st.integers(0, 9),
}


@given(st.fixed_dictionaries({}, optional=VALUES | PRUNING))
def test_a_recipe_gives_the_settings_back(values: dict[str, Any]) -> None:
    settings = PruneSettings(**values)
    text = tomli_w.dumps({"prune": settings.to_recipe()})
    assert PruneSettings.from_recipe(tomllib.loads(text)["prune"]) == settings


@given(st.fixed_dictionaries({"arch": st.just("lenet5")}, optional=VALUES), st.integers(1, 4))
def test_a_training_recipe_gives_the_settings_back(values: dict[str, Any], channels: int) -> None:
    settings = TrainSettings(**values, mean=(0.25,) * channels, std=(0.5,) * channels)
    assert TrainSettings.from_recipe(tomllib.loads(tomli_w.dumps(settings.to_recipe()))) == settings


def test_a_recipes_keys_are_the_flags() -> None:
    recipe = PruneSettings(lambda_=0.8).to_recipe()
    assert recipe["lambda"] == 0.8
    assert not any(key.endswith("_") for key in recipe)
    assert PruneSettings.from_recipe({"lambda": 0.8}).lambda_ == 0.8
    assert (PruneSettings.table(), TrainSettings.table()) == ("prune", "train")


def test_what_is_not_said_has_its_default() -> None:
    assert PruneSettings.from_recipe({}) == PruneSettings()
    assert TrainSettings.from_recipe({"arch": "lenet5"}) == TrainSettings(arch="lenet5")


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        PruneSettings().lr = 1.0


@pytest.mark.parametrize(
    ("key", "nearest"), [("epoch", "epochs"), ("lambda_", "lambda"), ("max-drop", "max_drop"), ("learning", "")]
)
def test_an_unknown_key_suggests_the_nearest(key: str, nearest: str) -> None:
    with pytest.raises(SettingsError, match=key) as caught:
        PruneSettings.from_recipe({key: 1})
    assert nearest in caught.value.hint
    assert "[prune]" in caught.value.message


def test_a_missing_key_is_named() -> None:
    with pytest.raises(SettingsError, match="arch"):
        TrainSettings.from_recipe({"epochs": 3})


OUT_OF_RANGE: list[tuple[type[Any], dict[str, Any], str]] = [
    (DataSettings, {"holdout": 0.0}, "--holdout"),
    (DataSettings, {"holdout": 0.51}, "--holdout"),
    (DataSettings, {"holdout": math.nan}, "--holdout"),
    (DataSettings, {"mean": (0.5,)}, "--std"),
    (DataSettings, {"std": (0.5,)}, "--mean"),
    (DataSettings, {"mean": (0.5,), "std": (0.0,)}, "--std"),
    (DataSettings, {"mean": (0.5,), "std": (-1.0,)}, "--std"),
    (DataSettings, {"mean": (0.5,), "std": (math.nan,)}, "--std"),
    (DataSettings, {"mean": (0.5,), "std": (math.inf,)}, "--std"),
    (DataSettings, {"mean": (math.nan,), "std": (0.5,)}, "--mean"),
    (DataSettings, {"train_samples": 0}, "--train-samples"),
    (FitSettings, {"batch_size": 0}, "--batch-size"),
    (FitSettings, {"lr": 0.0}, "--lr"),
    (FitSettings, {"lr": -0.1}, "--lr"),
    (FitSettings, {"lr": math.inf}, "--lr"),
    (FitSettings, {"lr": math.nan}, "--lr"),
    (FitSettings, {"momentum": 1.1}, "--momentum"),
    (FitSettings, {"weight_decay": -1.0}, "--weight-decay"),
    (FitSettings, {"weight_decay": math.inf}, "--weight-decay"),
    (FitSettings, {"label_smoothing": 1.5}, "--label-smoothing"),
    (FitSettings, {"schedule": "step"}, "--schedule"),
    (FitSettings, {"device": "tpu"}, "--device"),
    (FitSettings, {"seed": -1}, "--seed"),
    (FitSettings, {"seed": 2**64}, "--seed"),
    (TrainSettings, {"arch": "lenet5", "epochs": 0}, "--epochs"),
    (TrainSettings, {"arch": "lenet5", "norm": "l3"}, "--norm"),
    (TrainSettings, {"arch": "lenet5", "holdout": 2.0}, "--holdout"),
    (TrainSettings, {"arch": "lenet5", "lr": 0.0}, "--lr"),
    (PruneSettings, {"macs": 0.0}, "--macs"),
    (PruneSettings, {"macs": 1.5}, "--macs"),
    (PruneSettings, {"macs": math.nan}, "--macs"),
    (PruneSettings, {"params": -0.1}, "--params"),
    (PruneSettings, {"widths": (4, 0)}, "--widths"),
    (PruneSettings, {"round_to": "automatic"}, "--round-to"),
    (PruneSettings, {"round_to": (8, 0)}, "--round-to"),
    (PruneSettings, {"round_to": 0}, "--round-to"),
    (PruneSettings, {"round_to": ()}, "--round-to"),
    (PruneSettings, {"iterations": -1}, "--iterations"),
    (PruneSettings, {"window": 0}, "--window"),
    (PruneSettings, {"max_drop": -1.0}, "--max-drop"),
    (PruneSettings, {"max_drop": 20_000.0}, "--max-drop"),
    (PruneSettings, {"lambda_": -1.0}, "--lambda"),
    (PruneSettings, {"lambda_": math.inf}, "--lambda"),
    (PruneSettings, {"norm": "cosine"}, "--norm"),
    (PruneSettings, {"distance": "l3"}, "--distance"),
    (PruneSettings, {"stop": "never"}, "--stop"),
    (PruneSettings, {"granularity": "bit"}, "--granularity"),
    (PruneSettings, {"penalty": "ties"}, "--penalty"),
    (PruneSettings, {"epochs": -1}, "--epochs"),
    (PruneSettings, {"final_epochs": -1}, "--final-epochs"),
    (PruneSettings, {"tie_epochs": -1}, "--tie-epochs"),
    (PruneSettings, {"observe_epochs": -1}, "--observe-epochs"),
]


@pytest.mark.parametrize(("kind", "values", "flag"), OUT_OF_RANGE, ids=[f"{k.__name__}-{v}" for k, v, _ in OUT_OF_RANGE])
def test_what_is_out_of_range_names_its_flag(kind: type[Any], values: dict[str, Any], flag: str) -> None:
    with pytest.raises(SettingsError, match=flag) as caught:
        kind(**values)
    assert caught.value.hint


WRONG_TYPES: list[dict[str, Any]] = [
    {"epochs": "ten"},
    {"epochs": 2.5},
    {"epochs": [3]},
    {"epochs": {}},
    {"epochs": True},
    {"epochs": math.nan},
    {"batch_size": "64"},
    {"lr": "fast"},
    {"lr": False},
    {"seed": 0.5},
    {"data": 5},
    {"mean": 0.5, "std": 0.5},
    {"mean": ["a"], "std": ["b"]},
    {"mean": [[0.5]], "std": [[0.5]]},
    {"widths": 5},
    {"widths": ["2"]},
    {"widths": [1.5]},
    {"history": "epoch.pt"},
    {"history": [1]},
    {"linear": "no"},
    {"linear": 1},
    {"amount": 10},
    {"macs": "0.5"},
    {"norm": ["l1"]},
    {"model": 1},
]


@pytest.mark.parametrize("table", WRONG_TYPES, ids=str)
def test_a_recipes_value_of_another_type_is_refused_by_its_key(table: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=next(iter(table)).replace("_", "[-_]")) as caught:
        PruneSettings.from_recipe(table)
    assert caught.value.hint


@pytest.mark.parametrize("table", [{"lr": 1}, {"holdout": 0.25, "lambda": 1}, {"mean": [0, 1], "std": [1, 1]}, {"max_drop": 2}])
def test_whole_numbers_are_numbers(table: dict[str, Any]) -> None:
    assert PruneSettings.from_recipe(table)


@pytest.mark.parametrize(
    ("text", "limit"),
    [("2ms", 2), ("800us", 0.8), ("0.1s", 100), ("1.5 ms", 1.5), ("0.5", 2), (0.5, 2), ("50%", 2), (1, 4), (".25", 1)],
    ids=str,
)
def test_a_latency_is_a_time_or_a_share(text: str | float, limit: float) -> None:
    assert milliseconds(text, dense=4.0) == pytest.approx(limit)


@pytest.mark.parametrize(
    "text", ["0", "0ms", "1.5", "101%", "-1ms", "ms", "2 minutes", "1.2.3ms", "nan", "inf", "inf ms", "", True]
)
def test_what_is_neither_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="neither a time nor a share"):
        PruneSettings(latency=text)


@pytest.mark.parametrize(("given", "multiples"), [(8, (8,)), ([4, 8], (4, 8)), ("auto", ()), (None, ())], ids=str)
def test_multiples_are_one_number_or_several(given: Any, multiples: tuple[int, ...]) -> None:
    table = {"model": "a.pt"} | ({} if given is None else {"round_to": given})
    assert PruneSettings.from_recipe(table).multiples == multiples


def test_every_setting_can_be_written_into_a_recipe() -> None:
    full = {
        "mean": (0.5,),
        "std": (0.5,),
        "macs": 0.5,
        "params": 0.5,
        "latency": "2ms",
        "widths": (2,),
        "iterations": 1,
        "window": 3,
        "holdout": 0.1,
        "merge": False,
        "final": "auto",
        "final_lr": 0.1,
        "distill": True,
        "teacher": "f",
        "draws": 2,
        "round_to": (8,),
        "amount": "pq",
        "rewind": True,
        "stop": "if",
        "epsilon": 0.1,
        "flow_samples": 64,
        "tie_epochs": 1,
        "epochs": 2,
        "leave_out": ("layer1.1",),
        "include": ("conv*",),
        "exclude": ("conv1",),
    }
    names = {"data": "a", "data_root": "b", "val_data": "c", "arch": "d", "history": ("e",), "criterion": "l1", "penalty": "none"}
    recipe = PruneSettings(**full, **names, train_samples=5, workers=2, classes=9).to_recipe()
    assert recipe.keys() == {field.name.rstrip("_") for field in fields(PruneSettings)}
    tomli_w.dumps(recipe)
