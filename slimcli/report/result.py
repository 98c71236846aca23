"""A run as the pages tell it: what its folder holds, and the sentence that sums it up."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from slimcli.errors import RunDirError
from slimcli.measures import Measure, measure_of, value_of
from slimcli.records import JsonDict
from slimcli.report.formats import plural, score_change, scored, speedup, times
from slimcli.report.journal import last, of_kind, rebuild
from slimcli.report.standing import owner, way_on, worked_seconds
from slimcli.rundir import RunDir


@dataclass(frozen=True)
class Result:
    """What `metrics.json` holds (or would, as far as the run got), the journal's events, the recipe's text and its settings.

    `running` is whether the run's process lived when this was read, `seconds` how long it worked. A training run has no slim
    network. `series` is the name that the run has in common with its repetitions with other seeds.
    """

    name: str
    path: str
    metrics: JsonDict
    dense: JsonDict
    slim: JsonDict
    events: tuple[JsonDict, ...]
    recipe: str
    settings: JsonDict
    running: bool
    seconds: float = 0.0
    series: str = ""

    def of_kind(self, event: str) -> list[JsonDict]:
        """The journal's events of one kind, in order."""
        return of_kind(self.events, event)

    @property
    def pruned(self) -> bool:
        """Whether this is a pruning run."""
        return bool(self.slim)

    @property
    def finished(self) -> bool:
        """Whether the run got to its end: then the network it left was measured on the test split."""
        return value_of(self.slim or self.dense) is not None

    @property
    def measure(self) -> Measure:
        """What the networks are judged by."""
        return measure_of(self.dense)

    @property
    def next_step(self) -> tuple[str, str]:
        """What to do about an unfinished run: how it stands, and a command line; both empty for a finished one."""
        if self.finished:
            return "", ""
        if self.running:
            return "It is still running; watch it with:", f"slim watch {shlex.quote(self.path)}"
        return "Its process is gone; go on with:", way_on(Path(self.path), "prune" if self.pruned else "train")

    @property
    def iterations(self) -> list[JsonDict]:
        """One record per turn of the loop."""
        return list(self.metrics.get("iterations", []))

    @property
    def kept_iterations(self) -> list[JsonDict]:
        """Those that were not taken back."""
        return [step for step in self.iterations if step.get("kept", True)]

    @property
    def test_samples(self) -> int | None:
        """How many test images the score is measured on, where the journal says so."""
        return next((event.get("samples") for event in self.of_kind("end")), None)

    def kept(self, key: str) -> float:
        """The fraction of `macs` or `params` that the slim network kept."""
        return float(self.slim[key] / self.dense[key])


def read(run: RunDir) -> Result:
    """Read the folder of a run, finished or not; `RunDirError` where there is none, or where it has not begun yet.

    `metrics.json` is written at the end; before that, or where it is damaged, the journal says the same.
    """
    events = tuple(run.read_journal()) if run.journal.exists() else ()
    metrics = _written(run) or rebuild(events)
    if metrics is None:
        if not run.journal.exists():
            run.read_metrics()  # says what is wrong with the folder
        if steps := sorted(path.parent for path in run.path.glob("*/journal.jsonl")):
            raise RunDirError(f"{run.path} is the folder of a recipe", f"name one of its steps: {', '.join(map(str, steps))}")
        raise RunDirError(f"{run.path} has nothing to report yet: its dense network was not measured", "let the run go on")
    return Result(
        name=run.path.resolve().name,
        path=str(run.path),
        metrics=metrics,
        dense=metrics["dense"],
        slim=metrics.get("slim", {}),
        events=events,
        recipe=run.recipe.read_text(encoding="utf-8") if run.recipe.exists() else "",
        settings=run.read_recipe().get("prune", {}) if run.recipe.exists() else {},
        running=owner(run.path) is not None,
        seconds=_seconds(events, run),
    )


def _seconds(events: Sequence[JsonDict], run: RunDir) -> float:
    """How long the run worked: until it finished, or so far."""
    if not events:
        return 0.0
    ended = (last(events, "finished") or {}).get("time")
    return worked_seconds(events, run.journal.stat().st_mtime if ended is None else ended)


def read_pruned(run: RunDir) -> Result:
    """Read a pruning run; `RunDirError` for any other."""
    result = read(run)
    if not result.pruned:
        raise RunDirError(f"{run.path} holds no pruned network to compare", "name a folder that `slim prune` wrote")
    return result


def _written(run: RunDir) -> JsonDict | None:
    try:
        metrics = run.read_metrics()
    except RunDirError:
        return None
    return metrics if "dense" in metrics else None


def headline(result: Result) -> str:
    """One sentence: how many times fewer MACs, smaller and faster, and what that cost in top-1 (or in the data's own score).

    The score is that of the test split; of an unfinished run that of the held-out split.
    """
    if not result.pruned:
        return _training(result)
    dense, slim = result.dense, result.slim
    if (sparsity := result.metrics.get("sparsity")) and slim["params"] == dense["params"]:
        return f"{sparsity['zeros'] / sparsity['weights']:.0%} of the weights are zero, and nothing is smaller or faster by that."
    if slim["params"] == dense["params"]:
        return "Nothing was removed." if result.finished else "Unfinished: nothing was removed yet."
    measured = dense.get("file_bytes") and slim.get("file_bytes")
    size, smaller = ("file_bytes", ("smaller", "larger")) if measured else ("params", ("fewer parameters", "more parameters"))
    gains = [
        times(dense["macs"] / slim["macs"], "fewer MACs", "more MACs"),
        times(dense[size] / slim[size], *smaller),
    ]
    if measured_speedup := result.metrics.get("speedup"):
        gains.append(speedup(measured_speedup))
    if result.finished:
        return ", ".join([*gains, f"{result.measure.title} {score_change(dense, slim)}"]) + "."
    held_out = result.metrics["held_out"]
    cost = f"held-out {result.measure.title} {score_change(held_out['dense'], held_out['slim'])}"
    return f"Unfinished after {plural(len(result.iterations), 'iteration')}: {', '.join([*gains, cost])}."


def _training(result: Result) -> str:
    epochs = plural(result.metrics["epochs"], "epoch")
    if result.finished:
        return f"Trained for {epochs}: {scored(result.dense)}."
    return f"Unfinished: {len(result.of_kind('epoch'))} of {epochs} trained."
