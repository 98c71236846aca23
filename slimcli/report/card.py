"""The result card of a recipe: what was measured, in Markdown, beside the recipe."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from slimcli.disk import write_atomically
from slimcli.records import JsonDict

SIGNATURE = "Written by `slim run"


def write(path: Path, wanted: JsonDict, recipe: Path, steps: Sequence[JsonDict]) -> Path:
    """Write the card; `wanted` is the recipe's `[card]`, a step holds `step`, `seconds`, `metrics` and its labels."""
    environment = steps[0]["metrics"]["environment"]
    versions = ", ".join(f"{name} {number}" for name, number in environment["versions"].items() if number)
    minutes = sum(step["seconds"] for step in steps) / 60
    lines = [
        f"# {wanted.get('title', recipe.stem)}",
        "",
        *([wanted["about"].strip(), ""] if "about" in wanted else []),
        f"{SIGNATURE} {recipe.name}`, {minutes:.1f} minutes in all. "
        "Test error of the last epoch; every choice was made on held-out training images.",
        "",
        *_table(steps),
        "",
        f"Measured on {environment['processor']}, {environment['cores']} cores, {environment['platform']}; {versions}.",
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
    references = any("reference" in step for step in steps)
    head = [
        "network",
        "filters",
        "test error %",
        *(["reference"] if references else []),
        "MACs (Eq. 1-3)",
        "conv layers alone",
        "parameters",
        "epochs",
        "minutes",
        "p50 ms (dense)",
    ]
    rows: list[list[str]] = []
    for step in steps:
        metrics = step["metrics"]
        side = metrics["slim"] if "slim" in metrics else metrics["dense"]
        first = steps[0]["metrics"]["dense"]
        latency = side.get("latency_ms")
        rows.append(
            [
                str(step.get("name", step["step"])),
                _filters(metrics),
                f"{100 - side['top1']:.2f}",
                *([str(step.get("reference", ""))] if references else []),
                f"{side['macs']:,} ({100 * (side['macs'] / first['macs'] - 1):+.2f} %)",
                _conv_macs(metrics),
                f"{side['params']:,}",
                str(metrics["epochs"]),
                f"{step['seconds'] / 60:.1f}",
                f"{latency['p50']:.3f} ({metrics['dense']['latency_ms']['p50']:.3f})" if latency else "",
            ]
        )
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]


def _conv_macs(metrics: JsonDict) -> str:
    """The slim network's MACs in conv layers: the count that LeNet-5's published figures come closest to (times two)."""
    layers = [layer for layer in metrics.get("layers", []) if layer["type"].startswith("Conv")]
    return f"{sum(layer['macs'][1] for layer in layers):,}" if layers else ""


def _filters(metrics: JsonDict) -> str:
    """The widths of the layers that lost filters; of a dense network nothing."""
    return ", ".join(
        str(layer["filters"][1]) for layer in metrics.get("layers", []) if layer["filters"][0] != layer["filters"][1]
    )
