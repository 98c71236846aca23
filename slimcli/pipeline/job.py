"""`slim prune` as a whole: from a file to a run folder with the slim network, its export, its latency and its report."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from slimcli import processes
from slimcli.data.sources import absolute
from slimcli.environment import environment
from slimcli.measures import Score
from slimcli.networks import checkpoint, resolve
from slimcli.pipeline.finish import Result, finish, frozen, snapshot
from slimcli.pipeline.prepare import Prepared, prepare, prepare_again
from slimcli.pipeline.prune import Loop
from slimcli.pipeline.resume import close_finished, cut_journal, folder_of, read_state, resumable, settings_of
from slimcli.pipeline.state import DONE, Nowhere, State, checksum
from slimcli.pipeline.work import Work
from slimcli.progress import Progress
from slimcli.records import JsonDict
from slimcli.rundir import RunDir, default_path
from slimcli.settings import PruneSettings
from slimcli.training.engine import Engine


def dry_run(settings: PruneSettings) -> JsonDict:
    """What `run` would start from and remove first, without training or writing."""
    job = prepare(settings)
    network, counts = job.state.network, job.plan.counts(job.state.network)
    if network.masks is None:
        counts = {group.name: counts[group.name] * group.per_unit for group in network.prunable}
    return {
        "method": job.settings.method,
        "arch": job.settings.arch,
        "data": job.subject.data.name,
        "macs": network.cost.macs,
        "params": network.cost.params,
        "history_epochs": network.history.epochs,
        "first_iteration": counts,
        "frozen": {each["group"]: each["reason"] for each in frozen(network)},
        "notes": list(job.notes),
    }


def run(
    settings: PruneSettings, out: Path | None = None, progress: Progress | None = None, overwrite: bool = False
) -> Result | None:
    """Prune into a run folder (`out`, or a free one under runs/). None in a process that only helps process 0.

    Everything is checked before the folder is touched. Raises an `InputError`; or a `FellShortError`, after which the run
    can go on (`resume`).
    """
    progress = progress or Progress()
    if out is not None and processes.is_main():
        RunDir(out).check_free(overwrite)
        RunDir(out).check_apart([settings.model, settings.teacher, *(settings.history or ())])
    job = prepare(settings, progress if processes.is_main() else None)
    engine = _launched(job, progress)
    if not processes.is_main():
        return _carry_out(job, None, engine)
    folder = RunDir(out or default_path(job.settings.arch or "network", job.settings.method))
    with resumable(folder, "prune", progress), folder.create({"prune": _resolved(job, engine).to_recipe()}, overwrite):
        _put_dense_aside(job, folder)
        return _carry_out(job, folder, engine)


def resume(path: Path, changes: Mapping[str, Any] | None = None, progress: Progress | None = None) -> Result | None:
    """Go on with a run from its last saved state; `changes` are settings of how and where to compute. None as in `run`.

    Raises an `InputError` where there is nothing to go on with, or the data are no longer what they were.
    """
    progress = progress or Progress()
    folder = folder_of(path)
    settings = settings_of(folder, PruneSettings, changes or {})
    if (shortfall := close_finished(folder)) is not None:
        progress.say(f"the run in {path} is complete: nothing to go on with")
        return Result(folder, folder.read_metrics(), shortfall) if processes.is_main() else None
    if not processes.is_main():
        content = read_state(folder, Progress())
        job = prepare_again(settings, folder, content) if content else prepare(settings)
        return _carry_out(job, None, _launched(job, progress))
    with resumable(folder, "prune", progress), folder.reopen():
        content = read_state(folder, progress)
        if content is None:
            progress.say("there is no saved state: starting from the beginning")
            job = prepare(settings, progress)
        else:
            job = prepare_again(settings, folder, content)
            progress.say(f"going on: {_where(job.state)}")
        engine = _launched(job, progress)
        cut_journal(folder, content["journal"] if content else 0, progress)
        if changes:
            folder.write_recipe({"prune": settings.to_recipe()})
        if content is None:
            _put_dense_aside(job, folder)
        else:
            folder.append("resumed", time=time.time(), **(changes or {}))
        return _carry_out(job, folder, engine)


_STAGES = {
    "shorten": "leaving out blocks",
    "observe": "observing the norm history",
    "choose": "choosing filters",
    "tie": "pulling pairs together",
    "operate": "removing",
    "retrain": "retraining",
    "judge": "measuring what is left of the score",
    "clear": "removing dead filters",
    "final": "the last retraining",
    "compare": "comparing last retrainings",
    "accept": "measuring the last accuracy",
    DONE: "all training is done",
}


def _where(state: State) -> str:
    """Where a saved state stands, in words."""
    epochs = f", {state.fit.epochs} epoch(s) of it done" if state.fit else ""
    iteration = (
        f"iteration {len(state.iterations) + 1}, "
        if state.stage in ("shorten", "choose", "tie", "operate", "retrain", "judge")
        else ""
    )
    return f"{iteration}{_STAGES[state.stage]}{epochs}"


def _launched(job: Prepared, progress: Progress) -> Engine:
    """The engine, in all its processes, which must have the same data and network before them."""
    engine = Engine(job.settings, progress if processes.is_main() else Progress())
    engine.group.launch()
    engine.group.agree("data", job.subject.data.fingerprint)
    engine.group.agree("a network", f"{checksum(job.subject.model)} {checksum(job.state.network.model)} {job.state.stage}")
    job.plan.budget.take(engine.group.broadcast(job.plan.budget.aims()))  # another machine may run other widths fast
    return engine


def _put_dense_aside(job: Prepared, folder: RunDir) -> None:
    """Keep the network that the run starts from: its file may be gone, or another, when the run goes on."""
    known = job.subject.checkpoint
    arch = resolve.absolute(known.arch)  # as in the recipe
    checkpoint.save(folder.dense, replace(known, state_dict=job.subject.model.state_dict(), metrics={}, arch=arch))
    if job.teacher is not None:
        checkpoint.save(folder.teacher, replace(job.teacher, arch=resolve.absolute(job.teacher.arch), first=None))


class _StateFile:
    """Saved states of a run folder: a checkpoint of the last kept network, and what going on needs."""

    def __init__(self, folder: RunDir, job: Prepared, dense_test: Score) -> None:
        self._folder, self._job, self._dense_test = folder, job, dense_test

    def save(self, state: State) -> None:
        """Write it, and keep the one before."""
        resume = state.content()
        content = checkpoint.content_of(snapshot(self._job.subject, state.kept, {})) | {
            "state_dict": resume["kept"]["state_dict"],  # the same tensors: they are written once
            "history": resume["kept"]["history"],
            "resume": resume,
            "dense_test": self._dense_test.facts(),
            "notes": list(self._job.notes),
            "fingerprint": self._job.subject.data.fingerprint,
            "journal": self._folder.journal_size(),
        }
        self._folder.save_state(checkpoint.written(content))

    def load(self) -> JsonDict:
        """The last one."""
        content = read_state(self._folder, Progress())
        assert content is not None
        return dict(content["resume"])


def _resolved(job: Prepared, engine: Engine) -> PruneSettings:
    """The settings with everything that was found out filled in, so that the recipe stands alone."""
    data, arch = job.subject.data, job.settings.arch or ""
    return replace(
        job.settings,
        model=str(Path(job.settings.model).resolve()),
        arch=resolve.absolute(arch) if job.subject.checkpoint.foreign or resolve.is_foreign(arch) else None,
        teacher=str(Path(job.settings.teacher).resolve()) if job.settings.teacher else None,
        history=tuple(str(Path(name).resolve()) for name in job.settings.history) if job.settings.history else None,
        val_data=absolute(job.settings.val_data) if job.settings.val_data else data.spec.get("val_data"),
        data=data.name,
        data_root=data.spec.get("root"),
        mean=data.mean,
        std=data.std,
        holdout=data.spec.get("holdout"),
        round_to=tuple(job.plan.budget.multiples.values()) or job.settings.round_to,
        leave_out=job.state.network.left_out or None,
        precision=engine.group.describe()["precision"],
    )


def _carry_out(job: Prepared, folder: RunDir | None, engine: Engine) -> Result | None:
    """The loop, and (in process 0, which has the folder) what is made of its outcome."""
    settings, subject, data, state = job.settings, job.subject, job.subject.data, job.state
    dense_test = job.dense_test or engine.evaluate(subject.model, data.test)
    state.dense = state.dense or engine.evaluate(subject.model, data.held_out)
    if not state.dense.measure.is_top1 and state.dense.value == 0:
        engine.progress.warn(
            f"the dense network's {state.dense.measure.name} is 0, and --max-drop is a share of it: none may be lost"
        )
    teacher = job.teacher.build().to(engine.device) if job.teacher is not None else None
    work = Work(state, job.plan, job.origins, data, settings, engine, teacher)
    if folder is None:
        work.store = Nowhere()
    else:
        work.note, work.store = folder.append, _StateFile(folder, job, dense_test)
        if job.dense_test is None:
            _note_start(job, folder, dense_test, engine)
            work.store.save(state)
    outcome = Loop(work).run()
    slim_test = engine.evaluate(outcome.network.model, data.test)
    result = finish(job, folder, outcome, dense_test, slim_test, engine) if folder is not None else None
    engine.group.wait_for_all()
    return result


def _note_start(job: Prepared, folder: RunDir, dense_test: Score, engine: Engine) -> None:
    cost, held_out = job.plan.budget.dense_cost, job.state.dense
    assert held_out is not None
    measure = dense_test.measure
    for note in job.notes:
        engine.progress.warn(note)
    engine.progress.say(
        f"dense: {measure.title} {measure.figure(dense_test.value)}, {cost.macs:,} MACs, {cost.params:,} parameters"
    )
    folder.append(
        "start",
        method=job.settings.method,
        arch=job.settings.arch,
        data=job.subject.data.name,
        dense=dense_test.facts() | asdict(cost),
        held_out=held_out.facts(),
        frozen=frozen(job.state.network),
        left_out=list(job.state.network.left_out),
        notes=list(job.notes),
        environment=environment() | engine.group.describe(),
        time=time.time(),
    )
