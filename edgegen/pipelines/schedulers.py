"""diffusers' schedulers by name."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers
from diffusers import SchedulerMixin

_DEFAULTS = "_use_default_values"  # diffusers' list of what nobody chose
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


def scheduler_names() -> list[str]:
    """Names of the diffusers schedulers that sample from a Stable Diffusion model, sorted.

    These are the ones that diffusers declares exchangeable with `DDIMScheduler` (so none for flow
    matching or EDM), without video and inversion schedulers, and the two for distilled models.
    """
    names = {"LCMScheduler", "TCDScheduler"}
    for name in dir(diffusers):
        cls = getattr(diffusers, name) if name.endswith("Scheduler") else None
        if (
            inspect.isclass(cls)
            and issubclass(cls, SchedulerMixin)
            and "DDIMScheduler" in getattr(cls, "_compatibles", [])
            and not name.startswith("CogVideoX")
            and "Inverse" not in name
        ):
            names.add(name)
    return sorted(names)


def scheduler_config(scheduler: SchedulerMixin) -> dict[str, Any]:
    """All that tells how a scheduler samples, without diffusers' own notes.

    Those (keys with an underscore) depend on which scheduler it was made from, in no fixed order.
    """
    return {key: value for key, value in scheduler.config.items() if not key.startswith("_")}


def make_scheduler(
    scheduler: str | SchedulerMixin | None,
    current: SchedulerMixin,
    prediction_type: str | None = None,
) -> SchedulerMixin:
    """The scheduler asked for, with the noise schedule of the model's own (`current`).

    PNDM without its Runge-Kutta start (eight evaluations more), as in Stable Diffusion's
    checkpoints, unless `current` says otherwise.

    Args:
        scheduler: a name from `scheduler_names()`, with or without the ending `Scheduler`; an
            instance, taken as it is; or None for `current`.
        prediction_type: what the UNet predicts, where the configuration is wrong about it:
            one of `PREDICTION_TYPES`.

    Raises:
        ValueError: an unknown name or prediction type.
    """
    if prediction_type is not None and prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"prediction_type '{prediction_type}' is unknown: allowed are "
            f"{', '.join(PREDICTION_TYPES)}"
        )
    changes: dict[str, Any] = (
        {} if prediction_type is None else {"prediction_type": prediction_type}
    )
    if scheduler is None:
        return type(current).from_config(current.config, **changes) if changes else current
    if not isinstance(scheduler, str):
        return type(scheduler).from_config(scheduler.config, **changes) if changes else scheduler
    name = scheduler if scheduler.endswith("Scheduler") else f"{scheduler}Scheduler"
    if name not in scheduler_names():
        raise ValueError(
            f"scheduler '{scheduler}' is unknown: allowed are {', '.join(scheduler_names())}"
        )
    cls = getattr(diffusers, name)
    config = _understood(cls, current.config)
    key = "skip_prk_steps"
    if name == "PNDMScheduler" and (key not in config or key in config.get(_DEFAULTS, ())):
        changes[key] = True
    return cls.from_config(config, **changes)


def _understood(cls: type, config: Mapping[str, Any]) -> dict[str, Any]:
    # What the class does not take would only be warned about; keys with an underscore tell
    # from_config which values were nobody's choice.
    taken = inspect.signature(cls).parameters
    return {key: value for key, value in config.items() if key in taken or key.startswith("_")}
