"""What a recipe means: steps that start from others, seeds, and controls that match what they are compared with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from slimcli.errors import FellShortError, SettingsError, SlimError
from slimcli.pipeline.child import Child
from slimcli.pipeline.recipe import resume_recipe, run_recipe
from slimcli.pipeline.steps import read
from slimcli.report.compare import compare, gather
from slimcli.report.courses import _course
from slimcli.report.series import series_of
from slimcli.rundir import RunDir
from slimcli.training.engine import Engine
from tests.said import Said

TRAIN = {"arch": "lenet5", "epochs": 2, "train_samples": 200}
PRUNE: dict[str, Any] = {
    "train_samples": 200,
    "amount": "50%",
    "tie_epochs": 1,
    "epochs": 1,
    "final_epochs": 1,
    "max_drop": 100.0,
    "deploy": False,
    "distill": False,
}
CONTENT: dict[str, Any] = {
    "seeds": [3, 5],
    "card": {"file": "card.md"},
    "train": [
        {"name": "dense", **TRAIN},
        {"name": "scratch", "like": "II", "match": "epochs", **TRAIN},
        {"name": "as much compute", "like": "II", "match": "compute", "at_most": 4, "seeds": [5], **TRAIN},
    ],
    "prune": [
        {"name": "I", "from": "dense", "iterations": 1, "reference": "1.0", **PRUNE},
        {"name": "II", "widths": [5, 13], **PRUNE},
        {"name": "other", "from": "dense", "method": "random", "hidden": True, "iterations": 1, **PRUNE},
        {"name": "taught", "from": "II", "iterations": 0, "teacher": "dense", **PRUNE, "distill": True},
    ],
}


def write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(tomli_w.dumps(content))
    return path


def test_steps_start_where_they_say(tmp_path: Path) -> None:
    recipe = read(write(tmp_path / "r.toml", CONTENT))
    assert [step.folder for step in recipe.plain] == ["train", "prune-1", "prune-2", "prune-3", "prune-4", "train-2", "train-3"]
    by_name = {step.label: step for step in recipe.plain}
    assert (by_name["I"].start, by_name["II"].start, by_name["other"].start) == ("train", "prune-1", "train")
    assert (by_name["taught"].start, by_name["taught"].teacher) == ("prune-2", "train")
    assert by_name["scratch"].like == "prune-2"
    repeated = recipe.steps
    assert [step.settings.seed for step in repeated] == [3] * 6 + [5] * 7  # one step is for the seed 5 alone
    assert [step.label for step in repeated[6:]] == ["dense", "I", "II", "scratch", "as much compute", "other", "taught"]
    assert {step.start for step in repeated if step.label == "II"} == {"seed-3-prune-1", "seed-5-prune-1"}


def test_what_is_written_down_means_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = read(write(tmp_path / "r.toml", CONTENT))
    (tmp_path / "elsewhere").mkdir()
    again = read(write(tmp_path / "elsewhere" / "recipe.toml", recipe.to_toml()))
    assert [(s.folder, s.start, s.like, s.teacher, s.label) for s in again.steps] == [
        (s.folder, s.start, s.like, s.teacher, s.label) for s in recipe.steps
    ]
    assert [s.settings for s in again.steps] == [s.settings for s in recipe.steps]
    monkeypatch.chdir(tmp_path)
    one = read(tmp_path / "r.toml", seeds=[9])
    assert {step.seed for step in one.steps} == {9}


def test_a_control_comes_after_a_pruning_that_begins_with_a_checkpoint(tmp_path: Path) -> None:
    content = {"train": {"like": "I", "match": "epochs", **TRAIN}, "prune": {"name": "I", "model": "x.pt", **PRUNE}}
    assert [step.folder for step in read(write(tmp_path / "r.toml", content)).steps] == ["prune-1", "train"]


def test_some_steps_bring_those_that_they_need(tmp_path: Path) -> None:
    recipe = read(write(tmp_path / "r.toml", CONTENT))
    needed = {
        ("I",): ["dense", "I"],
        ("other",): ["dense", "other"],
        ("II",): ["dense", "I", "II"],
        ("taught", "other"): ["dense", "I", "II", "other", "taught"],
        ("scratch",): ["dense", "I", "II", "scratch"],
        ("as much compute",): ["dense", "I", "II", "as much compute"],
        ("*",): [step.label for step in recipe.plain],
        ("[Io]*",): ["dense", "I", "II", "other"],
    }
    for names, labels in needed.items():
        some = recipe.only(names)
        assert [step.label for step in some.plain] == labels
        again = read(write(tmp_path / "some.toml", some.to_toml()))  # as a run that goes on reads it
        assert [(step.folder, step.start, step.like, step.teacher) for step in again.steps] == [
            (step.folder, step.start, step.like, step.teacher) for step in some.steps
        ]
    named = {**CONTENT, "prune": [{**CONTENT["prune"][0], "name": "pq [0.5, 1]"}], "train": CONTENT["train"][:1]}
    assert len(read(write(tmp_path / "named.toml", named)).only(["pq [0.5, 1]"]).plain) == 2
    lone = {"seeds": [3, 5], "train": [TRAIN, {"name": "once", "seeds": [5], **TRAIN}]}
    some = read(write(tmp_path / "lone.toml", lone), [3])
    with pytest.raises(SettingsError, match="no step is for the seeds"):
        some.only(["once"])
    with pytest.raises(SettingsError, match="no step 'III'") as caught:
        recipe.only(["I", "III"])
    assert "'II'" in caught.value.hint


def test_the_card_of_some_steps_leaves_that_of_the_recipe_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "r.toml", CONTENT)
    result = run_recipe(path, tmp_path / "run", seeds=[3], only=["other"])
    assert result is not None
    assert [step["label"] for step in result.steps] == ["dense", "other"]
    assert result.card == tmp_path / "run/card.md"
    assert not (tmp_path / "card.md").exists()
    again = resume_recipe(tmp_path / "run")
    assert again is not None
    assert [step["step"] for step in again.steps] == [step["step"] for step in result.steps]


def test_what_every_step_says_is_said_once(tmp_path: Path) -> None:
    own = {"train": {"train_samples", "epochs"}, "prune": set(PRUNE) - {"distill"}}
    content = CONTENT | {"every": {"train": {"train_samples": 200, "epochs": 9}, "prune": PRUNE}}
    for kind in own:
        content[kind] = [{key: value for key, value in table.items() if key not in own[kind]} for table in CONTENT[kind]]
    content["train"][0]["epochs"] = 2  # what a step says itself counts
    once, repeated = (read(write(tmp_path / f"{name}.toml", tables)) for name, tables in (("once", content), ("r", CONTENT)))
    assert [step.settings for step in once.steps if step.like == ""] == [
        step.settings for step in repeated.steps if step.like == ""
    ]
    assert {step.settings.epochs for step in once.steps if step.like} == {9}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"seeds": [1, 1]}, "seeds"),
        ({"every": [PRUNE]}, "every"),
        ({"every": {"prune": 3}}, "every"),
        ({"every": {"prone": PRUNE}}, "every"),
        ({"every": {"prune": {"iteration": 3}}}, "iteration"),
        ({"seeds": ["a"]}, "seeds"),
        ({"seeds": 3}, "seeds"),
        ({"prune": [{"from": "danse", **PRUNE}]}, "danse"),
        ({"prune": [{"from": "II", **PRUNE}, {"name": "II", **PRUNE}]}, "before it"),
        ({"train": [{"name": "dense", **TRAIN}, {"match": "epochs", **TRAIN}]}, "to be matched"),
        ({"train": [{"name": "dense", **TRAIN}, {"match": "steps", "like": "I", **TRAIN}]}, "steps"),
        ({"prune": [{"name": "I", "teacher": "dense", "distill": False, **PRUNE}]}, "--distill"),
        ({"prune": [{"name": "I", "teacher": "danse", **PRUNE, "distill": True}]}, "danse"),
        ({"prune": [{"name": "I", **PRUNE}, {"name": "I", **PRUNE}]}, "two steps"),
        ({"prune": [{"from": 3, **PRUNE}]}, "from"),
        ({"prune": [{"name": "I", "from": "dense", "model": "x.pt", **PRUNE}]}, "a model and a from"),
        ({"prune": [{"name": "I", "like": "dense", **PRUNE}]}, "like"),
        ({"prune": [{"name": "I", "match": "epochs", **PRUNE}]}, "match"),
        ({"prune": [{"name": "I", "seeds": [3], **PRUNE}, {"name": "II", "from": "I", **PRUNE}]}, "seeds"),
        ({"train": [{"name": "dense", **TRAIN}, {"like": "I", "match": "epochs", "at_most": 0, **TRAIN}]}, "at_most"),
        ({"train": [{"name": "dense", "like": 5, **TRAIN}]}, "like"),
        ({"train": [{"name": "dense", "like": "I", **TRAIN}]}, "no step before it"),
    ],
    ids=str,
)
def test_a_recipe_that_contradicts_itself_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    content = {key: value for key, value in (CONTENT | change).items() if key != "card"}
    with pytest.raises(SettingsError, match=words) as caught:
        run_recipe(write(tmp_path / "r.toml", content), tmp_path / "out")
    assert caught.value.hint
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    assert run_recipe(write(folder / "r.toml", CONTENT), folder / "out") is not None
    return folder


def metrics(folder: Path, step: str) -> dict[str, Any]:
    return dict(json.loads((folder / "out" / step / "metrics.json").read_text()))


def test_a_control_has_the_shape_and_the_epochs_of_what_it_is_like(whole: Path) -> None:
    for seed in (3, 5):
        slim, scratch = metrics(whole, f"seed-{seed}-prune-2"), metrics(whole, f"seed-{seed}-train-2")
        assert scratch["dense"]["params"] == slim["slim"]["params"]
        led_to_it = sum(metrics(whole, f"seed-{seed}-{step}")["epochs"] for step in ("train", "prune-1", "prune-2"))
        assert scratch["epochs"] == led_to_it == 2 + 3 + 3
    assert not (whole / "out" / "seed-3-train-3").exists()
    assert metrics(whole, "seed-5-train-3")["epochs"] == 4  # far more would have cost as much


def test_compute_is_what_training_multiplied(whole: Path) -> None:
    dense, slim = metrics(whole, "seed-3-train"), metrics(whole, "seed-3-prune-1")
    samples = 200
    assert dense["training_macs"] == 2 * samples * 3 * dense["dense"]["macs"]
    assert slim["training_macs"] == samples * 3 * (slim["dense"]["macs"] + 2 * slim["slim"]["macs"])
    taught = metrics(whole, "seed-3-prune-4")
    assert taught["training_macs"] == samples * (3 * taught["slim"]["macs"] + dense["dense"]["macs"])


def test_compute_can_match_a_network_that_was_only_trained(tmp_path: Path) -> None:
    trains = [
        {"name": "dense", **TRAIN, "epochs": 1},
        {"name": "again", "like": "dense", "match": "compute", **TRAIN},
    ]
    result = run_recipe(write(tmp_path / "r.toml", {"train": trains}), tmp_path / "out")
    assert result is not None
    assert [step["metrics"]["epochs"] for step in result.steps] == [1, 1]


def test_the_card_of_other_seeds_leaves_that_of_the_recipe_alone(tmp_path: Path) -> None:
    path = write(tmp_path / "r.toml", {"seeds": [1, 2], "card": {"file": "card.md"}, "train": {**TRAIN, "epochs": 1}})
    result = run_recipe(path, tmp_path / "out", seeds=[3])
    assert result is not None
    assert result.card == tmp_path / "out" / "card.md"
    again = resume_recipe(tmp_path / "out")
    assert again is not None
    assert again.card == result.card
    assert not (tmp_path / "card.md").exists()
    card = result.card.read_bytes()
    repeated = run_recipe(tmp_path / "out/recipe.toml", tmp_path / "third")
    assert repeated is not None
    assert repeated.card == tmp_path / "third/card.md"
    assert result.card.read_bytes() == card


def test_the_card_has_one_row_a_step_with_means_over_the_seeds(whole: Path) -> None:
    card = (whole / "card.md").read_text()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in card.splitlines() if line.startswith("| ")]
    assert rows == ["network", "---", "dense", "I", "II", "scratch", "taught", "as much compute"]
    errors = [100 - metrics(whole, f"seed-{seed}-prune-1")["slim"]["top1"] for seed in (3, 5)]
    assert f"| {sum(errors) / 2:.2f} ± " in next(line for line in card.splitlines() if line.startswith("| I |"))
    assert "over the seeds 3, 5" in card


def test_steps_of_a_recipe_are_compared_by_their_names(whole: Path, tmp_path: Path) -> None:
    runs = [RunDir(whole / "out" / f"seed-{seed}-prune-2") for seed in (3, 5)]
    page = compare(gather([*runs, RunDir(whole / "out" / "seed-5-prune-3")]), tmp_path / "page.html").read_text()
    assert all(name in page for name in ("II, seed 3", "II, seed 5", "other, seed 5"))
    assert "How the runs got there" in page


def test_the_folder_of_a_recipe_stands_for_the_runs_that_its_card_shows(whole: Path) -> None:
    results = gather([RunDir(whole / "out")])
    shown = {f"{name}, seed {seed}" for name in ("I", "II", "taught") for seed in (3, 5)}
    assert {result.name for result in results} == shown
    assert {result.series for result in results} == {"I", "II", "taught"}
    minutes = {event["step"]: event["seconds"] for event in RunDir(whole / "out").read_journal() if event["event"] == "step"}
    assert all(result.seconds == minutes[Path(result.path).name] for result in results)
    assert gather([RunDir(whole / "out"), RunDir(whole / "out" / "seed-3-prune-1")]) == results
    means = {
        name: [len(values) for values in _course(series, "score", 1).values()] for name, series in series_of(results).items()
    }
    assert all(number == 2 for numbers in means.values() for number in numbers), "a curve is the mean of both seeds"


def test_a_repeated_recipe_goes_on(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, calls = Engine.fit, 0

    def stopping(self: Engine, *arguments: Any, **named: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 19:
            raise KeyboardInterrupt
        fit(self, *arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "fit", stopping)
        with pytest.raises(KeyboardInterrupt):
            run_recipe(write(tmp_path / "r.toml", CONTENT), tmp_path / "out")
    finished = [event["step"] for event in RunDir(tmp_path / "out").read_journal() if event["event"] == "step"]
    assert 6 < len(finished) < 13
    result = resume_recipe(tmp_path / "out")
    assert result is not None
    assert len(result.steps) == 13
    for step in ("seed-5-prune-2", "seed-5-train-2", "seed-5-train-3"):
        side = "slim" if "prune" in step else "dense"
        assert metrics(tmp_path, step)[side] == metrics(whole, step)[side]


ONE_SEED = CONTENT | {"seeds": [5]}


def test_side_by_side_is_one_after_the_other(tmp_path: Path, whole: Path) -> None:
    result = run_recipe(write(tmp_path / "r.toml", ONE_SEED), tmp_path / "out", jobs=2)
    assert result is not None
    assert [step["step"] for step in result.steps] == [step.folder for step in read(tmp_path / "r.toml").steps]
    for step in result.steps:
        side = "slim" if "prune" in step["step"] else "dense"
        assert step["metrics"][side] == metrics(whole, step["step"])[side]
        assert step["metrics"]["epochs"] == metrics(whole, step["step"])["epochs"]
    events = [(event["event"], event["step"]) for event in RunDir(tmp_path / "out").read_journal()]
    order = {event: at for at, event in enumerate(events)}
    for step in read(tmp_path / "r.toml").steps:
        for other in filter(None, (step.start, step.like, step.teacher)):
            assert order["step", other] < order["begun", step.folder]
    assert order["begun", "seed-5-prune-3"] < order["step", "seed-5-prune-1"]  # they do not wait for each other
    assert "up to 2 steps at a time" in (tmp_path / "card.md").read_text()


def test_a_step_that_fails_beside_others_is_named_and_gone_on_with(tmp_path: Path) -> None:
    content = {key: value for key, value in ONE_SEED.items() if key != "card"}
    content["prune"] = [{"name": "lost", **PRUNE, "data_root": str(tmp_path / "nowhere"), "data": "mnist"}]
    content["train"] = [{"name": "dense", **TRAIN}]
    with pytest.raises(SlimError, match=r"lost \(seed-5-prune-1\)") as caught:
        run_recipe(write(tmp_path / "r.toml", content), tmp_path / "out", jobs=2)
    assert caught.value.exit_code == 2
    finished = [event["step"] for event in RunDir(tmp_path / "out").read_journal() if event["event"] == "step"]
    assert finished == ["seed-5-train"]


def test_a_process_of_a_step_that_is_killed_is_told_and_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = {"seeds": [5], "train": {"name": "dense", **TRAIN, "epochs": 30}, "prune": {"name": "I", "iterations": 1, **PRUNE}}
    path = write(tmp_path / "r.toml", content)

    def kill_when_it_has_a_state(child: Child) -> bool:
        if (tmp_path / "out" / "seed-5-train" / "state" / "last.pt").exists() and child.step.label == "dense":
            child._process.kill()
        return child._process.poll() is None

    with monkeypatch.context() as patch:
        patch.setattr(Child, "running", kill_when_it_has_a_state)
        with pytest.raises(FellShortError, match=r"dense.*ended with -9"):
            run_recipe(path, tmp_path / "out", jobs=2)
    result = resume_recipe(tmp_path / "out", jobs=2)
    assert result is not None
    assert [step["metrics"]["epochs"] for step in result.steps] == [30, 3]
    epochs = [event for event in RunDir(tmp_path / "out" / "seed-5-train").read_journal() if event["event"] == "epoch"]
    assert len(epochs) >= 30
    assert result.steps[0]["seconds"] > sum(event["seconds"] for event in epochs)  # those before it was killed too


def test_steps_side_by_side_end_with_the_command_that_is_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said, children = Said(), []

    def interrupted(child: Child) -> bool:
        children.append(child)
        raise KeyboardInterrupt

    monkeypatch.setattr(Child, "running", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(write(tmp_path / "r.toml", ONE_SEED), tmp_path / "out", said, jobs=2)
    assert said.lines[-1] == f"to go on: slim run --resume {tmp_path / 'out'} --jobs 2"
    assert children[0]._process.poll() is not None


def test_jobs_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--jobs 0"):
        run_recipe(write(tmp_path / "r.toml", ONE_SEED), tmp_path / "out", jobs=0)
