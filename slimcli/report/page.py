"""The page of one run: what was gained, what it cost, and how it came about."""

from __future__ import annotations

import tomllib
from pathlib import Path

from slimcli.measures import measure_of, value_of
from slimcli.records import JsonDict
from slimcli.report import formats
from slimcli.report.html import write_page
from slimcli.report.plots import plots
from slimcli.report.result import Result, headline, read
from slimcli.rundir import RunDir

BUDGETS = ("macs", "params", "widths", "iterations", "latency")
NOT_YET = "not measured yet"

Row = tuple[str, str, str, str]


def write(run: RunDir) -> Path:
    """Write `report.html` into the run folder: one file that needs nothing else.

    The run may be unfinished, or one of `slim train`; `RunDirError` where it has not begun.
    """
    result = read(run)
    return write_page(run.report, "page.html.j2", plots=plots(result), **_content(result))


def write_card(run: RunDir) -> Path:
    """Write `card.md` into the run folder: the page's words and tables in Markdown, to go along with the network."""
    return write_page(run.card, "page.md.j2", **_content(read(run)))


def _content(result: Result) -> JsonDict:
    return {
        "metrics": result.metrics,
        "settings": next(iter(tomllib.loads(result.recipe).values()), {}),
        "own_code": ":" in result.metrics["arch"] and not result.metrics["arch"].startswith(("torchvision:", "timm:")),
        "recipe": result.recipe,
        "subject": subject(result),
        "headline": headline(result),
        "head": ("", "dense", "slim", "change") if result.pruned else ("", "network"),
        "summary": summary(result),
        "terms": _terms(result),
        "finished": result.finished,
        "ended": "How the run ended" if result.finished else "Where the run is",
        "ending": _ending(result),
        "next_step": result.next_step,
        "frozen": _frozen(result),
    }


def subject(result: Result) -> str:
    """What was done to which network."""
    metrics = result.metrics
    done = f"pruned with {metrics['method']}" if result.pruned else "trained"
    return f"{metrics['arch']} on {metrics['data']}, {done}"


def summary(result: Result) -> list[tuple[str, ...]]:
    """What was measured: its name, dense, slim, change (of a training run its name and value).

    What the run did not measure is left out; what it has yet to measure says so.
    """
    dense, slim = result.dense, result.slim
    counts = (("MACs", "macs"), ("parameters", "params"))
    if not result.pruned:
        scores = ((result.measure.heading, _score(dense)), ("loss", _loss(dense.get("loss"))))
        return [*scores, *((name, f"{dense[key]:,}") for name, key in counts)]
    rows: list[tuple[str, ...]] = [_score_row(result.measure.heading, dense, slim)]
    if not result.finished:
        rows.append(
            _score_row(f"{result.measure.title}, held out", *(result.metrics["held_out"][side] for side in ("dense", "slim")))
        )
    more = formats.signed(slim["loss"] - dense["loss"], 4) if result.finished else ""
    rows.append(("loss", _loss(dense["loss"]), _loss(slim["loss"]), more))
    rows += [(name, f"{dense[key]:,}", f"{slim[key]:,}", formats.change(dense[key], slim[key])) for name, key in counts]
    if sparsity := result.metrics.get("sparsity"):
        rows.append(("weights at zero", "", formats.percent(sparsity["zeros"] / sparsity["weights"]), ""))
    if dense.get("file_bytes") and slim.get("file_bytes"):
        before, after = dense["file_bytes"], slim["file_bytes"]
        rows.append(("file size (ONNX)", formats.size(before), formats.size(after), formats.change(before, after)))
    return rows + _latency_rows(result) + _int8_rows(result)


def _int8_rows(result: Result) -> list[tuple[str, ...]]:
    """What both networks are in INT8, where that was measured."""
    small = result.metrics.get("int8")
    if not small:
        return []
    dense, slim = small["dense"], small["slim"]
    sizes = dense["file_bytes"], slim["file_bytes"]
    times = dense["latency_ms"]["p50"], slim["latency_ms"]["p50"]
    return [
        _score_row(f"{result.measure.title}, INT8", dense, slim),
        ("file size, INT8", *map(formats.size, sizes), formats.change(*sizes)),
        ("latency, p50, INT8", *map(formats.milliseconds, times), formats.change(*times)),
    ]


def _score_row(name: str, dense: JsonDict, slim: JsonDict) -> Row:
    change = "" if value_of(slim) is None else formats.score_change(dense, slim)
    return name, _score(dense), _score(slim), change


def _score(facts: JsonDict) -> str:
    return NOT_YET if value_of(facts) is None else formats.score(facts)


def _loss(value: float | None) -> str:
    return NOT_YET if value is None else f"{value:.4f}"


def _latency_rows(result: Result) -> list[tuple[str, ...]]:
    before, after = result.dense.get("latency_ms"), result.slim.get("latency_ms")
    if not before or not after:
        return []
    rows: list[tuple[str, ...]] = [
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
    sentences = [f"{result.measure.opening} and loss are measured on {images}; MACs are for one image."]
    if not result.finished and result.pruned:
        sentences.append("Slim is the last network that was kept so far; it is measured on the test split when the run ends.")
    if latency := result.slim.get("latency_ms"):
        sentences.append(
            f"Latency: {latency['provider']}, {formats.plural(latency['threads'], 'thread')}, batch {latency['batch']}, "
            f"{formats.plural(latency['runs'], 'run')} of each network, interleaved."
        )
    elif result.pruned:
        sentences.append("Latency was not measured.")
    if "speedup" in result.metrics:
        sentences.append("The speedup is the ratio of the p50s, beside it its 95 % interval.")
    if parity := result.metrics.get("parity"):
        agreement = f"within {parity['max_error']:.1e} on {formats.plural(parity['samples'], 'image')}"
        sentences.append(f"The exported network agrees with torch {agreement}.")
    return sentences


def _ending(result: Result) -> list[str]:
    """Why the run ended or where it is, and what became of its budget."""
    metrics, settings = result.metrics, result.settings
    sentences = []
    if metrics.get("reason"):
        sentences.append(f"It ended because {metrics['reason']}." if result.finished else f"It is {metrics['reason']}.")
    budget = ", ".join(f"{key} {settings[key]}" for key in BUDGETS if key in settings)
    if budget:
        became = "was met" if metrics.get("budget_met") else "was not met" if result.finished else "is not met yet"
        sentences.append(f"The budget ({budget}) {became}.")
    elif "max_drop" in settings:
        measure = result.measure
        allowed = f"held-out {measure.title} lost more than {settings['max_drop']:g} {measure.allowance}"
        sentences.append(f"No budget was set: the run was to go on until {allowed}.")
    if sparsity := metrics.get("sparsity"):
        share = formats.percent(sparsity["zeros"] / sparsity["weights"])
        sentences.append(
            f"Masks hold {share} of its {sparsity['weights']:,} weights at zero; they are stored, and computed with."
        )
        if taken := sparsity.get("filters_removed"):
            sentences.append(
                f"{formats.plural(taken, 'filter')} without a weight left were taken out: that is what it is smaller by."
            )
    sentences += _last_retraining(metrics)
    if "epochs" in metrics:
        used = metrics["epochs"] if result.finished or result.pruned else len(result.of_kind("epoch"))
        sentences.append(f"It used {formats.plural(used, 'epoch')} of training.")
    return sentences


_STARTS = {
    "finetune": "where pruning had left the weights",
    "rewind": "the survivors' first weights (where those are unknown, the weights that were given)",
    "fresh": "new random weights: what pruning found here is the shape, not the weights",
}


def _last_retraining(metrics: JsonDict) -> list[str]:
    """Where the last retraining started, what else was tried, and what is dead in the network that came of it."""
    final, measure = metrics.get("final") or {}, measure_of(metrics["dense"])
    sentences = []
    if final.get("chosen"):
        taught = ", taught by a trained network," if final["distilled"] else ""
        sentences.append(f"The last retraining{taught} started from {_STARTS[final['chosen']]}.")
    if len(final.get("trials", [])) > 1:
        tried = [
            f"{trial['start']}{' continued' * trial['continued']} "
            f"{'lost its loss' if trial.get('lost') else measure.figure(value_of(trial)) + measure.unit} "
            f"({formats.plural(trial['epochs'], 'epoch')})"
            for trial in final["trials"]
        ]
        sentences.append(f"Tried, by held-out {measure.title}: {', '.join(tried)}.")
    if dead := metrics.get("dead_filters"):
        layers = ", ".join(f"{count} in {group}" for group, count in dead.items())
        sentences.append(f"No held-out image activates {formats.plural(sum(dead.values()), 'filter')} of it ({layers}).")
    return sentences


def _frozen(result: Result) -> dict[str, list[str]]:
    """Reason -> the groups that were left alone for it."""
    reasons: dict[str, list[str]] = {}
    for group in result.metrics.get("frozen", []):
        reasons.setdefault(group["reason"], []).append(group["group"])
    return reasons
