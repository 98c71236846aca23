"""Several runs on one page: a table, and accuracy against the MACs (of masked networks the weights) that were kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from slimcli.errors import RunDirError
from slimcli.records import JsonDict
from slimcli.report import formats
from slimcli.report.courses import courses
from slimcli.report.html import write_page
from slimcli.report.pareto import pareto
from slimcli.report.result import Result, read_pruned
from slimcli.report.series import measure_of_all
from slimcli.rundir import RunDir


def gather(runs: Sequence[RunDir]) -> list[Result]:
    """Several pruning runs, finished or not, under names that tell them apart; `RunDirError` where a folder holds none.

    The folder of a recipe stands for all its finished pruning runs that its card shows.
    """
    given = [each for run in runs for each in _runs_of(run)]
    results = _named([read_pruned(run) for run in {run.path.resolve(): run for run in given}.values()])
    if not results:
        raise RunDirError("there is no run to compare", "name one or more folders that `slim prune` wrote")
    if len(names := {result.measure.heading for result in results}) > 1:
        raise RunDirError(f"the runs are judged by different scores: {', '.join(sorted(names))}", "compare those of one score")
    return results


def compare(results: Sequence[Result], path: Path) -> Path:
    """Write one page on what was gathered. Repetitions with other seeds are drawn as one, with their deviation."""
    table = [row(result) for result in results]
    columns = [column for column in table[0] if any(cells[column] for cells in table)]
    return write_page(
        path,
        "compare.html.j2",
        results=results,
        head=columns,
        rows=[[cells[column] for column in columns] for cells in table],
        subjects=_subjects(results),
        score=measure_of_all(results).opening,
        plots=[pareto(results), courses(results)],
    )


def _runs_of(run: RunDir) -> list[RunDir]:
    """The run itself; of a recipe's folder its finished pruning runs."""
    steps = _steps(run.path)
    if not steps:
        return [run]
    shown = [event["step"] for event in steps if "slim" in event["metrics"] and not event.get("hidden")]
    if not shown:
        raise RunDirError(f"{run.path} holds no pruned network to compare", "name a folder that `slim prune` wrote")
    return [RunDir(run.path / step) for step in shown]


def row(result: Result) -> dict[str, str]:
    """A run's line of the table: column -> cell, empty where the run did not measure it."""
    slim, metrics = result.slim, result.metrics
    latency, speedup = slim.get("latency_ms"), metrics.get("speedup")
    last = result.kept_iterations[-1] if result.kept_iterations else {}
    return {
        "run": result.name,
        "method": str(metrics.get("method", "")),
        "score": formats.scored(slim) if result.finished else "unfinished",
        "change": formats.score_change(result.dense, slim) if result.finished else "",
        "MACs kept": formats.percent(result.kept("macs")),
        "parameters kept": formats.percent(result.kept("params")),
        "weights left": formats.percent(last["remaining"]) if metrics.get("sparsity") and "remaining" in last else "",
        "file size": formats.size(slim["file_bytes"]) if slim.get("file_bytes") else "",
        "latency, p50": formats.milliseconds(latency["p50"]) if latency else "",
        "speedup": formats.interval(speedup) if speedup else "",
        "iterations": str(len(result.kept_iterations)),
        "epochs": str(metrics.get("epochs", "")),
    }


def _named(results: Sequence[Result]) -> list[Result]:
    """A recipe's step is called what the recipe calls it, and shares that with its repetitions with other seeds; what would be
    called the same is told apart by its path.
    """
    parents = {Path(result.path).parent for result in results}
    steps = {parent / event["step"]: event for parent in parents for event in _steps(parent)}
    events = [steps.get(Path(result.path), {}) for result in results]
    keys = [
        (Path(result.path).parent, str(event["label"])) if event else (Path(result.path), result.name)
        for result, event in zip(results, events, strict=True)
    ]
    taken = Counter(name for _, name in dict.fromkeys(keys))
    named = []
    for result, event, (place, name) in zip(results, events, keys, strict=True):
        series = name if taken[name] == 1 else f"{place}: {name}" if event else str(place)
        seed = f", seed {event['seed']}" if event.get("seed") is not None else ""
        named.append(replace(result, name=series + seed, series=series, seconds=event.get("seconds", result.seconds)))
    return named


def _steps(container: Path) -> list[JsonDict]:
    """Of a recipe's run folder: its finished steps; empty for any other folder."""
    journal = RunDir(container).read_journal() if RunDir(container).journal.exists() else []
    return [event for event in journal if event["event"] == "step"]


def _subjects(results: Sequence[Result]) -> list[str]:
    """The dense networks that the runs started from, each once."""
    return list(
        dict.fromkeys(
            f"{result.metrics.get('arch')} on {result.metrics.get('data')}, {result.dense['macs']:,} MACs, "
            f"{formats.scored(result.dense)}"
            for result in results
        )
    )
