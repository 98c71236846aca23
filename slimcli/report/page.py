"""The page of one run: what was gained, what it cost, and how it came about."""

from __future__ import annotations

from pathlib import Path

from slimcli.report import formats
from slimcli.report.html import write_page
from slimcli.report.plots import plots
from slimcli.report.result import Result, headline, read
from slimcli.rundir import RunDir

BUDGETS = ("macs", "params", "widths", "iterations", "latency")

Row = tuple[str, str, str, str]


def write(run: RunDir) -> Path:
    """Write `report.html` into the run folder: one file that needs nothing else. `RunDirError` where there is no result."""
    result = read(run)
    return write_page(
        run.report,
        "page.html.j2",
        metrics=result.metrics,
        recipe=result.recipe,
        headline=headline(result),
        summary=summary(result),
        terms=_terms(result),
        ending=_ending(result),
        frozen=_frozen(result),
        plots=plots(result),
    )


def summary(result: Result) -> list[Row]:
    """What was measured: its name, dense, slim, change. What the run did not measure is left out."""
    dense, slim = result.dense, result.slim
    rows = [
        ("top-1", f"{dense['top1']:.2f} %", f"{slim['top1']:.2f} %", f"{formats.signed(slim['top1'] - dense['top1'])} points"),
        ("loss", f"{dense['loss']:.4f}", f"{slim['loss']:.4f}", formats.signed(slim["loss"] - dense["loss"], 4)),
        ("MACs", f"{dense['macs']:,}", f"{slim['macs']:,}", formats.change(dense["macs"], slim["macs"])),
        ("parameters", f"{dense['params']:,}", f"{slim['params']:,}", formats.change(dense["params"], slim["params"])),
    ]
    if dense.get("file_bytes") and slim.get("file_bytes"):
        before, after = dense["file_bytes"], slim["file_bytes"]
        rows.append(("file size (ONNX)", formats.size(before), formats.size(after), formats.change(before, after)))
    return rows + _latency_rows(result)


def _latency_rows(result: Result) -> list[Row]:
    before, after = result.dense.get("latency_ms"), result.slim.get("latency_ms")
    if not before or not after:
        return []
    rows = [
        (
            f"latency, {key}",
            formats.milliseconds(before[key]),
            formats.milliseconds(after[key]),
            formats.change(before[key], after[key]),
        )
        for key in ("p50", "p90", "p99")
    ]
    if speedup := result.metrics.get("speedup"):
        rows.append(("speedup, p50", "", f"{speedup['ratio']:.2f} times", f"{speedup['low']:.2f} to {speedup['high']:.2f}"))
    return rows


def _terms(result: Result) -> list[str]:
    """What the table's numbers were measured on."""
    images = f"the {formats.plural(result.test_samples, 'image')} of the test split" if result.test_samples else "the test split"
    sentences = [f"Top-1 and loss are measured on {images}; MACs are for one image."]
    if latency := result.slim.get("latency_ms"):
        sentences.append(
            f"Latency: {latency['provider']}, {formats.plural(latency['threads'], 'thread')}, batch {latency['batch']}, "
            f"{formats.plural(latency['runs'], 'run')} of each network, interleaved."
        )
    else:
        sentences.append("Latency was not measured.")
    if "speedup" in result.metrics:
        sentences.append("The speedup is the ratio of the p50s, beside it its 95 % interval.")
    if parity := result.metrics.get("parity"):
        agreement = f"within {parity['max_error']:.1e} on {formats.plural(parity['samples'], 'image')}"
        sentences.append(f"The exported network agrees with torch {agreement}.")
    return sentences


def _ending(result: Result) -> list[str]:
    """Why the run ended, and what became of its budget."""
    metrics, settings = result.metrics, result.settings
    sentences = [f"It ended because {metrics['reason']}."] if metrics.get("reason") else []
    budget = ", ".join(f"{key} {settings[key]}" for key in BUDGETS if key in settings)
    if budget:
        sentences.append(f"The budget ({budget}) was {'met' if metrics.get('budget_met') else 'not met'}.")
    elif "max_drop" in settings:
        allowed = f"{settings['max_drop']:g} points"
        sentences.append(f"No budget was set: the run was to go on until held-out top-1 fell by more than {allowed}.")
    if "epochs" in metrics:
        sentences.append(f"It used {formats.plural(metrics['epochs'], 'epoch')} of training.")
    return sentences


def _frozen(result: Result) -> dict[str, list[str]]:
    """Reason -> the groups that were left alone for it."""
    reasons: dict[str, list[str]] = {}
    for group in result.metrics.get("frozen", []):
        reasons.setdefault(group["reason"], []).append(group["group"])
    return reasons
