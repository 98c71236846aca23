"""From settings to a checked job: the network, its data, its history, its teacher; nothing is written."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

from slimcli.errors import ArchError, CheckpointError, RunDirError
from slimcli.measures import Score
from slimcli.networks import checkpoint, resolve
from slimcli.pipeline.origins import Known, Origins, builder
from slimcli.pipeline.outset import go_on, start, suited
from slimcli.pipeline.plan import Plan
from slimcli.pipeline.resume import check_data
from slimcli.pipeline.state import State
from slimcli.pipeline.subject import Subject, check_takes, open_subject
from slimcli.progress import Progress
from slimcli.pruning import methods
from slimcli.pruning.history import NormHistory
from slimcli.records import JsonDict
from slimcli.report.formats import plural
from slimcli.rundir import RunDir
from slimcli.settings import PruneSettings

_CHECKPOINTS = (".pt", ".pth", ".th", ".ckpt", ".bin")


@dataclass(frozen=True)
class Prepared:
    """A checked job: nothing has been written yet."""

    settings: PruneSettings
    subject: Subject
    state: State
    plan: Plan
    origins: Origins
    notes: tuple[str, ...]
    dense_test: Score | None = None
    code: str | None = None
    """Where the arch's code lies, where that is not what the checkpoint says (a run that goes on in another folder)."""
    teacher: checkpoint.Checkpoint | None = None


def prepare(settings: PruneSettings, progress: Progress | None = None) -> Prepared:
    """Read and check everything that the job needs; raises an `InputError` where something does not fit."""
    asked, settings = settings, methods.resolve(settings)
    loaded = checkpoint.load(settings.model, settings.arch, settings.trust_pickle)
    subject = open_subject(loaded, settings, batch_size=settings.batch_size, seed=settings.seed, device=settings.device)
    settings = suited(settings, asked, subject.data)
    history = _history(settings, subject)
    notes = [*subject.data.notes, *methods.without_effect(settings)]
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
    if gone := sum(map(len, subject.checkpoint.removed.values())):
        notes.append(f"this network is slim already ({plural(gone, 'filter')} fewer): what it is now counts as dense")
    settings = replace(settings, arch=subject.checkpoint.arch)
    teacher = _teacher(settings, subject)
    state, plan, origins = start(subject.model, subject.data, history, settings, _past(subject, settings.arch or ""), progress)
    if zeros := sum(int((~mask).sum()) for mask in (state.network.masks or {}).values()):
        notes.append(f"{zeros:,} weights are zero already: they stay so")
    notes += plan.forced(state.network)
    left_out, met = state.network.left_out, plan.budget.met_already(state.network)
    if left_out:
        within = "; the budget is met without them, and no filter goes" if met else ""
        notes.append(f"{plural(len(left_out), 'block')} left out whole: {', '.join(left_out)}{within}")
    elif met:
        notes.append("the network is within the budget as it is: it is handed over unchanged")
    elif settings.leave_out is not None:
        notes.append("no block is left out: none of them saves time for what is lost")
    retrained_before = bool(left_out and settings.epochs)
    if not met and not retrained_before and history.epochs == 0 and settings.criterion == "history":
        notes.append(
            f"no norm history: {plural(settings.observe_epochs, 'epoch')} observed first (--observe-epochs, or --history FILES)"
        )
    return Prepared(settings, subject, state, plan, origins, tuple(notes), teacher=teacher)


def _past(subject: Subject, arch: str) -> Known:
    known = subject.checkpoint
    return Known(known.first, builder(arch, known.classes, known.input_shape, known.left_out))


def _teacher(settings: PruneSettings, subject: Subject, run: RunDir | None = None) -> checkpoint.Checkpoint | None:
    """The checkpoint that teaches where it is not the network that pruning begins with; of a run that goes on, its copy."""
    if settings.teacher is None:
        return None
    path = str(run.teacher) if run is not None and run.teacher.exists() else settings.teacher
    try:
        teacher = checkpoint.load(path, trust_pickle=settings.trust_pickle)
    except (ArchError, CheckpointError):
        if settings.arch is None:
            raise
        teacher = checkpoint.load(path, settings.arch, settings.trust_pickle, subject.checkpoint.input_shape)
    check_takes(teacher.build().to(next(subject.model.parameters()).device), subject.data, path)
    return teacher


def prepare_again(settings: PruneSettings, run: RunDir, content: JsonDict) -> Prepared:
    """The job as its saved state says; the dense network is the one that was put beside the state."""
    settings = methods.resolve(settings)
    if not run.dense.exists():
        raise RunDirError(
            f"{run.dense} is missing: there is no network to go on from",
            f"start again from the recipe: slim run {run.recipe} -o ANOTHER_FOLDER",
        )
    code = settings.arch if settings.arch and resolve.is_foreign(settings.arch) else None
    loaded = checkpoint.load(run.dense, code)
    subject = open_subject(loaded, settings, batch_size=settings.batch_size, seed=settings.seed, device=settings.device)
    check_data(content, subject.data.fingerprint, run, subject.data.name)
    subject = replace(subject, checkpoint=replace(subject.checkpoint, arch=content["arch"]))
    settings = replace(settings, arch=content["arch"])
    past = _past(subject, code or settings.arch or "")
    state, plan, origins = go_on(content["resume"], subject.model, subject.data, settings, past)
    teacher = _teacher(replace(settings, arch=code or settings.arch), subject, run)
    dense_test = Score.of(content["dense_test"])
    return Prepared(settings, subject, state, plan, origins, tuple(content["notes"]), dense_test, code, teacher)


def _history(settings: PruneSettings, subject: Subject) -> NormHistory:
    if settings.history:
        return NormHistory.from_files(_expanded(settings.history), subject.model, settings.norm)
    if subject.checkpoint.history is None:
        return NormHistory(norm=settings.norm)
    history = NormHistory.from_state_dict(subject.checkpoint.history)
    if history.norm != settings.norm and settings.criterion != "history":
        return NormHistory(norm=settings.norm)
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
