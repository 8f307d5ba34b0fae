"""A search over several objectives with optuna: resumable, by any number of workers."""

from __future__ import annotations

import platform
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .locks import hold, is_held
from .samplers import ERROR, PLACE, counts, import_optuna, places, sampler_by_place
from .space import Axis, Scalar

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

_SQLITE = "sqlite:///"
_WORKER, _DRAWN = "worker", "drawn"
_POLL = 0.5  # seconds between looks at what other workers do
_GRACE = 6  # heartbeats that may be missed
Score = Callable[[dict[str, Scalar], Callable[[str, Any], None]], Sequence[float]]
"""(point by axis name, a function that keeps a remark with the trial) to the objectives."""


class Failed(Exception):
    """A point that cannot be scored, and why. It counts as tried, and is not tried again."""


class Search:
    """A study in a database, shared by all who name the same storage and study.

    Each trial has a place 0, 1, … among those that count, and samples with random numbers of
    `seed` and that place: with one worker, a search that was killed and run again makes the same
    trials as one that never was. A trial whose worker died does not count: its point is tried
    again, at its place.

    Args:
        storage: URL of a database as optuna takes it, such as `sqlite:///study.db`.
        name: of the study.
        axes: the space.
        objectives: metric name → `minimize` or `maximize`.
        sampler: one of `samplers.SAMPLERS`.
        settings: what the study is about, as JSON can hold it; a study that is there already must
            have been begun with the same.
        folder: for the locks by which workers on one machine tell which of them live. With SQLite
            they lie beside the database instead.
        heartbeat: seconds between signs of life to a database on a server, where a worker on
            another machine is given up after six; on one machine locks tell, however slow it is.

    Raises ValueError for a storage that cannot be opened or that holds another study by this name.
    """

    def __init__(
        self,
        storage: str,
        name: str,
        axes: Sequence[Axis],
        objectives: Mapping[str, str],
        *,
        sampler: str,
        seed: int,
        settings: Mapping[str, Any],
        folder: Path,
        heartbeat: int = 10,
    ) -> None:
        self._axes = list(axes)
        self._sqlite = storage.startswith(_SQLITE)
        if self._sqlite:
            file = Path(storage.removeprefix(_SQLITE))
            file.parent.mkdir(parents=True, exist_ok=True)
            folder = file.with_name(f".{file.name}")
        self._workers = folder / "workers"
        self._asking = folder / "asking"  # SQLite would give a waiting trial to two who ask at once
        self._grace = timedelta(seconds=_GRACE * heartbeat)
        chosen = sampler_by_place(sampler, seed)
        with hold(folder / "opening"):
            self.study = _open(storage, name, list(objectives.values()), heartbeat)
            _check_settings(self.study, settings)
        self.study.sampler = chosen

    def run(self, n: int, score: Score, progress: Callable[[int], None] | None = None) -> None:
        """Make trials until `n` are there in all, whoever makes them; waits for those of others.

        Args:
            score: the objectives at a point. It raises `Failed` where there are
                none; any other error ends this worker, and the trial is made again by the next.
            progress: called with the number of trials that are done.
        """
        optuna = import_optuna()
        with self._alive() as worker:
            scored = False  # the point at hand

            def objective(trial: Any) -> Sequence[float]:
                nonlocal scored
                trial.set_user_attr(_WORKER, worker)
                place = places(self.study.get_trials(deepcopy=False))[trial.number]
                if place >= n:  # another worker took the last one at the same moment
                    raise optuna.TrialPruned
                trial.set_user_attr(PLACE, place)
                asking.close()
                point = {axis.name: axis.suggest(trial) for axis in self._axes}
                trial.set_user_attr(_DRAWN, True)
                try:
                    values = score(point, trial.set_user_attr)
                    scored = True
                    return values
                except Failed as error:
                    scored = True
                    trial.set_user_attr(ERROR, str(error))
                    raise

            while True:
                with ExitStack() as asking:
                    asking.enter_context(hold(self._asking))
                    self._bury(worker)
                    trials = self.trials()
                    if progress is not None:
                        progress(sum(trial.state.is_finished() for trial in trials))
                    waiting = any(t.state == optuna.trial.TrialState.WAITING for t in trials)
                    if len(trials) < n or waiting:
                        scored = False
                        with warnings.catch_warnings():
                            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                            try:
                                self.study.optimize(objective, n_trials=1, catch=(Failed,))
                            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                                if not scored:
                                    raise
                                # Given up on by another machine, which tries the point again.
                        continue
                if all(trial.state.is_finished() for trial in trials):
                    return
                time.sleep(_POLL)

    def trials(self) -> list[FrozenTrial]:
        """The trials that count, by number: complete ones, failed ones with their `error`."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if counts(trial)]

    @contextmanager
    def _alive(self) -> Iterator[str]:
        """Holds a lock as long as this worker lives; gives the lock's name."""
        lock = self._workers / f"{platform.node()}-{uuid.uuid4().hex}"
        with hold(lock):
            try:
                yield lock.name
            finally:
                lock.unlink(missing_ok=True)

    def _bury(self, me: str) -> None:
        """Fail the running trials of workers that died, and queue their points again."""
        optuna = import_optuna()
        running = (optuna.trial.TrialState.RUNNING,)
        trials = self.study.get_trials(deepcopy=False, states=running)
        if not trials:
            return
        for trial in trials:
            if not self._dead(trial, me):
                continue
            try:
                self.study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            except (ValueError, optuna.exceptions.UpdateFinishedTrialError):
                continue  # another worker was first
            _again(self.study, trial)

    def _dead(self, trial: FrozenTrial, me: str) -> bool:
        """Whether the worker of a running trial is, asked by one who holds the lock for asking."""
        worker = trial.user_attrs.get(_WORKER)
        if worker is None:  # it died before it could sign, or is on another machine and will
            began = trial.datetime_start or datetime.min
            return self._sqlite or datetime.now() - began > self._grace
        if self._sqlite or worker.rpartition("-")[0] == platform.node():
            return worker == me or not is_held(self._workers / worker)
        return False  # on another machine: its heartbeat tells


def _open(storage: str, name: str, directions: list[str], heartbeat: int) -> optuna.Study:
    optuna = import_optuna()
    from sqlalchemy.exc import SQLAlchemyError

    # A worker that SQLite keeps waiting would miss its heartbeats: there, locks tell who lives.
    local = storage.startswith(_SQLITE)
    waits = {"connect_args": {"timeout": 120}} if local else None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            database = optuna.storages.RDBStorage(
                storage,
                engine_kwargs=waits,
                heartbeat_interval=None if local else heartbeat,
                grace_period=None if local else _GRACE * heartbeat,
                heartbeat_stale_trial_callback=None if local else _again,
            )
            return optuna.create_study(
                storage=database, study_name=name, directions=directions, load_if_exists=True
            )
    except (SQLAlchemyError, ImportError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"storage={storage}: cannot be opened ({reason})") from error


def _check_settings(study: optuna.Study, settings: Mapping[str, Any]) -> None:
    there = study.user_attrs.get("settings")
    if there is None:
        study.set_user_attr("settings", dict(settings))
        return
    for key in sorted(settings):
        if there.get(key) != settings.get(key):
            raise ValueError(
                f"the study {study.study_name!r} in the storage was begun with another {key}: "
                f"{there.get(key)}, and now {settings.get(key)}; give another output_dir or storage"
            )


def _again(study: optuna.Study, trial: FrozenTrial) -> None:
    """Queue the point of a trial whose worker died. One that was not all drawn is drawn anew."""
    if ERROR in trial.user_attrs:
        return  # it could not be scored, as its worker had said before it died
    attributes = {PLACE: trial.user_attrs[PLACE]} if PLACE in trial.user_attrs else {}
    study.enqueue_trial(
        dict(trial.params) if _DRAWN in trial.user_attrs else {}, user_attrs=attributes
    )
