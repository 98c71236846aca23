"""Run folders: nothing is overwritten unasked, nothing is ever half written."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimcli.errors import RunDirError, StorageError
from slimcli.rundir import RunDir, free_path
from tests.resuming import FailingDisk

RECIPE = {"train": {"arch": "lenet5", "epochs": 2, "mean": [0.5]}}


def files(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file() and file.name != ".lock"}


def test_naming_a_run_folder_touches_nothing(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.check_free()
    assert not run.path.exists()


@pytest.mark.parametrize("prepared", ["missing", "parents missing", "empty"])
def test_a_new_run_has_its_recipe_an_empty_journal_and_a_state(tmp_path: Path, prepared: str) -> None:
    path = tmp_path / "a" / "b" / "run" if prepared == "parents missing" else tmp_path / "run"
    if prepared == "empty":
        path.mkdir()
    run = RunDir(path)
    run.create(RECIPE)
    assert run.read_recipe() == tomllib.loads(run.recipe.read_text()) == RECIPE
    assert run.read_journal() == []
    assert run.state.is_dir()
    assert not run.metrics.exists()


def test_every_file_of_a_run_lies_in_its_folder(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    paths = [value for value in vars(run).values() if isinstance(value, Path) and value != run.path]
    assert len(paths) == len(set(paths)) > 6
    assert all(run.path in path.parents for path in paths)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["a file", "other files"])
def test_what_is_no_run_is_never_overwritten(tmp_path: Path, kind: str, overwrite: bool) -> None:
    path = tmp_path / "thesis"
    if kind == "a file":
        path.write_text("years of work")
    else:
        path.mkdir()
        (path / "chapter.txt").write_text("years of work")
    before = files(tmp_path)
    for act in (lambda: RunDir(path).check_free(overwrite), lambda: RunDir(path).create(RECIPE, overwrite)):
        with pytest.raises(RunDirError, match="thesis") as caught:
            act()
        assert "-o" in caught.value.hint
    assert files(tmp_path) == before


def test_a_run_is_overwritten_only_when_asked_to(tmp_path: Path) -> None:
    first = RunDir(tmp_path / "run")
    first.create(RECIPE)
    first.append("epoch", index=0)
    first.write_metrics({"schema": 1})
    first.model.write_bytes(b"weights")
    (first.state / "last.pt").write_bytes(b"weights")
    (first.path / "notes.txt").write_text("mine")
    del first
    before = files(tmp_path)
    with pytest.raises(RunDirError, match="already") as caught:
        RunDir(tmp_path / "run").create({"train": {}})
    assert "--overwrite" in caught.value.hint
    assert files(tmp_path) == before
    second = RunDir(tmp_path / "run")
    second.create({"train": {"arch": "vgg16-cifar"}}, overwrite=True)
    assert files(tmp_path / "run").keys() == {"recipe.toml", "journal.jsonl", "notes.txt"}
    assert second.read_recipe() == {"train": {"arch": "vgg16-cifar"}}
    assert second.read_journal() == []


def test_a_place_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunDirError, match="file"):
        RunDir(tmp_path / "file" / "run").create(RECIPE)
    with pytest.raises(RunDirError):
        RunDir(tmp_path / ("x" * 300)).create(RECIPE)


def test_two_runs_cannot_share_a_folder(tmp_path: Path) -> None:
    first, second = RunDir(tmp_path / "run"), RunDir(tmp_path / "run")
    first.create(RECIPE)
    first.append("epoch", index=0)
    before = files(tmp_path)
    with pytest.raises(RunDirError, match=str(os.getpid())) as caught:
        second.create({"train": {}}, overwrite=True)
    assert "-o" in caught.value.hint
    assert files(tmp_path) == before
    first.append("epoch", index=1)
    assert len(first.read_journal()) == 2


def test_a_killed_run_leaves_its_folder_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from slimcli.rundir import RunDir; run = RunDir(sys.argv[1]); "
        "run.create({}); print('locked', flush=True); time.sleep(60)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "locked\n"
    with pytest.raises(RunDirError, match=str(child.pid)):
        RunDir(tmp_path / "run").create(RECIPE, overwrite=True)
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    RunDir(tmp_path / "run").create(RECIPE, overwrite=True)


def test_a_journal_gives_back_its_lines(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create(RECIPE)
    run.append("epoch", index=0, loss=0.5, phase="train")
    run.append("surgery", removed={"conv1": [1, 2]}, note="a\nline – with ünicode")
    assert run.read_journal() == [
        {"event": "epoch", "index": 0, "loss": 0.5, "phase": "train"},
        {"event": "surgery", "removed": {"conv1": [1, 2]}, "note": "a\nline – with ünicode"},
    ]
    assert len(run.journal.read_text().splitlines()) == 2


def test_a_line_that_was_cut_off_costs_itself_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create(RECIPE)
    run.append("epoch", index=0)
    run.append("epoch", index=1)
    whole = run.journal.read_bytes()
    for cut in range(len(whole)):
        run.journal.write_bytes(whole[:cut])
        assert [line["index"] for line in run.read_journal()] in ([], [0], [0, 1])
    run.journal.write_bytes(whole[:-5])
    run.append("epoch", index=2)  # the run goes on
    run.append("epoch", index=3)
    assert [line["index"] for line in run.read_journal()] == [0, 2, 3]


def test_metrics_are_replaced_whole(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create(RECIPE)
    run.write_metrics({"schema": 1, "top1": 99.0})
    run.write_metrics({"schema": 1})
    assert run.read_metrics() == {"schema": 1}


@pytest.mark.parametrize("content", [None, "", "{", "[1, 2]", "5"])
def test_a_run_without_readable_metrics_is_told(tmp_path: Path, content: str | None) -> None:
    run = RunDir(tmp_path / "run")
    run.create(RECIPE)
    if content is not None:
        run.metrics.write_text(content)
    with pytest.raises(RunDirError, match=r"metrics\.json") as caught:
        run.read_metrics()
    assert caught.value.hint


def test_a_run_without_readable_recipe_is_told(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create(RECIPE)
    run.recipe.write_text("[train\n")
    with pytest.raises(RunDirError, match=r"recipe\.toml"):
        run.read_recipe()
    run.recipe.unlink()
    with pytest.raises(RunDirError, match=r"recipe\.toml"):
        run.read_recipe()


def state(number: int) -> bytes:
    """What torch.save gives for a state is a zip archive with checksums; this is one too."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(zipfile.ZipInfo("data"), f"{number} " * 1000)
    return buffer.getvalue()


def test_the_newest_state_is_read_and_the_one_before_is_there(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run").create(RECIPE)
    assert run.newest_state() == (None, "")
    for number in range(3):
        run.save_state(state(number))
        assert run.newest_state() == (run.last_good, "")
        assert run.last_good.read_bytes() == state(number)
    assert run.previous.read_bytes() == state(1)


@given(st.integers(0, 2**30), st.sampled_from(["flip", "cut", "empty"]))
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path_factory: pytest.TempPathFactory, place: int, how: str) -> None:
    run = RunDir(tmp_path_factory.mktemp("damaged") / "run").create(RECIPE)
    for number in range(2):
        run.save_state(state(number))
    data = bytearray(run.last_good.read_bytes())
    if how == "flip":
        # The bytes of the record itself: what lies around it is the archive's directory, where a flip may be harmless.
        data[60 + place % 1900] ^= 0x10
    run.last_good.write_bytes({"flip": data, "cut": data[: place % len(data)], "empty": b""}[how])
    path, remark = run.newest_state()
    assert path == run.previous
    assert path.read_bytes() == state(0)
    assert "last.pt is damaged" in remark
    run.save_state(state(2))  # the run goes on: the damaged one is replaced, the good one stays
    assert (run.last_good.read_bytes(), run.previous.read_bytes()) == (state(2), state(0))


def test_two_damaged_states_are_told_with_a_way_out(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run").create(RECIPE)
    for number in range(2):
        run.save_state(state(number))
    run.last_good.write_bytes(b"x")
    run.previous.write_bytes(b"x")
    with pytest.raises(RunDirError, match=r"last\.pt and .*previous\.pt are damaged") as caught:
        run.newest_state()
    assert "slim run" in caught.value.hint


def test_a_journal_is_cut_back_to_where_a_state_was_saved(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run").create(RECIPE)
    run.append("epoch", index=0)
    size = run.journal_size()
    run.append("epoch", index=1)
    run.cut_journal(size)
    run.append("epoch", index=1)
    assert [line["index"] for line in run.read_journal()] == [0, 1]
    run.cut_journal(10**9)
    assert run.journal_size() > size


def test_a_run_is_reopened_by_one_process_at_a_time_and_swept(tmp_path: Path) -> None:
    with RunDir(tmp_path / "run").create(RECIPE) as run:
        run.append("epoch", index=0)
        with pytest.raises(RunDirError, match=str(os.getpid())):
            RunDir(tmp_path / "run").reopen()
    for leftover in (run.path / ".model.pt.12345.tmp", run.state / ".last.pt.12345.tmp"):
        leftover.write_bytes(b"half")
    with RunDir(tmp_path / "run").reopen():
        assert not list(run.path.rglob("*.tmp"))
        assert run.read_journal() == [{"event": "epoch", "index": 0}]
    with pytest.raises(RunDirError, match="nowhere"):
        RunDir(tmp_path / "nowhere").reopen()


def test_a_folder_that_could_not_be_finished_is_free_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for at in range(1, 6):  # lock, write, sync, rename, sync of the folder
        monkeypatch.setattr("slimcli.disk.disk", FailingDisk(at))
        run = RunDir(tmp_path / str(at) / "run")
        with pytest.raises(StorageError, match="run"):
            run.create(RECIPE)
        if at < 5:
            RunDir(run.path).check_free()
        else:  # the recipe is there: this is a run that has not begun
            assert run.read_recipe() == RECIPE
    monkeypatch.setattr("slimcli.disk.disk", FailingDisk(6))
    RunDir(tmp_path / "6").create(RECIPE)


def test_a_missing_run_is_told(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "none")
    for read in (run.read_metrics, run.read_recipe, run.read_journal):
        with pytest.raises(RunDirError, match="none"):
            read()


def test_a_taken_name_is_numbered(tmp_path: Path) -> None:
    path = tmp_path / "lenet5-hbfp"
    assert free_path(path) == path
    path.mkdir()
    assert free_path(path) == tmp_path / "lenet5-hbfp-2"
    (tmp_path / "lenet5-hbfp-2").write_text("")
    assert free_path(path) == tmp_path / "lenet5-hbfp-3"
