"""`slim prune` as a whole: from a file to a run folder with the slim network, its export, its latency and its report."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from slimcli.environment import environment
from slimcli.errors import CheckpointError, DivergedError, Terminated
from slimcli.networks import checkpoint, resolve
from slimcli.networks.checkpoint import Checkpoint
from slimcli.networks.cost import layers_of
from slimcli.pipeline.deploy import bench_run, describe, export_both, first_images
from slimcli.pipeline.prune import Network, Outcome, Plan, also_removed, prune, start
from slimcli.pipeline.subject import Subject, open_subject
from slimcli.progress import Progress
from slimcli.pruning import methods
from slimcli.pruning.history import NormHistory
from slimcli.records import JsonDict, NetworkCost, Score
from slimcli.report import page
from slimcli.rundir import RunDir, default_path
from slimcli.settings import PruneSettings
from slimcli.training.engine import Engine


@dataclass(frozen=True)
class Prepared:
    """A checked job: nothing has been written yet."""

    settings: PruneSettings
    subject: Subject
    network: Network
    plan: Plan
    notes: tuple[str, ...]


def prepare(settings: PruneSettings) -> Prepared:
    """Read and check everything that the job needs; raises an `InputError` where something does not fit."""
    settings = methods.resolve(settings)
    subject = open_subject(
        settings.model,
        settings,
        arch=settings.arch,
        trust_pickle=settings.trust_pickle,
        batch_size=settings.batch_size,
        seed=settings.seed,
        device=settings.device,
    )
    history = _history(settings, subject)
    notes = [note for note in (subject.data.note,) if note]
    if subject.checkpoint.foreign and settings.val_data is None:
        notes.append(
            "this checkpoint was trained elsewhere, perhaps on the images held out here: held-out accuracy, and every choice "
            "made on it, may be too bright; give images it never saw with --val-data"
        )
    if history.epochs == 0 and settings.criterion == "history":
        notes.append(
            f"no norm history: {settings.observe_epochs} epochs are observed first (--observe-epochs, or --history FILES)"
        )
    settings = replace(settings, arch=subject.checkpoint.arch)
    network, plan = start(subject.model, subject.data, history, settings)
    return Prepared(settings, subject, network, plan, tuple(notes))


def _history(settings: PruneSettings, subject: Subject) -> NormHistory:
    if settings.history:
        return NormHistory.from_files(settings.history, subject.model, settings.norm)
    if subject.checkpoint.history is None:
        return NormHistory(norm=settings.norm)
    history = NormHistory.from_state_dict(subject.checkpoint.history)
    if history.norm != settings.norm:
        raise CheckpointError(
            f"{settings.model} has a history of {history.norm} norms, and --norm asks for {settings.norm}",
            f"use --norm {history.norm}, or train again with --norm {settings.norm}",
        )
    history.check_fits(subject.model)
    return history


def dry_run(settings: PruneSettings) -> JsonDict:
    """What `run` would start from and remove first, without training or writing."""
    job = prepare(settings)
    network = job.network
    return {
        "method": job.settings.method,
        "arch": job.settings.arch,
        "data": job.subject.data.name,
        "macs": network.cost.macs,
        "params": network.cost.params,
        "history_epochs": network.history.epochs,
        "first_iteration": job.plan.counts(network),
        "frozen": {group.name: group.reason for group in network.groups if not group.prunable},
        "notes": list(job.notes),
    }


@dataclass(frozen=True)
class Result:
    """Where the run is and what it measured. `shortfall` says what was asked for and not reached; empty when all was."""

    folder: RunDir
    metrics: JsonDict
    shortfall: str


def run(settings: PruneSettings, out: Path | None = None, progress: Progress | None = None, overwrite: bool = False) -> Result:
    """Prune into a run folder (`out`, or a free one under runs/).

    Everything is checked before the folder is touched. Raises an `InputError`, or `DivergedError` when the loss is lost
    (the last good network stays in the run folder).
    """
    progress = progress or Progress()
    if out is not None:
        RunDir(out).check_free(overwrite)
    job = prepare(settings)
    settings = job.settings
    folder = RunDir(out or default_path(settings.arch or "network", settings.method))
    engine = Engine(settings, progress)
    with folder.create({"prune": _resolved(job).to_recipe()}, overwrite):
        for note in job.notes:
            progress.warn(note)
        try:
            metrics, shortfall = _carry_out(job, folder, engine)
        except (KeyboardInterrupt, Terminated):
            folder.append("interrupted")
            if folder.last_good.exists():
                progress.say(f"the last good network is {folder.last_good}")
            raise
    return Result(folder, metrics, shortfall)


def _resolved(job: Prepared) -> PruneSettings:
    """The settings with everything that was found out filled in, so that the recipe stands alone."""
    data = job.subject.data
    return replace(
        job.settings,
        model=str(Path(job.settings.model).resolve()),
        arch=job.settings.arch if job.subject.checkpoint.foreign or resolve.is_foreign(job.settings.arch or "") else None,
        data=data.name,
        mean=data.mean,
        std=data.std,
        holdout=data.spec.get("holdout", job.settings.holdout),
    )


def _carry_out(job: Prepared, folder: RunDir, engine: Engine) -> tuple[JsonDict, str]:
    settings, subject, data = job.settings, job.subject, job.subject.data
    dense_score = engine.evaluate(subject.model, data.test)
    dense_cost = job.network.cost
    engine.progress.say(f"dense: top-1 {dense_score.top1:.2f}, {dense_cost.macs:,} MACs, {dense_cost.params:,} parameters")
    folder.append("start", method=settings.method, arch=settings.arch, data=data.name, dense=asdict(dense_score))
    try:
        outcome = prune(
            job.network,
            job.plan,
            data,
            settings,
            engine,
            folder.append,
            lambda network: checkpoint.save(folder.last_good, _snapshot(subject, network, {})),
        )
    except DivergedError as error:
        kept = folder.last_good if folder.last_good.exists() else settings.model
        raise DivergedError(f"{error.message}; the last good network is {kept}", error.hint) from error
    slim_score = engine.evaluate(outcome.network.model, data.test)
    metrics = _metrics(job, dense_score, dense_cost, slim_score, outcome)
    measured = {key: value for key, value in metrics["slim"].items() if key != "file_bytes"}
    checkpoint.save(folder.model, _snapshot(subject, outcome.network, measured))
    folder.append("end", reason=outcome.reason, **asdict(slim_score))
    folder.write_metrics(metrics)
    if settings.deploy:
        _deploy(job, outcome, folder, metrics, engine.progress)
    return metrics, _shortfall(outcome, folder)


def _snapshot(subject: Subject, network: Network, metrics: JsonDict) -> Checkpoint:
    return replace(
        subject.checkpoint,
        state_dict=network.model.state_dict(),
        removed=_removed(subject, network),
        history=network.history.state_dict(),
        metrics=metrics,
    )


def _shortfall(outcome: Outcome, folder: RunDir) -> str:
    if not outcome.budget_met:
        return (
            f"the budget was not reached: {outcome.reason}; the last network within the allowed drop is {folder.model} "
            "(allow a larger --max-drop, smaller steps with --amount, or more --epochs)"
        )
    if not any(step.kept for step in outcome.iterations):
        return f"nothing was removed: {outcome.reason} (allow a larger --max-drop, or more --epochs)"
    return ""


def _deploy(job: Prepared, outcome: Outcome, folder: RunDir, metrics: JsonDict, progress: Progress) -> None:
    progress.say("exporting, measuring, reporting")
    exports = export_both(
        folder,
        job.subject.model,
        outcome.network.model,
        first_images(job.subject.data.test),
        {side: describe(job.subject.checkpoint, metrics[side]["top1"]) for side in ("dense", "slim")},
    )
    for side, export in exports.items():
        metrics[side]["file_bytes"] = export.file_bytes
    metrics["parity"] = {"max_error": exports["slim"].max_error, "samples": exports["slim"].samples}
    bench_run(folder, metrics)
    page.write(folder)


def _removed(subject: Subject, network: Network) -> dict[str, list[int]]:
    """What is gone, in the numbering of the network as its builder makes it."""
    merged = {layer: list(gone) for layer, gone in subject.checkpoint.removed.items()}
    layers = layers_of(subject.model)
    for layer, gone in network.removed.items():
        width = layers[layer].weight.shape[0]
        merged[layer] = also_removed(merged.get(layer, []), width, [c for c in range(width) if c not in set(gone)])
    return merged


def _metrics(job: Prepared, dense: Score, dense_cost: NetworkCost, slim: Score, outcome: Outcome) -> JsonDict:
    cost = outcome.network.cost
    return {
        "schema": 1,
        "method": job.settings.method,
        "arch": job.settings.arch,
        "data": job.subject.data.name,
        "dense": {
            "top1": dense.top1,
            "loss": dense.loss,
            "macs": dense_cost.macs,
            "params": dense_cost.params,
            "file_bytes": None,
        },
        "slim": {"top1": slim.top1, "loss": slim.loss, "macs": cost.macs, "params": cost.params, "file_bytes": None},
        "removed": {"macs": 1 - cost.macs / dense_cost.macs, "params": 1 - cost.params / dense_cost.params},
        "held_out": {"dense": asdict(outcome.dense_held_out), "slim": asdict(outcome.held_out)},
        "epochs": outcome.epochs,
        "reason": outcome.reason,
        "budget_met": outcome.budget_met,
        "iterations": [asdict(step) for step in outcome.iterations],
        "layers": [
            {
                "name": before.name,
                "type": before.type,
                "filters": [before.filters, after.filters],
                "macs": [before.macs, after.macs],
                "params": [before.params, after.params],
            }
            for before, after in zip(dense_cost.layers, cost.layers, strict=True)
        ],
        "frozen": [{"group": g.name, "reason": g.reason} for g in outcome.network.groups if not g.prunable],
        "notes": list(job.notes),
        "environment": environment(),
    }
