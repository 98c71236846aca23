"""What is made of a pruning's outcome: the slim checkpoint, the metrics, the export, the latencies, the page."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from slimcli.environment import environment
from slimcli.errors import ParityError
from slimcli.measures import Score, side_of, told
from slimcli.networks import checkpoint
from slimcli.networks.checkpoint import Checkpoint
from slimcli.networks.layers import filters, layers_of
from slimcli.networks.tasks import same_outputs
from slimcli.pipeline.decisions import also_removed
from slimcli.pipeline.deploy import bench_run, describe, export_both, first_images
from slimcli.pipeline.plan import WAYS_OUT
from slimcli.pipeline.prepare import Prepared
from slimcli.pipeline.prune import Outcome
from slimcli.pipeline.state import Network
from slimcli.pipeline.subject import Subject
from slimcli.progress import Progress
from slimcli.pruning import masks
from slimcli.records import JsonDict
from slimcli.report import page
from slimcli.report.journal import layers_between
from slimcli.rundir import RunDir
from slimcli.settings import PruneSettings, milliseconds
from slimcli.training.engine import Engine


@dataclass(frozen=True)
class Result:
    """Where the run is and what it measured. `shortfall` says what was asked for and not reached; empty when all was."""

    folder: RunDir
    metrics: JsonDict
    shortfall: str


def finish(job: Prepared, folder: RunDir, outcome: Outcome, dense_test: Score, slim_test: Score, engine: Engine) -> Result:
    """The slim checkpoint, the metrics, and the deployment; doing it again after an interruption changes nothing."""
    settings, subject = job.settings, job.subject
    metrics = _metrics(job, dense_test, slim_test, outcome) | {"environment": environment() | engine.group.describe()}
    measured = {key: value for key, value in metrics["slim"].items() if key != "file_bytes"}
    first = job.origins.rewound(outcome.network).state_dict() if subject.checkpoint.first else None
    checkpoint.save(folder.model, replace(snapshot(subject, outcome.network, measured), first=first))
    _check_reloads(folder.model, job, outcome.network.model)
    _say_what_it_is(outcome, engine.progress)
    shortfall = _shortfall(settings, outcome, folder)
    folder.append(
        "end",
        reason=outcome.reason,
        **slim_test.facts(),
        held_out=metrics["held_out"],
        epochs=outcome.epochs,
        **{key: metrics[key] for key in ("training_macs", "final", "dead_filters", "sparsity", "left_out")},
        budget_met=outcome.budget_met,
        **asdict(outcome.network.cost),
    )
    folder.write_metrics(metrics)
    if settings.deploy:
        lacking = _deploy(job, outcome, folder, metrics, engine.progress)
        shortfall = "; ".join(filter(None, (shortfall, lacking)))
    folder.finish(shortfall)
    return Result(folder, metrics, shortfall)


def _say_what_it_is(outcome: Outcome, progress: Progress) -> None:
    """What a user must know of the slim network beside its figures."""
    if any(trial.chosen and trial.start == "fresh" for trial in outcome.trials):
        progress.say("the shape trained from new random weights is handed over: what pruning found is the shape, not the weights")
    if outcome.dead:
        where = ", ".join(f"{count} in {group}" for group, count in outcome.dead.items())
        progress.warn(
            f"no held-out image activates {sum(outcome.dead.values())} of the filters left ({where}); prune on, or retrain"
        )


@torch.no_grad()
def _check_reloads(path: Path, job: Prepared, slim: nn.Module) -> None:
    """Raise `ParityError` unless the saved checkpoint gives the very outputs of the network it was saved from."""
    images, arch = first_images(job.subject.data.test, 8), job.subject.checkpoint.arch
    reloaded = replace(checkpoint.load(path, arch), arch=job.code or arch).build()
    if not same_outputs(reloaded(images), copy.deepcopy(slim).cpu()(images)):
        raise ParityError(f"{path} does not give the outputs of the network it was saved from", "report this network")


def snapshot(subject: Subject, network: Network, metrics: JsonDict) -> Checkpoint:
    """The network as a checkpoint that knows where it comes from."""
    return replace(
        subject.checkpoint,
        state_dict=network.model.state_dict(),
        removed=_removed(subject, network),
        left_out=(*subject.checkpoint.left_out, *network.left_out),
        history=network.history.state_dict(),
        metrics=metrics,
        first=None,
    )


def _shortfall(settings: PruneSettings, outcome: Outcome, folder: RunDir) -> str:
    if outcome.diverged:
        return f"{outcome.diverged}; the last network that was kept is {folder.model} (try a lower --lr)"
    if not outcome.budget_met:
        way_out = _way_out(outcome.reason, "allow a larger --max-drop, smaller steps with --amount, or more --epochs")
        kept = f"the last network within the allowed drop is {folder.model}"
        return f"the budget was not reached: {outcome.reason}; {kept} ({way_out})"
    unlimited = not settings.sized and settings.iterations is None
    if unlimited and not any(step.kept for step in outcome.iterations):
        return (
            f"nothing was removed: {outcome.reason} ({_way_out(outcome.reason, 'allow a larger --max-drop, or more --epochs')})"
        )
    return ""


def _way_out(reason: str, lost: str) -> str:
    """By the reason for which the loop ended; `lost` where it was accuracy."""
    return next((way for ending, way in WAYS_OUT.items() if reason.startswith(ending)), lost)


def _deploy(job: Prepared, outcome: Outcome, folder: RunDir, metrics: JsonDict, progress: Progress) -> str:
    """Export, bench and report; returns what fell short (a network that cannot be exported still gets its report)."""
    progress.say("exporting, measuring, reporting")
    shortfall = ""
    try:
        exports = export_both(
            folder,
            job.subject.model,
            outcome.network.model,
            first_images(job.subject.data.test),
            {side: describe(job.subject.checkpoint, metrics[side]) for side in ("dense", "slim")},
        )
    except ParityError as error:
        shortfall = error.message
        metrics["notes"].append(f"not exported: {error.message}")
        folder.append("deployed", notes=metrics["notes"][-1:])
        folder.write_metrics(metrics)
    else:
        for side, export in exports.items():
            metrics[side]["file_bytes"] = export.file_bytes
        metrics["parity"] = {"max_error": exports["slim"].max_error, "samples": exports["slim"].samples}
        bench_run(folder, metrics)
        shortfall = too_slow(job.settings.latency, metrics)
        metrics["budget_met"] = outcome.budget_met and not shortfall
        metrics["reason"] += " as measured after the last removal, but not at the end" if shortfall else ""
        folder.write_metrics(metrics)
        facts = {side: {key: metrics[side][key] for key in ("file_bytes", "latency_ms")} for side in ("dense", "slim")}
        folder.append("deployed", **facts, **{key: metrics[key] for key in ("parity", "speedup", "budget_met", "reason")})
    page.write(folder)
    return shortfall


def too_slow(latency: str | float | None, metrics: JsonDict) -> str:
    """What is to be said where the last measurement, its interval allowed for, is beyond the budget in time; else empty."""
    if latency is None or not metrics["budget_met"]:
        return ""
    slim, dense = (metrics[side]["latency_ms"]["p50"] for side in ("slim", "dense"))
    limit = milliseconds(latency, dense)
    if metrics["speedup"]["high"] * limit >= dense:
        return ""
    low, high = (1 / metrics["speedup"][end] for end in ("high", "low"))
    return (
        f"the network takes {slim:.3g} ms at the end ({slim / dense:.1%} of the dense one's, {low:.1%} to {high:.1%}), more than "
        f"the {limit:.3g} ms of --latency {latency}; it took less when it was last pruned (ask for a little less, or prune on a "
        "quieter machine)"
    )


def _removed(subject: Subject, network: Network) -> dict[str, list[int]]:
    """What is gone, in the numbering of the network as its builder makes it."""
    merged = {layer: list(gone) for layer, gone in subject.checkpoint.removed.items()}
    layers = layers_of(subject.model)
    for layer, gone in network.removed.items():
        width = filters(layers[layer])
        merged[layer] = also_removed(merged.get(layer, []), width, [c for c in range(width) if c not in set(gone)])
    return merged


def frozen(network: Network) -> list[dict[str, str]]:
    """The groups that no method may choose from, and why; of a masked network none, as masks are on all layers."""
    if network.masks is not None:
        return []
    return [{"group": group.name, "reason": group.reason} for group in network.groups if not group.prunable]


def _sparsity(network: Network) -> JsonDict | None:
    """How many of a masked network's weights are held at zero: they are in the file, and computed with like all others; and how
    many filters were taken out because no weight of theirs was left.
    """
    if network.masks is None:
        return None
    weights, alive = sum(mask.numel() for mask in network.masks.values()), masks.alive(network.masks)
    taken = sum(map(len, network.removed.values()))
    return {"weights": weights, "zeros": weights - alive, "filters_removed": taken}


def _metrics(job: Prepared, dense: Score, slim: Score, outcome: Outcome) -> JsonDict:
    dense_cost, cost = job.plan.budget.dense_cost, outcome.network.cost
    return {
        "schema": 1,
        "method": job.settings.method,
        "arch": job.settings.arch,
        "data": job.subject.data.name,
        "dense": side_of(dense, dense_cost),
        "slim": side_of(slim, cost),
        "removed": {"macs": 1 - cost.macs / dense_cost.macs, "params": 1 - cost.params / dense_cost.params},
        "held_out": {"dense": outcome.dense_held_out.facts(), "slim": outcome.held_out.facts()},
        "epochs": outcome.epochs,
        "training_macs": outcome.training_macs,
        "reason": outcome.reason,
        "budget_met": outcome.budget_met,
        "iterations": [
            told(asdict(step), dense.measure) | {"flow_distance": list(step.flow_distance)} for step in outcome.iterations
        ],
        "final": {
            "distilled": job.settings.distill,
            "chosen": next((trial.start for trial in outcome.trials if trial.chosen), None),
            "trials": [told(asdict(trial), dense.measure) for trial in outcome.trials],
        },
        "dead_filters": outcome.dead,
        "sparsity": _sparsity(outcome.network),
        "layers": layers_between(*([asdict(layer) for layer in each.layers] for each in (dense_cost, cost))),
        "left_out": list(outcome.network.left_out),
        "frozen": frozen(outcome.network),
        "notes": list(job.notes),
    }
