"""optuna's samplers, each trial with random numbers of its own place in the study."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from .space import Scalar

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, TrialState

SAMPLERS = ("tpe", "nsga2", "nsga3", "gp", "random")
PLACE, ERROR = "place", "error"


def import_optuna() -> Any:
    """optuna, which is an extra. Raises ValueError where it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise ValueError(
            "a search needs optuna: pip install 'edgegen[sweep]'; sampler=grid needs nothing"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)
    return optuna


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial takes a place: not one whose worker died, nor one too many."""
    if trial.state.name == "FAIL":
        return ERROR in trial.user_attrs
    return trial.state.name != "PRUNED"


def places(trials: Sequence[FrozenTrial]) -> dict[int, int]:
    """Trial number → place, for the trials that count.

    A trial has the place written down for it, else the first that no earlier trial has.
    """
    found: dict[int, int] = {}
    for trial in sorted((t for t in trials if counts(t)), key=lambda trial: trial.number):
        taken = set(found.values())
        free = next(place for place in range(len(taken) + 1) if place not in taken)
        found[trial.number] = trial.user_attrs.get(PLACE, free)
    return found


def sampler_by_place(name: str, seed: int) -> BaseSampler:
    """The sampler `name`, made anew for each trial from `seed` and the trial's place.

    What it draws then depends on the trials before and nothing else, in particular not on which
    process draws. Raises ValueError for a name not in `SAMPLERS`.
    """
    if name not in SAMPLERS:
        raise ValueError(f"sampler={name}: must be one of grid, {', '.join(SAMPLERS)}")
    optuna = import_optuna()
    make: dict[str, Callable[[int], BaseSampler]] = {
        "tpe": lambda s: optuna.samplers.TPESampler(seed=s, constant_liar=True),
        "nsga2": lambda s: optuna.samplers.NSGAIISampler(seed=s),
        "nsga3": lambda s: optuna.samplers.NSGAIIISampler(seed=s),
        "gp": lambda s: optuna.samplers.GPSampler(seed=s),
        "random": lambda s: optuna.samplers.RandomSampler(seed=s),
    }

    def make_quietly(number: int) -> BaseSampler:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            return make[name](number)

    class ByPlace(optuna.samplers.BaseSampler):  # type: ignore[name-defined,misc]
        """Hands every question on to a sampler made for the trial that is asked about."""

        def __init__(self) -> None:
            self._inner: BaseSampler = make_quietly(seed)

        def before_trial(self, study: Any, trial: FrozenTrial) -> None:
            found = places(study.get_trials(deepcopy=False))
            text = f"{seed}/{found.get(trial.number, trial.number)}".encode()
            self._inner = make_quietly(int.from_bytes(hashlib.sha256(text).digest()[:4], "big"))
            self._inner.before_trial(study, trial)

        def infer_relative_search_space(
            self, study: Any, trial: FrozenTrial
        ) -> dict[str, BaseDistribution]:
            return self._inner.infer_relative_search_space(study, trial)

        def sample_relative(
            self, study: Any, trial: FrozenTrial, search_space: Any
        ) -> dict[str, Any]:
            return self._inner.sample_relative(study, trial, search_space)

        def sample_independent(
            self, study: Any, trial: FrozenTrial, name: str, distribution: Any
        ) -> Scalar:
            return self._inner.sample_independent(study, trial, name, distribution)

        def after_trial(
            self,
            study: Any,
            trial: FrozenTrial,
            state: TrialState,
            values: Sequence[float] | None,
        ) -> None:
            self._inner.after_trial(study, trial, state, values)

    return ByPlace()
