"""`slim prune` as a whole: from a file to a run folder with the slim network, its export, its latency and its report."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from glob import glob
from pathlib import Path

import torch
from torch import nn

from slimcli.data.sources import absolute
from slimcli.environment import environment
from slimcli.errors import CheckpointError, DivergedError, FellShortError, ParityError, RunDirError, Terminated
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

_CHECKPOINTS = (".pt", ".pth", ".th", ".ckpt", ".bin")


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
    loaded = checkpoint.load(settings.model, settings.arch, settings.trust_pickle)
    subject = open_subject(loaded, settings, batch_size=settings.batch_size, seed=settings.seed, device=settings.device)
    history = _history(settings, subject)
    notes = list(subject.data.notes)
    if subject.checkpoint.foreign and settings.val_data is None:
        notes.append(
            "this checkpoint was trained elsewhere, perhaps on the images held out here: held-out accuracy, and every choice "
            "made on it, may be too bright; give images it never saw with --val-data"
        )
    elif loaded.data.get("name") != subject.data.name and settings.val_data is None:
        notes.append(
            f"the network was trained on {loaded.data.get('name')}, not on {subject.data.name}: if they share images, some of "
            "those held out were trained on; give images it never saw with --val-data"
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
        return NormHistory.from_files(_expanded(settings.history), subject.model, settings.norm)
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


def _expanded(names: Sequence[str]) -> list[str]:
    """The files that `--history` names: files as they are, the checkpoints of a folder or a pattern in natural order."""
    files: list[str] = []
    for name in names:
        if Path(name).is_file():
            found = [name]
        else:
            pattern = f"{name}/*" if Path(name).is_dir() else name
            found = [path for path in glob(pattern) if Path(path).suffix in _CHECKPOINTS]  # noqa: PTH207 - may be absolute
        if not found:
            raise CheckpointError(f"--history {name} names no checkpoint", "name a file, a folder of checkpoints or a pattern")
        files += sorted(found, key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)])
    return files


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
        _check_apart(out, [settings.model, *(settings.history or ())])
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


def _check_apart(out: Path, inputs: Sequence[str]) -> None:
    """Raise `RunDirError` where the run folder holds what the run is to start from: overwriting would destroy it."""
    for name in inputs:
        if Path(name).resolve().is_relative_to(out.resolve()):
            raise RunDirError(f"{name} lies in {out}, the run folder that would be written", "name another folder with -o")


def _resolved(job: Prepared) -> PruneSettings:
    """The settings with everything that was found out filled in, so that the recipe stands alone."""
    data, arch = job.subject.data, job.settings.arch or ""
    return replace(
        job.settings,
        model=str(Path(job.settings.model).resolve()),
        arch=absolute(arch) if job.subject.checkpoint.foreign or resolve.is_foreign(arch) else None,
        history=tuple(str(Path(name).resolve()) for name in job.settings.history) if job.settings.history else None,
        val_data=absolute(job.settings.val_data) if job.settings.val_data else data.spec.get("val_data"),
        data=data.name,
        data_root=data.spec.get("root"),
        mean=data.mean,
        std=data.std,
        holdout=data.spec.get("holdout"),
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
    _check_reloads(folder.model, subject, outcome.network.model)
    folder.append("end", reason=outcome.reason, **asdict(slim_score))
    folder.write_metrics(metrics)
    if settings.deploy:
        undeployed = _deploy(job, outcome, folder, metrics, engine.progress)
        return metrics, "; ".join(filter(None, (_shortfall(job.settings, outcome, folder), undeployed)))
    return metrics, _shortfall(job.settings, outcome, folder)


@torch.no_grad()
def _check_reloads(path: Path, subject: Subject, slim: nn.Module) -> None:
    """Raise `ParityError` unless the saved checkpoint gives the very outputs of the network it was saved from."""
    images = first_images(subject.data.test, 8)
    reloaded = checkpoint.load(path, subject.checkpoint.arch).build()
    if not torch.equal(reloaded(images), copy.deepcopy(slim).cpu()(images)):
        raise ParityError(f"{path} does not give the outputs of the network it was saved from", "report this network")


def _snapshot(subject: Subject, network: Network, metrics: JsonDict) -> Checkpoint:
    return replace(
        subject.checkpoint,
        state_dict=network.model.state_dict(),
        removed=_removed(subject, network),
        history=network.history.state_dict(),
        metrics=metrics,
    )


def _shortfall(settings: PruneSettings, outcome: Outcome, folder: RunDir) -> str:
    if not outcome.budget_met:
        return (
            f"the budget was not reached: {outcome.reason}; the last network within the allowed drop is {folder.model} "
            "(allow a larger --max-drop, smaller steps with --amount, or more --epochs)"
        )
    unlimited = not any((settings.macs, settings.params, settings.widths, settings.iterations))
    if unlimited and not any(step.kept for step in outcome.iterations):
        return f"nothing was removed: {outcome.reason} (allow a larger --max-drop, or more --epochs)"
    return ""


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
            {side: describe(job.subject.checkpoint, metrics[side]["top1"]) for side in ("dense", "slim")},
        )
    except FellShortError as error:
        shortfall = error.message
        metrics["notes"].append(f"not exported: {error.message}")
        folder.write_metrics(metrics)
    else:
        for side, export in exports.items():
            metrics[side]["file_bytes"] = export.file_bytes
        metrics["parity"] = {"max_error": exports["slim"].max_error, "samples": exports["slim"].samples}
        bench_run(folder, metrics)
    page.write(folder)
    return shortfall


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
