"""The result card of a recipe: what was measured, in Markdown, beside the recipe."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from slimcli.disk import write_atomically
from slimcli.measures import Measure, measure_of, value_of
from slimcli.records import JsonDict
from slimcli.report.formats import plural

SIGNATURE = "Written by `slim run"


def write(path: Path, wanted: JsonDict, recipe: Path, steps: Sequence[JsonDict]) -> Path:
    """Write the card; `wanted` is the recipe's `[card]`, a step holds `step`, `seconds`, `metrics` and its labels."""
    seeds = sorted({step["seed"] for step in steps if step.get("seed") is not None})
    environment, measure = steps[0]["metrics"]["environment"], measure_of(steps[0]["metrics"]["dense"])
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items() if number)
    machine = [environment["processor"], f"{environment['cores']} cores", *filter(None, [environment.get("gpu")])]
    minutes, jobs = sum(step["seconds"] for step in steps) / 60, max(step.get("jobs", 1) for step in steps)
    lines = [
        f"# {wanted.get('title', recipe.stem)}",
        "",
        *([wanted["about"].strip(), ""] if "about" in wanted else []),
        f"{SIGNATURE} {recipe.name}`, {minutes:.1f} minutes in all{f', up to {jobs} steps at a time' if jobs > 1 else ''}. "
        f"{'Test error' if measure.is_top1 else 'Score'} of the last epoch; every choice was made on held-out training images."
        + (f" Means and standard deviations over the seeds {', '.join(map(str, seeds))}." if len(seeds) > 1 else ""),
        "",
        *_table(steps),
        "",
        f"Measured on {', '.join([*machine, environment['platform']])}; {versions}.",
        *_latency_terms(steps),
        "",
    ]
    write_atomically(path, "\n".join(lines).encode())
    return path


def _latency_terms(steps: Sequence[JsonDict]) -> list[str]:
    measured = [step["metrics"]["slim"]["latency_ms"] for step in steps if "latency_ms" in step["metrics"].get("slim", {})]
    return [
        f"Latency: onnxruntime, {ms['provider']}, {ms['threads']} thread(s), batch {ms['batch']}, dense and slim interleaved."
        for ms in measured[:1]
    ]


def _table(steps: Sequence[JsonDict]) -> list[str]:
    """One row for each step that is shown; over several seeds means and standard deviations."""
    rows: dict[str, list[JsonDict]] = {}
    for step in steps:
        if not step.get("hidden"):
            rows.setdefault(str(step.get("label", step["step"])), []).append(step)
    columns: dict[str, list[str]] = {"network": list(rows)}
    columns["filters"] = [_same(_filters(step, steps) for step in repeats) for repeats in rows.values()]
    measure = measure_of(steps[0]["metrics"]["dense"])
    of_test, of_held_out = ("test error %", "held-out error %") if measure.is_top1 else (f"test {measure.heading}", "held out")
    columns[of_test] = [_errors([_side(step) for step in repeats], measure) for repeats in rows.values()]
    columns[of_held_out] = [_held_out(repeats) for repeats in rows.values()]
    columns["after a removal %"] = [_after_removals(repeats) for repeats in rows.values()]
    columns["reference"] = [str(repeats[0].get("reference", "")) for repeats in rows.values()]
    columns["last retraining from"] = [_starts(repeats) for repeats in rows.values()]
    columns["MACs (Eq. 1-3)"] = [_macs(repeats, steps) for repeats in rows.values()]
    columns["conv layers alone"] = [_same(_conv_macs(step, steps) for step in repeats) for repeats in rows.values()]
    columns["parameters"] = [_spread([_side(step)["params"] for step in repeats], 0) for repeats in rows.values()]
    columns["weights left %"] = [_weights_left(repeats) for repeats in rows.values()]
    columns["epochs in all"] = [
        _spread([step.get("total_epochs", step["metrics"]["epochs"]) for step in repeats], 0) for repeats in rows.values()
    ]
    columns["minutes"] = [_spread([step["seconds"] / 60 for step in repeats], 1, False) for repeats in rows.values()]
    columns["p50 ms (dense)"] = [_latency(repeats[0]["metrics"]) for repeats in rows.values()]
    columns["fell short"] = [_fell_short(repeats) for repeats in rows.values()]
    shown = {name: cells for name, cells in columns.items() if any(cells)}
    lines = [list(shown), ["---"] * len(shown), *map(list, zip(*shown.values(), strict=True))]
    return ["| " + " | ".join(line) + " |" for line in lines]


def _spread(values: Sequence[float], digits: int, deviation: bool = True) -> str:
    mean = f"{statistics.mean(values):,.{digits}f}"
    return (
        mean if len(values) < 2 or not deviation or len(set(values)) == 1 else f"{mean} ± {statistics.stdev(values):,.{digits}f}"
    )


def _side(step: JsonDict) -> JsonDict:
    side: JsonDict = step["metrics"].get("slim", step["metrics"]["dense"])
    return side


def _held_out(repeats: Sequence[JsonDict]) -> str:
    """On the images that choices were made on, of a network that was pruned."""
    scores = [step["metrics"]["held_out"]["slim"] for step in repeats if "slim" in step["metrics"]]
    return _errors(scores, measure_of(scores[0])) if scores else ""


def _errors(networks: Sequence[JsonDict], measure: Measure) -> str:
    """The error in percent where networks are judged by top-1, the score else."""
    values = [value_of(network) for network in networks]
    return _spread([100 - value for value in values], 2) if measure.is_top1 else _spread(values, 4)


def _after_removals(repeats: Sequence[JsonDict]) -> str:
    """The held-out error right after a removal, before retraining; mean over the removals."""
    means = [
        100 - statistics.mean(turn["top1_after_surgery"] for turn in step["metrics"]["iterations"])
        for step in repeats
        if step["metrics"].get("iterations") and measure_of(step["metrics"]["dense"]).is_top1
    ]
    return _spread(means, 1) if means else ""


def _starts(repeats: Sequence[JsonDict]) -> str:
    chosen = Counter(step["metrics"].get("final", {}).get("chosen") for step in repeats)
    chosen.pop(None, None)
    return ", ".join(start if len(chosen) == 1 else f"{start} ({count})" for start, count in chosen.items())


def _macs(repeats: Sequence[JsonDict], steps: Sequence[JsonDict]) -> str:
    macs, first = [_side(step)["macs"] for step in repeats], steps[0]["metrics"]["dense"]["macs"]
    return f"{_spread(macs, 0)} ({100 * (statistics.mean(macs) / first - 1):+.2f} %)"


def _weights_left(repeats: Sequence[JsonDict]) -> str:
    """Where single weights were removed: how many are left."""
    masked = [step["metrics"] for step in repeats if step["metrics"].get("sparsity")]
    kept = [[step for step in metrics["iterations"] if step["kept"]] for metrics in masked]
    left = [100 * steps[-1]["remaining"] for steps in kept if steps]
    return _spread(left, 1) if left else ""


def _same(cells: Iterable[str]) -> str:
    """The cell that all seeds share; where they differ, that they do."""
    found = set(cells)
    return found.pop() if len(found) == 1 else "differ"


def _fell_short(repeats: Sequence[JsonDict]) -> str:
    """Which seeds: their networks are others than the row says."""
    short = [step.get("seed") for step in repeats if step["shortfall"]]
    named = [str(seed) for seed in short if seed is not None]
    return f"seed {', '.join(named)}" if named and len(short) < len(repeats) else "yes" if short else ""


def _latency(metrics: JsonDict) -> str:
    latency = metrics.get("slim", {}).get("latency_ms")
    return f"{latency['p50']:.3f} ({metrics['dense']['latency_ms']['p50']:.3f})" if latency else ""


def _conv_macs(step: JsonDict, steps: Sequence[JsonDict]) -> str:
    """MACs in conv layers: the count that LeNet-5's published figures come closest to (times two)."""
    present, first = sum(_conv_layers(step, 1)), sum(_conv_layers(steps[0], 0))
    if not present:
        return ""
    return f"{present:,}" + (f" ({100 * (present / first - 1):+.2f} %)" if first else "")


def _conv_layers(step: JsonDict, side: int) -> list[int]:
    """The MACs of each, before (0) or after (1) the step."""
    return [layer["macs"][side] for layer in step["metrics"].get("layers", []) if layer["type"].startswith("Conv")]


def _filters(step: JsonDict, steps: Sequence[JsonDict]) -> str:
    """The widths of the layers that are narrower than in the recipe's first network, and how many blocks are left out."""
    first = {layer["name"]: layer["filters"][0] for layer in steps[0]["metrics"].get("layers", [])}
    present = {layer["name"]: layer["filters"] for layer in step["metrics"].get("layers", []) if layer["filters"][1]}
    narrower = [str(now) for name, (before, now) in present.items() if now != first.get(name, before)]
    left_out = step["metrics"].get("left_out")
    return ", ".join(narrower + ([f"without {plural(len(left_out), 'block')}"] if left_out else []))
