"""The authors' own packages of DeepCache and T-GATE, as methods that can be entered and left.

They are compared with, and used for nothing else: `pip install 'edgegen[peers]'`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from ..cost import cost_mode
from ..sampling.steps import bound, step_clock
from .gating import gate_step
from .method import find_unet


@contextmanager
def deepcache_package(target: Any, interval: int = 2, branch: int = 0) -> Iterator[Any]:
    """DeepCache (arXiv 2312.00858) by PyPI `deepcache`.

    Args:
        target: a diffusers pipeline.
        interval: one full pass every so many steps.
        branch: `cache_branch_id`, the innermost skip connection that is made anew.

    Raises:
        ValueError: the package is not there.
    """
    package = _package("DeepCache", "deepcache")
    helper = package.DeepCacheSDHelper(pipe=target)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    with _left_as_it_was(target, "deepcache_package"):
        helper.enable()
        try:
            yield helper
        finally:
            helper.disable()


@contextmanager
def tgate_package(
    target: Any,
    gate: int | float = 0.5,
    sp_interval: int = 1,
    fi_interval: int = 1,
    warm_up: int = 2,
) -> Iterator[Any]:
    """T-GATE (arXiv 2404.02747) by PyPI `tgate`, whose pipeline call takes the place of diffusers'.

    Args:
        target: a StableDiffusionPipeline.
        gate: `gate_step`, the steps with guidance and cross-attention, or their share of the run.
        sp_interval, fi_interval: self-attention is made anew every so many steps before and after
            the gate; 1 for always.
        warm_up: steps before self-attention may be kept.

    Raises:
        ValueError: another pipeline, or the package is not there.
    """
    kind = type(target)
    if kind.__name__ != "StableDiffusionPipeline":
        raise ValueError(f"tgate: is for a StableDiffusionPipeline, not for a {kind.__name__}")
    call = _package("tgate.SD", "tgate").tgate
    gate_step(gate, 1)
    settings = {
        "sp_interval": sp_interval,
        "fi_interval": fi_interval,
        "warm_up": warm_up,
    }

    def gated(self: Any, *args: Any, **kwargs: Any) -> Any:
        for module in self.unet.modules():  # of another run
            module.__dict__.pop("cache", None)
        gates = gate_step(gate, kwargs.get("num_inference_steps", 50))
        return call(self, *args, gate_step=gates, **settings, **kwargs)

    with _left_as_it_was(target, "tgate_package"):
        target.__class__ = type(kind.__name__, (kind,), {"__call__": gated})
        try:
            yield target
        finally:
            target.__class__ = kind


@contextmanager
def _left_as_it_was(target: Any, name: str) -> Iterator[None]:
    """Count every step for itself meanwhile; afterwards take all off the UNet that was put on."""
    unet, scheduler = find_unet(target)
    before = {module: dict(module.__dict__) for module in unet.modules()}
    reason = f"{name}: counts the pipeline's own steps, and keeps one cache"
    with (
        step_clock(scheduler) as clock,
        cost_mode(unet, lambda: clock.index),
        bound(unet, reason),
    ):
        try:
            yield
        finally:
            for module, own in before.items():
                for key in ("forward", "cache"):
                    module.__dict__.pop(key, None)
                    if key in own:
                        module.__dict__[key] = own[key]


def _package(name: str, project: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ValueError(
            f"{project}: not installed, or not fit for these versions ({error}): "
            "pip install 'edgegen[peers]'"
        ) from error
