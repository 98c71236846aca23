"""`slim watch`: what it says of a run that goes on, has ended or has died; and that it leaves the run alone."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from slimcli.cli.main import main
from slimcli.errors import RunDirError
from slimcli.report.result import read
from slimcli.report.screen import BLOCKS, sparkline
from slimcli.report.standing import Watch, owner
from slimcli.rundir import RunDir

Slim = Callable[..., tuple[int, str, str]]

START = {"arch": "lenet5", "data": "digits", "method": "hbfp", "dense": {"top1": 99.0, "macs": 1000, "params": 100}}
STEP = {"index": 1, "macs": 800, "params": 90, "top1": 98.5, "seconds": 4.0, "kept": True}


@pytest.fixture
def slim(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slim:
    """Run `slim watch` in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as caught:
            main(["watch", *map(str, arguments)])
        captured = capsys.readouterr()
        return int(caught.value.code or 0), captured.out, captured.err

    return run


def epoch(run: RunDir, phase: str, index: int, epochs: int, loss: float = 0.5) -> None:
    run.append("epoch", phase=phase, index=index, epochs=epochs, loss=loss, top1=97.25, seconds=2.0)


def begun(path: Path, table: str = "prune") -> RunDir:
    """A run in its third epoch, left by its process."""
    with RunDir(path).create({table: {"arch": "lenet5"}}) as run:
        run.append("start", **START, time=time.time())
        epoch(run, "tie 1", 0, 1)
        run.append("iteration", **STEP)
        epoch(run, "retrain 2", 0, 3, 0.4)
        epoch(run, "retrain 2", 1, 3, 0.125)
    return run


def ended(run: RunDir) -> RunDir:
    run.append("end", reason="the budget is met", top1=98.0)
    run.append("finished", shortfall="")
    return run


def test_a_running_run_is_shown_with_all_that_is_known(slim: Slim) -> None:
    with begun(Path("run")).reopen():
        code, out, err = slim("run")
    assert (code, err) == (0, "")
    for said in ("lenet5 on digits, hbfp", "running", str(os.getpid()), "retrain 2", "epoch 2 of 3", "0.1250", "97.25 %"):
        assert said in out
    for cell in ("80.0 %", "90.0 %", "98.50 %", "yes"):
        assert cell in out
    assert any(block in out for block in BLOCKS)


def test_a_finished_run_ends_with_0_and_says_why_it_ended(slim: Slim) -> None:
    ended(begun(Path("run")))
    code, out, err = slim("run", "--once")
    assert (code, err) == (0, "")
    assert "finished" in out
    assert "it ended because the budget is met" in out


def test_a_run_that_is_exporting_has_not_ended(slim: Slim) -> None:
    run = begun(Path("run"))
    run.append("end", reason="the budget is met")
    with run.reopen():
        assert "exporting" in slim("run")[1]
    assert slim("run")[0] == 1


@pytest.mark.parametrize("table", ["prune", "train"])
def test_a_dead_run_ends_with_1_and_the_way_to_go_on(slim: Slim, table: str) -> None:
    begun(Path("my run"), table)
    code, out, err = slim("my run")
    assert code == 1
    assert "stopped" in out
    assert err == f"slim: my run has stopped before its end (go on with: slim {table} --resume 'my run')\n"


def test_what_happened_to_a_run_is_told(slim: Slim) -> None:
    run = begun(Path("run"))
    run.append("diverged", message="the loss is nan in epoch 3 of 3 (retrain 2)", lr=0.005)
    assert "the loss is nan in epoch 3 of 3 (retrain 2)" in slim("run")[1]
    run.append("interrupted", time=time.time())
    assert "it was interrupted" in slim("run")[1]
    run.append("finished", shortfall="the budget was not reached")
    assert "it fell short: the budget was not reached" in slim("run")[1]


def test_a_run_without_a_first_line_is_shown(slim: Slim) -> None:
    with RunDir("run").create({"prune": {}}):
        code, out, _ = slim("run")
    assert code == 0
    assert "no epoch is done yet" in out


def test_json_is_one_object_in_every_state(slim: Slim) -> None:
    run = begun(Path("run"))
    code, out, _ = slim("run", "--json")
    stopped = json.loads(out)
    assert (code, stopped["state"], stopped["way_on"]) == (1, "stopped", "slim prune --resume run")
    with run.reopen():
        code, out, _ = slim("run", "--json")
    shown = json.loads(out)
    assert (code, shown["state"], shown["pid"]) == (0, "running", os.getpid())
    assert (shown["run"], shown["phase"], shown["epoch"], shown["epochs"]) == ("run", "retrain 2", 2, 3)
    assert (shown["loss"], shown["top1"], shown["iterations"]) == (0.125, 97.25, [STEP])
    assert (shown["arch"], shown["dense"]["macs"]) == ("lenet5", 1000)
    assert json.loads(slim(ended(run).path, "--json")[1])["state"] == "finished"


def test_a_recipe_shows_its_newest_step_until_all_are_done(slim: Slim) -> None:
    def shown() -> tuple[int, str, str, str]:
        code, out, _ = slim("recipe", "--json")
        seen = json.loads(out)
        return code, seen["step"], seen["state"], seen["way_on"]

    with RunDir("recipe").create({"train": {"arch": "lenet5"}, "prune": [{"method": "hbfp"}]}) as recipe:
        assert shown() == (0, "recipe", "running", "")
        first = ended(begun(Path("recipe/train"), "train"))
        recipe.append("step", step="train")
        assert shown() == (0, "train", "running", "")
        os.utime(first.journal, (1, 1))
        second = begun(Path("recipe/prune-1"))
        assert shown() == (0, "prune-1", "running", "")
    assert shown() == (1, "prune-1", "stopped", "slim run --resume recipe")
    ended(second)
    with recipe.reopen():
        recipe.append("step", step="prune-1")
    assert shown() == (0, "prune-1", "finished", "")
    assert "prune-1: lenet5 on digits" in slim("recipe")[1]
    with pytest.raises(RunDirError, match="folder of a recipe"):
        read(recipe)


def test_a_folder_with_runs_shows_the_newest(slim: Slim) -> None:
    begun(Path("runs/one"))
    os.utime("runs/one/journal.jsonl", (1, 1))
    begun(Path("runs/two"))
    assert json.loads(slim("runs", "--json")[1])["run"] == "runs/two"


def test_what_is_no_run_is_refused(slim: Slim) -> None:
    Path("empty").mkdir()
    for folder in ("nowhere", "empty"):
        code, out, err = slim(folder)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1


def test_looking_neither_takes_the_lock_nor_loses_it(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    assert owner(run.path) is None
    with run.reopen():
        assert owner(run.path) == os.getpid()
        with (run.path / ".lock").open("rb") as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        with pytest.raises(RunDirError, match="in use"):
            RunDir(run.path).reopen()
    assert owner(tmp_path) is None


def test_a_run_that_was_cut_back_is_read_anew(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    saved = run.journal_size()
    epoch(run, "retrain 2", 2, 3)
    watched = Watch(run.path)
    assert watched.look().epoch == 3
    with run.reopen():
        run.cut_journal(saved)
        run.append("resumed", time=time.time(), device="cpu", batch_size=128, lr=0.02, seed=0, momentum=0.9, devices=1)
        standing = watched.look()
    assert standing.epoch == 2
    assert len(standing.losses) == 3
    assert "taken up again" in standing.remark


def test_only_the_time_at_work_counts(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    run.append("resumed", time=time.time() - 100)
    with run.reopen():
        assert 106 <= Watch(run.path).look().seconds < 110  # three epochs of two seconds before
    os.utime(run.journal, (0, time.time() - 95))
    assert 11 <= Watch(run.path).look().seconds < 12


def test_a_sparkline_has_the_shape_of_its_values() -> None:
    assert sparkline([], 10) == ""
    assert sparkline([0.5], 10) == BLOCKS[0]
    assert sparkline([8, 4, 2, 1], 10) == "█▆▃▁"
    assert sparkline([0, 1, float("nan")], 10) == "▁█"
    assert sparkline(list(range(1000)), 8) == BLOCKS


def test_watching_loads_nothing_heavy(tmp_path: Path) -> None:
    begun(tmp_path / "run")
    code = (
        "import sys\nfrom slimcli.cli.main import main\n"
        f"try: main(['watch', {str(tmp_path / 'run')!r}])\nfinally: print(*sys.modules, file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "stopped" in done.stdout
    assert not {"torch", "numpy", "onnxruntime", "matplotlib"} & set(done.stderr.split())


def on_a_terminal(run: RunDir) -> tuple[subprocess.Popen[bytes], int]:
    """`slim watch` with stdout, and stderr, on a terminal; the terminal's other end."""
    ours, theirs = pty.openpty()
    code = (
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"from slimcli.cli.main import main\nmain(['watch', {str(run.path)!r}])"
    )
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "100", "LINES": "30"}
    process = subprocess.Popen([sys.executable, "-c", code], stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    return process, ours


def shown_until(terminal: int, words: str) -> str:
    """What the terminal shows until these words appear (everything to its end, where they do not)."""
    seen = b""
    while words.encode() not in seen and select.select([terminal], [], [], 30)[0]:
        try:
            seen += os.read(terminal, 4096)
        except OSError:  # the other end is closed
            break
    return seen.decode()


def test_it_follows_a_run_to_its_end(tmp_path: Path) -> None:
    with begun(tmp_path / "run").reopen() as run:
        process, terminal = on_a_terminal(run)
        assert "epoch 2 of 3" in shown_until(terminal, "epoch 2 of 3")
        epoch(run, "retrain 2", 2, 3)
        assert "epoch 3 of 3" in shown_until(terminal, "epoch 3 of 3")
        ended(run)
    assert "the budget is met" in shown_until(terminal, "the budget is met")
    assert process.wait(30) == 0
    os.close(terminal)


def test_it_ends_with_1_when_the_process_dies(tmp_path: Path) -> None:
    with begun(tmp_path / "run").reopen() as run:
        process, terminal = on_a_terminal(run)
        shown_until(terminal, "running")
    assert "has stopped before its end" in shown_until(terminal, "has stopped before its end")
    assert process.wait(30) == 1
    os.close(terminal)


def test_ctrl_c_ends_it_and_not_the_run(tmp_path: Path) -> None:
    with begun(tmp_path / "run").reopen() as run:
        before = run.journal.read_bytes()
        process, terminal = on_a_terminal(run)
        shown_until(terminal, "epoch 2 of 3")
        process.send_signal(signal.SIGINT)
        rest = shown_until(terminal, "no such words")
        assert process.wait(30) == 130
        assert "Traceback" not in rest
        assert run.journal.read_bytes() == before
        assert owner(run.path) == os.getpid()
    os.close(terminal)
