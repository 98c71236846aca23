"""The journal is enough: without `metrics.json`, and of a run cut off anywhere, the same page can be drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimcli.cli import tables
from slimcli.errors import RunDirError
from slimcli.report import page
from slimcli.report.compare import compare, gather
from slimcli.report.journal import Tail, parsed, rebuild
from slimcli.report.page import summary
from slimcli.report.plots import plots
from slimcli.report.result import headline, read
from slimcli.rundir import RunDir
from tests.report.test_page import LATENCY, PAIR, check_stands_alone, make_run

JsonDict = dict[str, Any]


def layers(filters: int, macs: int, params: int) -> list[JsonDict]:
    conv = {"name": "conv", "type": "Conv2d", "filters": filters, "macs": macs - 100, "params": params - 50}
    return [conv, {"name": "fc", "type": "Linear", "filters": 10, "macs": 100, "params": 50}]


def network(filters: int, macs: int, params: int) -> JsonDict:
    return {"macs": macs, "params": params, "layers": layers(filters, macs, params)}


def epoch(phase: str, index: int, epochs: int, loss: float) -> JsonDict:
    return {"event": "epoch", "phase": phase, "index": index, "epochs": epochs, "loss": loss, "top1": 98.0, "seconds": 1.5}


def surgery(iteration: int, cost: JsonDict) -> JsonDict:
    found = {"removed": {"conv": [3, 4]}, "widths": {"conv": 18}, "top1": 97.0, "examples": [PAIR]}
    return {"event": "surgery", "iteration": iteration, **found, **cost}


DENSE, FIRST, SECOND = network(20, 1000, 100), network(18, 800, 90), network(16, 600, 80)
HELD_OUT = {"dense": {"top1": 98.6, "loss": 0.05, "samples": 60}, "slim": {"top1": 98.4, "loss": 0.06, "samples": 60}}
STEP = {"index": 1, "macs": 800, "params": 90, "top1": 98.5, "top1_after_surgery": 97.0, "epochs": 2, "removed": 2}
STEPS = [
    STEP | {"seconds": 4.0, "kept": True},
    STEP | {"index": 2, "macs": 600, "params": 80, "top1": 90.0, "seconds": 4.0, "kept": False},
]
ENVIRONMENT = {"platform": "Linux", "python": "3.11", "versions": {"torch": "2.15.0"}}
FROZEN = [{"group": "fc", "reason": "the network's output"}]
DEPLOYED = {
    side: {"file_bytes": size, "latency_ms": LATENCY | {"p50": p50}}
    for side, size, p50 in (("dense", 3000, 0.2), ("slim", 2000, 0.1))
}
PARITY, SPEEDUP = {"max_error": 5e-6, "samples": 64}, {"ratio": 2.0, "low": 1.9, "high": 2.1}
REASON = "iteration 2 lost more than the allowed 1 points"

FINAL = {
    "distilled": False,
    "chosen": "fresh",
    "trials": [{"start": "fresh", "epochs": 1, "top1": 98.5, "loss": 0.05, "continued": False, "chosen": True}],
}

EVENTS: list[JsonDict] = [
    {
        "event": "start",
        "method": "hbfp",
        "arch": "lenet5",
        "data": "digits",
        "dense": {"top1": 99.0, "loss": 0.03, "samples": 1000, **DENSE},
        "held_out": HELD_OUT["dense"],
        "frozen": FROZEN,
        "notes": ["a note"],
        "environment": ENVIRONMENT,
        "time": 1e9,
    },
    epoch("observe", 0, 1, 0.6),
    epoch("tie 1", 0, 1, 0.5),
    surgery(1, FIRST),
    epoch("retrain 1", 0, 2, 0.2),
    {"event": "diverged", "message": "the loss is nan in epoch 2 of 2 (retrain 1)", "lr": 0.01},
    epoch("retrain 1", 1, 2, 0.1),
    {"event": "iteration", **STEPS[0]},
    epoch("tie 2", 0, 1, 0.3),
    surgery(2, SECOND),
    {"event": "resumed", "time": 1e9 + 60},
    epoch("retrain 2", 0, 2, 0.2),
    epoch("retrain 2", 1, 2, 0.2),
    {"event": "iteration", **STEPS[1]},
    epoch("final", 0, 1, 0.1),
    {"event": "trial", **FINAL["trials"][0]},
    {
        "event": "end",
        "training_macs": 9000,
        "final": FINAL,
        "dead_filters": {"conv": 1},
        "sparsity": None,
        "reason": REASON,
        "top1": 98.9,
        "loss": 0.04,
        "samples": 1000,
        "held_out": HELD_OUT,
        "epochs": 8,
        "budget_met": True,
        **FIRST,
    },
    {"event": "deployed", **DEPLOYED, "parity": PARITY, "speedup": SPEEDUP},
    {"event": "finished", "shortfall": ""},
]

METRICS: JsonDict = {
    "schema": 1,
    "method": "hbfp",
    "arch": "lenet5",
    "data": "digits",
    "dense": {"top1": 99.0, "loss": 0.03, "macs": 1000, "params": 100, **DEPLOYED["dense"]},
    "slim": {"top1": 98.9, "loss": 0.04, "macs": 800, "params": 90, **DEPLOYED["slim"]},
    "removed": {"macs": 1 - 800 / 1000, "params": 1 - 90 / 100},
    "held_out": HELD_OUT,
    "epochs": 8,
    "reason": REASON,
    "budget_met": True,
    "iterations": STEPS,
    "training_macs": 9000,
    "final": FINAL,
    "dead_filters": {"conv": 1},
    "sparsity": None,
    "left_out": [],
    "layers": [
        {"name": "conv", "type": "Conv2d", "filters": [20, 18], "macs": [900, 700], "params": [50, 40]},
        {"name": "fc", "type": "Linear", "filters": [10, 10], "macs": [100, 100], "params": [50, 50]},
    ],
    "frozen": FROZEN,
    "notes": ["a note"],
    "environment": ENVIRONMENT,
    "parity": PARITY,
    "speedup": SPEEDUP,
}

TRAINING: list[JsonDict] = [
    {
        "event": "start",
        "arch": "lenet5",
        "data": "digits",
        "dense": DENSE,
        "epochs": 2,
        "environment": ENVIRONMENT,
        "time": 1e9,
    },
    epoch("train", 0, 2, 0.6),
    epoch("train", 1, 2, 0.3),
    {"event": "end", "top1": 99.0, "loss": 0.03, "samples": 1000, "macs": 1000, "params": 100},
    {"event": "finished", "shortfall": ""},
]


def test_the_journal_of_a_finished_run_gives_its_metrics() -> None:
    assert rebuild(EVENTS) == METRICS


def test_without_metrics_no_plot_and_no_row_is_another(tmp_path: Path) -> None:
    written = read(make_run(tmp_path / "a" / "run", METRICS, EVENTS))
    redrawn = read(make_run(tmp_path / "b" / "run", None, EVENTS))
    assert [plot.name for plot in plots(written)] == ["tradeoff", "layers", "iterations", "pairs", "loss"]
    assert any(">final<" in plot.svg() for plot in plots(written))
    for one, other in zip(plots(written), plots(redrawn), strict=True):
        told = ("name", "title", "caption", "description", "size", "head", "rows")
        assert [getattr(one, key) for key in told] == [getattr(other, key) for key in told]
        assert one.svg() == other.svg()
    assert summary(written) == summary(redrawn)
    assert headline(written) == headline(redrawn)
    first, second = (page.write(RunDir(tmp_path / name / "run")).read_text() for name in "ab")
    assert first == second


def test_damaged_metrics_are_read_from_the_journal(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", None, EVENTS)
    run.metrics.write_text('{"dense": {"top')
    assert read(run).metrics == METRICS


@pytest.mark.parametrize("events", [EVENTS, TRAINING])
def test_a_page_can_be_drawn_of_every_beginning(tmp_path: Path, events: list[JsonDict]) -> None:
    """Cut after every line; a line that was cut off in its middle counts as not written."""
    lines = [json.dumps(event) + "\n" for event in events]
    for count in range(1, len(lines) + 1):
        run = make_run(tmp_path / str(count), None, events[:count])
        html = page.write(run).read_text()
        check_stands_alone(html) if "<svg" in html else None
        whole = read(run)
        tables.summary(whole.metrics)
        ended = any(event["event"] == "end" for event in events[:count])
        assert whole.finished is ended
        assert ("Unfinished" in html) is ("--resume" in html) is ("It is not finished: " in html) is not ended
        if count < len(lines):
            run.journal.write_text("".join(lines[:count]) + lines[count][: len(lines[count]) // 2])
            assert read(run).metrics == whole.metrics


def test_an_unfinished_run_shows_the_last_kept_network(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", None, EVENTS[:12])  # iteration 2 is past its surgery
    result = read(run)
    assert result.slim == {"top1": None, "loss": None, "macs": 800, "params": 90, "file_bytes": None}
    assert result.metrics["layers"] == METRICS["layers"]
    assert result.metrics["held_out"]["slim"] == {"top1": 98.5, "loss": None, "samples": 60}
    assert result.metrics["reason"] == "not finished: in retrain 2, epoch 1 of 2"
    assert result.metrics["budget_met"] is False
    assert headline(result) == (
        "Unfinished after 1 iteration: 1.2 times fewer MACs, 1.1 times fewer parameters, held-out top-1 -0.10 points."
    )
    text = check_stands_alone(page.write(run).read_text()).text
    for said in ("not measured yet", "98.50 %", f"slim prune --resume {run.path}", "It used 6 epochs"):
        assert said in text
    assert not any(">final<" in plot.svg() for plot in plots(result))


def test_a_run_that_is_still_going_is_not_to_be_resumed(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", None, EVENTS[:12])
    with run.reopen():
        assert read(run).next_step == ("It is still running; watch it with:", f"slim watch {run.path}")


def test_before_the_start_there_is_nothing_to_report(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", None, [])
    with pytest.raises(RunDirError, match="nothing to report yet"):
        page.write(run)
    run.journal.unlink()
    with pytest.raises(RunDirError, match=r"no metrics\.json"):
        page.write(run)


def test_a_training_run_has_a_page_of_its_own(tmp_path: Path) -> None:
    result = read(make_run(tmp_path / "run", None, TRAINING))
    assert headline(result) == "Trained for 2 epochs: top-1 99.00 %."
    assert summary(result)[0] == ("top-1", "99.00 %")
    assert [plot.name for plot in plots(result)] == ["loss"]
    result = read(make_run(tmp_path / "half", None, TRAINING[:2]))
    assert headline(result) == "Unfinished: 1 of 2 epochs trained."
    assert result.next_step[1] == f"slim train --resume {tmp_path / 'half'}"


def test_an_unfinished_run_stands_beside_finished_ones(tmp_path: Path) -> None:
    done, half = make_run(tmp_path / "done", METRICS, EVENTS), make_run(tmp_path / "half", None, EVENTS[:12])
    text = check_stands_alone(compare(gather([done, half]), tmp_path / "compare.html").read_text()).text
    assert "unfinished" in text
    tables.comparison(["done", "half"], [read(done).metrics, read(half).metrics])
    with pytest.raises(RunDirError, match="no pruned network"):
        compare(gather([make_run(tmp_path / "train", None, TRAINING)]), tmp_path / "compare.html")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("write"), st.integers(0, 3), st.integers(0, 30)),
            st.tuples(st.just("cut"), st.floats(0, 1), st.integers(0, 3)),
        ),
        max_size=12,
    )
)
def test_following_a_journal_is_reading_it_whole(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]) -> None:
    """Whatever a run does to its journal between two looks: whole lines, half ones, a cut, and more lines than before."""
    path = tmp_path_factory.mktemp("tail") / "journal.jsonl"
    path.write_text("")
    tail, number = Tail(path), 0
    for step in steps:
        content = path.read_bytes()
        if step[0] == "cut":
            whole = content.splitlines(keepends=True)
            content = b"".join(whole[: int(step[1] * len(whole))])
        if content and not content.endswith(b"\n"):
            content += b"\n"
        for _ in range(step[1] if step[0] == "write" else step[2]):
            number += 1
            content += json.dumps({"event": "epoch", "loss": number}).encode() + b"\n"
        if step[0] == "write":
            content += json.dumps({"event": "half", "loss": number}).encode()[: step[2]]
        path.write_bytes(content)
        assert tail.read() == list(parsed(content[: content.rfind(b"\n") + 1]))


def test_following_reads_only_what_is_new(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", None, [epoch("train", index, 10_000, 0.1) for index in range(10_000)])
    tail = Tail(run.journal)
    assert len(tail.read()) == 10_000
    with run.journal.open("r+b") as file:
        file.write(b"\0" * 1_000_000)  # the old lines are gone, the last one is as it was
    run.append("end")
    assert len(tail.read()) == 10_001
    assert tail.events[0]["index"] == 0
