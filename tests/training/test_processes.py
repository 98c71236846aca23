"""Two real processes on the built-in digits: as one process with the same batches; and nobody waits for one that is gone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from slimcli.errors import SettingsError
from slimcli.settings import FitSettings
from slimcli.training.group import Group
from tests.resuming import RANK_KILLER, call, end_of, slim

ARGUMENTS = [
    f"--{flag}"
    for flag in ("train-samples=500", "epochs=1", "final-epochs=1", "max-drop=100", "iterations=2", "amount=25%", "no-deploy")
]


def prune(model: Path, out: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return call(slim("prune", model, "-o", out, *ARGUMENTS, *more))


def prune_and_kill(model: Path, out: Path, rank: int, epoch: int, number: int = signal.SIGKILL) -> tuple[int, str, float]:
    """Two processes, of which one gets a signal before this epoch: exit code and stderr of the first, seconds from then on."""
    killer = [sys.executable, "-c", RANK_KILLER, str(rank), str(epoch), str(int(number))]
    started = time.monotonic()
    done = call([*killer, "prune", str(model), "-o", str(out), *ARGUMENTS, "--devices=2"])
    return done.returncode, done.stderr, time.monotonic() - started


@pytest.fixture(scope="module")
def both(tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """The same run in one process and in two."""
    folder = tmp_path_factory.mktemp("both")
    for devices in (1, 2):
        done = prune(tiny_checkpoint, folder / str(devices), f"--devices={devices}")
        assert done.returncode == 0, done.stderr
    return {devices: folder / str(devices) for devices in (1, 2)}


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in (folder / "journal.jsonl").read_text().splitlines())
    return [event for event in lines if event["event"] == kind]


def test_two_processes_do_what_one_does(both: dict[int, Path]) -> None:
    one, two = (events(both[devices], "surgery") for devices in (1, 2))
    assert [example["pair"] for example in one[0]["examples"]] == [example["pair"] for example in two[0]["examples"]]
    assert one[0]["removed"] == two[0]["removed"]
    assert [step["layers"] for step in one] == [step["layers"] for step in two]
    for kind in ("epoch", "iteration"):
        for first, second in zip(events(both[1], kind), events(both[2], kind), strict=True):
            assert first["top1"] == pytest.approx(second["top1"], abs=0.5)  # three images of the 600 held out
    losses = [event["loss"] for folder in both.values() for event in events(folder, "epoch")[:1]]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("stop", ["if", pytest.param("gf", marks=pytest.mark.slow)])
def test_a_flow_is_that_of_all_processes(tiny_checkpoint: Path, tmp_path: Path, stop: str) -> None:
    flags = ("--method=sap", f"--stop={stop}", "--iterations=1", "--flow-samples=300")
    for devices in (1, 2):
        done = prune(tiny_checkpoint, tmp_path / str(devices), *flags, f"--devices={devices}")
        assert done.returncode == 0, done.stderr
    for each in (0, 1):  # right after the removal, after an epoch
        one, two = (events(tmp_path / str(devices), "look")[each]["distance"] for devices in (1, 2))
        assert one == pytest.approx(two, rel=0.002)  # bf16 rounds each process's part by itself


def test_only_process_0_speaks_and_writes(both: dict[int, Path], tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = prune(tiny_checkpoint, tmp_path / "run", "--devices=2", "--json")
    assert json.loads(done.stdout)["method"] == "hbfp"
    assert done.stderr.count("iteration 1:") == 1
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == sorted(path.name for path in both[2].iterdir())
    assert end_of(tmp_path / "run") == end_of(both[2])


@pytest.mark.parametrize(("rank", "epoch"), [(1, 3)])
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(
    both: dict[int, Path], tiny_checkpoint: Path, tmp_path: Path, rank: int, epoch: int
) -> None:
    code, stderr, seconds = prune_and_kill(tiny_checkpoint, tmp_path / "run", rank, epoch)
    assert seconds < 60 + 60  # a minute to end, and what the run took until then
    assert code == (1 if rank else -signal.SIGKILL)
    assert "has stopped" in stderr or "ended with code" in stderr
    assert "Traceback" not in stderr
    if rank:
        assert f"slim prune --resume {tmp_path / 'run'}" in stderr
    done = call(slim("prune", "--resume", tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert end_of(tmp_path / "run") == end_of(both[2])


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("epoch", [1, 2, 3, 4, 5])
def test_each_process_may_die_in_every_epoch(
    both: dict[int, Path], tiny_checkpoint: Path, tmp_path: Path, rank: int, epoch: int
) -> None:
    test_a_process_that_dies_ends_the_others_and_the_run_goes_on(both, tiny_checkpoint, tmp_path, rank, epoch)


@pytest.mark.slow
def test_a_recipe_in_two_processes_goes_on_after_one_of_them_died(tmp_path: Path) -> None:
    step = "train_samples = 300\nepochs = 1\nfinal_epochs = 1\nmax_drop = 100.0\niterations = 1\ndeploy = false\n"
    recipe = tmp_path / "r.toml"
    recipe.write_text(f"[train]\narch = 'lenet5'\nepochs = 2\ntrain_samples = 300\n[[prune]]\n{step}[[prune]]\n{step}")
    whole = call(slim("run", recipe, "-o", tmp_path / "whole", "--devices=2"))
    assert whole.returncode == 0, whole.stderr
    for epoch in (2, 4, 8):
        out = tmp_path / str(epoch)
        killer = [sys.executable, "-c", RANK_KILLER, "1", str(epoch), str(int(signal.SIGKILL))]
        killed = call([*killer, "run", str(recipe), "-o", str(out), "--devices=2"])
        assert killed.returncode == 1
        assert f"slim run --resume {out}" in killed.stderr
        done = call(slim("run", "--resume", out))
        assert done.returncode == 0, done.stderr
        for name in ("train", "prune-1", "prune-2"):
            assert end_of(out / name) == end_of(tmp_path / "whole" / name)


@pytest.mark.slow
def test_batch_norm_and_odd_batches_go_on_in_two_processes_too(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (150, 32, 32, 3), dtype=np.uint8)
    labels = np.arange(150) % 10
    np.savez(tmp_path / "d.npz", x_train=images, y_train=labels, x_test=images[:21], y_test=labels[:21])
    arguments = ["train", "resnet20-cifar", "--data", f"npz:{tmp_path}/d.npz", "--epochs=3", "--batch-size=31", "--devices=2"]
    whole = call(slim(*arguments, "-o", tmp_path / "whole"))
    assert whole.returncode == 0, whole.stderr
    killer = [sys.executable, "-c", RANK_KILLER, "1", "3", str(int(signal.SIGKILL))]
    assert call([*killer, *arguments, "-o", str(tmp_path / "run")]).returncode == 1
    done = call(slim("train", "--resume", tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    assert end_of(tmp_path / "run") == end_of(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_hangs_ends_the_others_within_a_minute(tiny_checkpoint: Path, tmp_path: Path, rank: int) -> None:
    killer = [sys.executable, "-c", RANK_KILLER, str(rank), "2", str(int(signal.SIGSTOP))]
    command = [*killer, "prune", str(tiny_checkpoint), "-o", str(tmp_path / "run"), *ARGUMENTS, "--devices=2"]
    started = time.monotonic()
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stderr is not None
    try:
        said = next(line for line in process.stderr if "no sign of life" in line)
        assert f"process {rank}" in said
        assert time.monotonic() - started < 60 + 20  # 60 s from the stop on, and the time until then
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stderr.close()


def test_processes_that_differ_are_told_instead_of_waiting(tiny_checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom slimcli import processes\nfrom slimcli.cli.main import main\nfrom slimcli.pipeline import decisions\n"
        "remove = decisions.surgery.remove\n"
        "def other(model, shape, removal):\n"
        "    if processes.rank() == 1 and next(model.parameters()).dtype == __import__('torch').float32:\n"
        "        removal = {name: units[:1] for name, units in removal.items()}\n"
        "    return remove(model, shape, removal)\n"
        "decisions.surgery.remove = other\n"
        "processes.command = [sys.executable, *sys.orig_argv[1:]]\nmain(sys.argv[1:])"
    )
    done = call(
        [sys.executable, "-c", code, "prune", str(tiny_checkpoint), "-o", str(tmp_path / "run"), *ARGUMENTS, "--devices=2"]
    )
    assert done.returncode == 1
    assert "1 of 2 processes have a network after the removals of iteration 1 other than process 0's" in done.stderr


@pytest.mark.slow
def test_torchrun_on_two_hosts_does_what_two_local_processes_do(
    both: dict[int, Path], tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Two launchers on this machine stand for two hosts."""
    common = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:29512", "--rdzv-id=test"]
    command = [sys.executable, "-m", "torch.distributed.run", *common, "-m", *slim("prune", tiny_checkpoint)[2:]]
    command += ["-o", str(tmp_path / "run"), *ARGUMENTS]
    hosts = [subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [host.communicate(timeout=300)[1] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], said
    assert end_of(tmp_path / "run") == end_of(both[2])


def test_nonsense_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match="--batch-size 3 is too small for 2 processes"):
        Group(FitSettings(devices=2, batch_size=3, device="cpu")).launch()
    monkeypatch.setattr("slimcli.processes.command", [])
    with pytest.raises(SettingsError, match="from Python") as caught:
        Group(FitSettings(devices=2, device="cpu")).launch()
    assert "torchrun" in caught.value.hint
