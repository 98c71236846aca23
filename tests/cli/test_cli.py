"""The commands as a user meets them: what they print, what they leave, how they refuse."""

from __future__ import annotations

import dataclasses
import inspect
import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from slimcli.cli import prune, train
from slimcli.cli.main import main
from slimcli.networks import checkpoint
from slimcli.settings import PruneSettings, TrainSettings

Slim = Callable[..., tuple[int, str, str]]


@pytest.fixture
def slim(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slim:
    """Run `slim` in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLIM_DATA", raising=False)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


def refused(result: tuple[int, str, str], *words: str) -> None:
    """Exit code 2, one sentence on stderr that has these words, nothing on stdout."""
    code, out, err = result
    assert code == 2
    assert not out
    assert "Traceback" not in err
    assert len(err.strip().splitlines()) == 1
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    "command", ["train", "prune", "export", "bench", "report", "compare", "eval", "inspect", "doctor", "list", "run", "watch"]
)
def test_every_command_has_help(slim: Slim, command: str) -> None:
    code, out, _ = slim(command, "--help")
    assert code == 0
    assert "Usage" in out


def test_help_and_list_import_nothing_heavy() -> None:
    heavy = {"torch", "numpy", "onnxruntime", "matplotlib"}
    for arguments in (["--help"], ["list", "methods"], ["list", "data"], ["list", "archs"]):
        code = (
            "import sys\nfrom slimcli.cli.main import main\n"
            f"try: main({arguments!r})\nfinally: print(*sys.modules, file=sys.stderr)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0
        assert not heavy & set(done.stderr.split())


def test_list_names_what_the_other_commands_take(slim: Slim) -> None:
    for what, name in (("methods", "hbfp"), ("archs", "resnet56-cifar"), ("data", "digits"), ("providers", "cpu")):
        code, out, _ = slim("list", what)
        assert code == 0
        assert name in out
        assert json.loads(slim("list", what, "--json")[1])[what]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("prune", "nowhere.pt"), ("nowhere.pt", "no file")),
        (("prune",), ("MODEL", "--resume")),
        (("train",), ("ARCH", "--resume")),
        (("run",), ("RECIPE", "--resume")),
        (("prune", "--resume", "nowhere"), ("nowhere", "no run")),
        (("train", "--resume", "nowhere"), ("nowhere", "no run")),
        (("run", "--resume", "nowhere"), ("nowhere", "no run")),
        (("run", "--resume", "nowhere", "-o", "x"), ("--resume", "-o")),
        (("train", "lenet5", "--precision", "16"), ("--precision", "bf16")),
        (("train", "lenet5", "--devices", "0"), ("--devices", "at least 1")),
        (("prune", "model.pt", "--method", "hbpf"), ("hbpf", "'hbfp'")),
        (("prune", "model.pt", "--macs", "1.5"), ("--macs", "(0, 1]")),
        (("prune", "model.pt", "--params", "0"), ("--params", "(0, 1]")),
        (("prune", "model.pt", "--latency", "fast"), ("--latency fast", "2ms")),
        (("prune", "model.pt", "--latency", "0.5", "--round-to", "x"), ("--round-to 'x'", "commas")),
        (("prune", "model.pt", "--macs", "150%"), ("--macs 1.5", "(0, 1]")),
        (("prune", "model.pt", "--macs", "half"), ("--macs 'half'", "25%")),
        (("prune", "model.pt", "--widths", "4", "5"), ("(5)", "--widths 4,5")),
        (("eval", "model.pt", "other.pt"), ("(other.pt) (see `", "eval --help`)")),
        (("prune", "model.pt", "--amount", "ten"), ("--amount", "10%")),
        (("prune", "model.pt", "--amount", "60%"), ("--amount", "half")),
        (("prune", "model.pt", "--round-to", "8", "--widths", "8,16"), ("--widths", "--round-to")),
        (("prune", "model.pt", "--round-to", "8", "--macs", "0.05"), ("multiples of 8", "--round-to")),
        (("prune", "model.pt", "--widths", "4,5,6"), ("--widths", "2 prunable groups")),
        (("prune", "model.pt", "--method", "l1", "--penalty", "tie"), ("--penalty", "pairs")),
        (("prune", "model.pt", "--criterion", "tailor"), ("tailor", "'taylor'")),
        (("prune", "model.pt", "--norm", "l2"), ("history of l1",)),
        (("prune", "model.pt", "--data", "mnits"), ("mnits", "'mnist'")),
        (("prune", "model.pt", "--data", "mnist"), ("mnist", "--data-root")),
        (("prune", "model.pt", "--bogus"), ("--bogus",)),
        (("train", "lenet6"), ("lenet6", "'lenet5'")),
        (("train", "lenet5", "--data", "nothing"), ("nothing",)),
        (("train", "lenet5", "--lr", "-1"), ("--lr",)),
        (("train", "lenet5", "--mean", "0.5"), ("--mean", "--std")),
        (("train", "lenet5", "--mean", "x", "--std", "1"), ("--mean",)),
        (("eval", "model.pt", "--arch", "vgg16-cifar"), ("lenet5", "vgg16-cifar")),
        (("export", "model.pt"), ("--onnx",)),
        (("export", "model.pt", "--onnx", "--int8"), ("one format", "--int8")),
        (("export", "model.pt", "--run", "x", "--int8"), ("one of the two",)),
        (("export", "--run", "x", "--onnx"), ("--run", "--int8")),
        (("export", "--run", "x", "--int8", "--pixels"), ("--pixels", "--run")),
        (("export", "--run", "x", "--int8", "--data", "mnist"), ("--data", "--run")),
        (("export", "--run", "x", "--int8", "-o", "y"), ("--out", "--run")),
        (("export", "model.pt", "--fp16", "--max-drop", "1"), ("--max-drop", "--fp16")),
        (("export", "model.pt", "--pt2", "--opset", "19"), ("--opset", "--pt2")),
        (("export", "model.pt", "--onnx", "--tolerance", "-1"), ("--tolerance",)),
        (("export", "--run", "x", "--int8"), ("no run folder x",)),
        (("export", "model.pt", "--onnx", "--keep-float", "conv1"), ("--keep-float", "--int8")),
        (("export", "model.pt", "--int8", "--calibration", "percent"), ("'percent'", "'percentile'")),
        (("export", "model.pt", "--int8", "--calibration-images", "0"), ("--calibration-images", "equal to 1")),
        (("bench",), ("bench",)),
        (("report", "nowhere"), ("nowhere",)),
        (("run", "nowhere.toml"), ("nowhere.toml",)),
        (("inspect", "resnet57-cifar"), ("resnet57-cifar", "resnet56-cifar")),
        (("inspect", "lenet5", "--arch-arg", "width"), ("--arch-arg 'width'", "key=value")),
        (("inspect",), ("a checkpoint, or a network",)),
        (("inspect", "resnet20-cifar", "--input-shape", "28,28"), ("an image's channels first",)),
        (("prune", "model.pt", "--arch-arg", "width=3"), ("--arch-arg", "--arch")),
        (("prune", "model.pt", "--exclude", "convx"), ("--exclude 'convx'", "conv2")),
    ],
)
def test_bad_input_is_refused_in_one_sentence(
    slim: Slim, tmp_path: Path, tiny_checkpoint: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    (tmp_path / "model.pt").write_bytes(tiny_checkpoint.read_bytes())
    refused(slim(*arguments), *words)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "model.pt") == []


def test_int8_is_measured_beside_float(slim: Slim, tmp_path: Path, tiny_checkpoint: Path) -> None:
    code, out, err = slim("export", tiny_checkpoint, "--int8", "--json", "-o", "small.onnx", "--keep-float", "fc2")
    done = json.loads(out)
    assert code == 0, err
    assert done["file_bytes"] == (tmp_path / "small.onnx").stat().st_size < done["float"]["file_bytes"] / 3
    assert (done["kept_float"], done["noise"], done["shortfall"]) == (["fc2"], {}, "")
    for model, facts in ((tmp_path / "small.onnx", done), (tiny_checkpoint, done["float"])):
        measured = json.loads(slim("eval", model, "--json")[1])
        assert measured["top1"] == facts["top1"]
        assert measured["loss"] == pytest.approx(facts["loss"], rel=1e-4)
    assert "x smaller" in slim("export", tiny_checkpoint, "--int8", "-o", "again.onnx")[1]
    assert "--overwrite" in slim("export", tiny_checkpoint, "--int8", "-o", "again.onnx")[2]


def test_int8_that_loses_too_much_names_the_layers_that_hurt(slim: Slim, tmp_path: Path, tiny_checkpoint: Path) -> None:
    """One filter's maps are made 100,000 times larger, and what reads them makes them small again: in float nothing changes."""
    loaded = checkpoint.load(tiny_checkpoint)
    state = loaded.state_dict
    maps = state["fc1.weight"].shape[1] // len(state["conv2.weight"])
    state["conv2.weight"][0] *= 1e5
    state["conv2.bias"][0] = 1e5
    state["fc1.weight"][:, :maps] *= 1e-5
    checkpoint.save(tmp_path / "spoiled.pt", loaded)
    code, out, err = slim("export", "spoiled.pt", "--int8", "--json")
    done = json.loads(out)
    assert code == 1
    assert done["float"]["top1"] - done["top1"] > 1
    assert next(iter(done["noise"])) in ("conv2", "fc1")
    assert "more than the allowed 1 points" in err
    assert "--keep-float" in err
    assert (tmp_path / "spoiled.int8.onnx").exists()
    assert slim("export", "spoiled.pt", "--int8", "-o", "kept.onnx", "--keep-float", "conv2", "--keep-float", "fc1")[0] == 0


def test_preprocessing_and_softmax_go_into_the_file(slim: Slim, tiny_checkpoint: Path) -> None:
    code, out, err = slim(
        "export", tiny_checkpoint, "--onnx", "--pixels", "--probabilities", "-o", "pixels.onnx", "--opset", "19"
    )
    assert code == 0, err
    assert "opset 19" in out
    assert slim("export", tiny_checkpoint, "--int8", "--pixels", "-o", "pixels.int8.onnx")[0] == 0
    expected, found, small = (
        json.loads(slim("eval", model, "--json")[1]) for model in (tiny_checkpoint, "pixels.onnx", "pixels.int8.onnx")
    )
    assert found["top1"] == expected["top1"]
    assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
    assert abs(small["top1"] - expected["top1"]) < 1


def test_pixels_want_a_normalisation(slim: Slim, tmp_path: Path, tiny_checkpoint: Path) -> None:
    torch.save(checkpoint.load(tiny_checkpoint).state_dict, tmp_path / "weights.pt")
    arguments = ("export", "weights.pt", "--onnx", "--arch", "lenet5", "--pixels", "-o", "m.onnx")
    refused(slim(*arguments), "--pixels", "--mean")
    assert slim(*arguments, "--mean", "0.5", "--std", "0.5")[0] == 0


def test_other_formats_are_written_and_checked(slim: Slim, tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "model.pt").write_bytes(tiny_checkpoint.read_bytes())
    for flag, name in (("--fp16", "model.fp16.onnx"), ("--pt2", "model.pt2")):
        code, out, err = slim("export", "model.pt", flag, "--json")
        assert code == 0, err
        done = json.loads(out)
        assert done["path"] == name
        assert done["file_bytes"] == (tmp_path / name).stat().st_size
        assert done["images"] == "real"
    expected, half = (json.loads(slim("eval", model, "--json")[1])["top1"] for model in ("model.pt", "model.fp16.onnx"))
    assert abs(expected - half) < 0.5


def test_a_tolerance_of_zero_is_zero_and_a_normalisation_must_fit(slim: Slim, tmp_path: Path, tiny_checkpoint: Path) -> None:
    torch.save(checkpoint.load(tiny_checkpoint).state_dict, tmp_path / "weights.pt")
    code, _, err = slim("export", tiny_checkpoint, "--onnx", "--tolerance", "0", "-o", "m.onnx")
    assert code == 1
    assert "more than 0" in err
    refused(
        slim("export", "weights.pt", "--arch", "lenet5", "--onnx", "--mean", ".5,.5,.5", "--std", ".5,.5,.5", "-o", "m.onnx"),
        "--mean has 3",
        "1 channel",
    )
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]


def test_int8_wants_real_images(slim: Slim, tmp_path: Path, tiny_checkpoint: Path) -> None:
    torch.save(checkpoint.load(tiny_checkpoint).state_dict, tmp_path / "weights.pt")
    refused(slim("export", "weights.pt", "--int8", "--arch", "lenet5"), "real images", "--data")
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.pt"]


def test_a_budget_may_be_given_in_percent(slim: Slim, tiny_checkpoint: Path) -> None:
    as_fraction, as_percent = (
        json.loads(slim("prune", str(tiny_checkpoint), "--dry-run", "--json", "--macs", half)[1]) for half in ("0.5", "50%")
    )
    assert as_fraction == as_percent


def test_arguments_reach_the_network_and_stay_with_it(slim: Slim, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from torch import nn\ndef build(width=3):\n    return nn.Conv2d(1, width, 3)\n")
    for named in (["mine.py:build"], ["--arch", "mine.py:build"]):
        code, stdout, _ = slim("inspect", *named, "--arch-arg", "width=5", "--input-shape", "1,8,8", "--json")
        assert code == 0
        assert json.loads(stdout)["arch"] == "mine.py:build(width=5)"
        assert json.loads(stdout)["layers"][0]["filters"] == 5


def test_a_dry_run_shows_what_goes_what_stays_and_what_has_no_effect(slim: Slim, tiny_checkpoint: Path) -> None:
    code, out, _ = slim("prune", str(tiny_checkpoint), "--dry-run", "--draws", "4")
    assert code == 0
    for words in ("conv1, first iteration", "2 go", "fc2, left alone", "the network's output", "--draws has no effect"):
        assert words in out


def test_an_error_under_json_is_one_object(slim: Slim) -> None:
    code, out, _ = slim("prune", "nowhere.pt", "--json")
    assert code == 2
    assert set(json.loads(out)["error"]) == {"type", "message", "hint"}


def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "slimcli", "eval", "nowhere.pt", "--debug"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Traceback" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("slim: there is no file nowhere.pt")
    assert done.returncode == 2


def test_doctor_finds_this_environment_sound(slim: Slim) -> None:
    code, out, _ = slim("doctor", "--json")
    findings = json.loads(out)["findings"]
    assert code == 0, findings
    assert {"torch", "onnxruntime", "devices"} <= {finding["what"] for finding in findings}


@pytest.mark.parametrize(("signal_number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_real_run_cleanly(
    tiny_checkpoint: Path, tmp_path: Path, signal_number: signal.Signals, code: int
) -> None:
    arguments = ["prune", str(tiny_checkpoint), "-o", "run", "--epochs", "1", "--max-drop", "100"]
    # A test run in the background of a shell inherits an ignored SIGINT: give the command the one of a terminal.
    code_of_command = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from slimcli.cli.main import main\nmain({arguments!r})"
    )
    command = [sys.executable, "-c", code_of_command]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.startswith("iteration 1:"):
                process.send_signal(signal_number)
                break
        rest = process.stderr.read()
    assert process.returncode == code
    assert ("interrupted" if code == 130 else "terminated") in rest
    assert "slim prune --resume run" in rest
    assert "Traceback" not in rest
    torch.load(tmp_path / "run" / "state" / "last.pt", weights_only=True)
    assert not (tmp_path / "run" / "model.pt").exists()


@pytest.mark.parametrize(("command", "kind"), [(prune.prune, PruneSettings), (train.train, TrainSettings)])
def test_every_setting_is_a_flag_with_the_same_default(
    command: Callable[..., Any], kind: type[PruneSettings] | type[TrainSettings]
) -> None:
    flags = inspect.signature(command).parameters
    for setting in dataclasses.fields(kind):
        assert setting.name in flags
        if setting.name not in ("model", "arch"):
            default = flags[setting.name].default
            if setting.name == "pq":  # a list of numbers is typed as text
                default = tuple(float(number) for number in default.split(","))
            assert default == setting.default, setting.name


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--epsilon", "10%"], "--epsilon '10%' is no number"),
        (["--iterations=two"], "--iterations 'two' is no whole number"),
    ],
)
def test_what_is_no_number_is_said_as_it_was_typed(typed: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prune", "model.pt", *typed])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith(f"slim: {said} (see `")
