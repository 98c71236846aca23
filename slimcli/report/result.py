"""A finished pruning run as the pages tell it: what its folder holds, and the sentence that sums it up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from slimcli.errors import RunDirError
from slimcli.records import JsonDict
from slimcli.report.formats import signed
from slimcli.rundir import RunDir


@dataclass(frozen=True)
class Result:
    """`metrics.json`, the journal's events, the recipe's text and its settings for the pruning."""

    name: str
    path: str
    metrics: JsonDict
    dense: JsonDict
    slim: JsonDict
    events: tuple[JsonDict, ...]
    recipe: str
    settings: JsonDict

    def of_kind(self, event: str) -> Iterator[JsonDict]:
        """The journal's events of one kind, in order."""
        return (entry for entry in self.events if entry.get("event") == event)

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
        """How many test images the top-1 is measured on, where the journal says so."""
        return next((event.get("samples") for event in self.of_kind("end")), None)

    def kept(self, key: str) -> float:
        """The fraction of `macs` or `params` that the slim network kept."""
        return float(self.slim[key] / self.dense[key])


def read(run: RunDir) -> Result:
    """Read a run folder; `RunDirError` where there is none, where the run has not ended, or where nothing was pruned in it."""
    metrics = run.read_metrics()
    if "slim" not in metrics or "dense" not in metrics:
        raise RunDirError(f"{run.path} holds no pruned network to report on", "name a folder that `slim prune` wrote")
    return Result(
        name=run.path.resolve().name,
        path=str(run.path),
        metrics=metrics,
        dense=metrics["dense"],
        slim=metrics["slim"],
        events=tuple(run.read_journal()) if run.journal.exists() else (),
        recipe=run.recipe.read_text(encoding="utf-8") if run.recipe.exists() else "",
        settings=run.read_recipe().get("prune", {}) if run.recipe.exists() else {},
    )


def headline(result: Result) -> str:
    """One sentence: how many times fewer MACs, smaller and faster, and what that cost in top-1 (points, test split)."""
    dense, slim = result.dense, result.slim
    if slim["params"] == dense["params"]:
        return "Nothing was removed."
    measured = dense.get("file_bytes") and slim.get("file_bytes")
    size, smaller = ("file_bytes", ("smaller", "larger")) if measured else ("params", ("fewer parameters", "more parameters"))
    gains = [
        _times(dense["macs"] / slim["macs"], "fewer MACs", "more MACs"),
        _times(dense[size] / slim[size], *smaller),
    ]
    if speedup := result.metrics.get("speedup"):
        gains.append(_speed(speedup))
    return ", ".join([*gains, f"top-1 {signed(slim['top1'] - dense['top1'])} points"]) + "."


def _times(ratio: float, less: str, more: str) -> str:
    if ratio < 1:
        ratio, less = 1 / ratio, more
    if ratio < 1.005:
        return f"no {less}"
    return f"{ratio:.{2 if ratio < 1.1 else 1}f} times {less}"


def _speed(speedup: JsonDict) -> str:
    if speedup["low"] <= 1 <= speedup["high"]:
        return "not measurably faster"
    return _times(speedup["ratio"], "faster", "slower")
