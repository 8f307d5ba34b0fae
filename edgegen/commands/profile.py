"""`python scripts/profile.py model=…`: where a model's time goes, module by module."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from tqdm import tqdm

from ..api import Method, apply
from ..cost.devices import DEVICES
from ..cost.profiling import Profile, modules_to, profile
from ..cost.profiling_modes import profile_run
from ..cost.recording import NetworkCall, record_calls
from ..cost.roofline import measure
from ..cost.step_change import observe_steps
from ..pipelines.architectures import architecture
from ..pipelines.run_cost import latent_size, run_calls
from ..runs.environment import machine
from ..runs.profile_report import write_profile
from ..runs.profile_tables import Analysis, attack_text, metrics_of
from ..runs.record import Run, read_record
from ..sampling.generate import noise_generator, noise_seed
from ..sampling.guidance import call_guidance
from ._generation import model_files
from ._main import command
from ._methods import methods_of
from ._model import load_model, quiet
from ._numbers import whole_number
from ._prompts import read_prompts
from ._sampling import guidance_scale, picture_size

_RANDOM = "the weights are random: how features change would say nothing"
_TOLERANCE = 0.05  # of the sum of exclusive times against an unwatched call


@dataclass(frozen=True)
class _Recorded:
    """What running a model leaves: its networks' profiles; how features change, or why not."""

    profiles: list[Profile]
    device: torch.device
    changes: dict[str, list[float]]
    why_no_changes: str

    @property
    def random(self) -> bool:
        return self.why_no_changes == _RANDOM


@command("profile", free_text=("prompts",))
def main(cfg: DictConfig, run: Run) -> None:
    """Time, count and compare with the roofline; write the plots, the tables and the report."""
    prompts = read_prompts(cfg)
    steps, seed = whole_number(cfg, "steps", 1), whole_number(cfg, "seed", 0)
    depth = whole_number(cfg, "depth", 0)
    how = {"repeats": whole_number(cfg, "repeats", 1), "warmup": whole_number(cfg, "warmup", 0)}
    methods = methods_of(cfg)
    how["depth"] = depth
    if cfg.model.get("source") is None and cfg.model.get("components") is not None:
        if methods:
            raise ValueError(f"method=[{','.join(methods)}]: needs a model with weights to run on")
        recorded = _without_weights(cfg, steps, seed, how)
    else:
        recorded = _with_weights(cfg, run, methods, prompts, steps, seed, how)
    device = recorded.device
    run.info(device=str(device), random_weights=recorded.random)

    profiles = sorted(recorded.profiles, key=lambda each: -each.seconds * each.calls)
    roof = measure(device, name=str(machine().get("gpu" if device.type == "cuda" else "processor")))
    warnings = _warnings(recorded, profiles)
    for warning in warnings:
        print(f"profile: {warning}", file=sys.stderr)
    analysis = Analysis(
        model=" + ".join([str(cfg.model.get("source") or cfg.model.name), *methods]),
        profiles=profiles,
        machine=roof,
        devices=DEVICES,
        bits=roof.bits,
        changes=_in_order(recorded.changes, profiles),
        why_no_changes=recorded.why_no_changes,
        warnings=warnings,
    )
    run.log(metrics_of(analysis))
    if not analysis.changes:
        run.note("step_change/unet", recorded.why_no_changes)
    files = write_profile(run.dir, analysis, read_record(run.dir))
    print(attack_text(analysis))
    print(f"{files[-1]} has the plots and every module")


def _with_weights(
    cfg: DictConfig,
    run: Run,
    methods: Mapping[str, Method],
    prompts: Sequence[str],
    steps: int,
    seed: int,
    how: Mapping[str, Any],
) -> _Recorded:
    """Draw all prompts one by one, for how features change; profile what the first takes.

    With methods the profiles are of what they leave to do, but the changes the plain model's.
    """
    pipe = load_model(cfg, str(_device(cfg)))
    try:
        pipe.scheduler.set_timesteps(steps)
    except ValueError as error:
        raise ValueError(f"steps={steps}: {type(pipe.scheduler).__name__}: {error}") from error
    settings = {"steps": steps, "guidance": guidance_scale(cfg, pipe)}
    size = picture_size(cfg, pipe)
    for file in model_files(pipe):
        run.used_file(file)
    run.info(
        settings={
            "model": str(cfg.model.source),
            "scheduler": type(pipe.scheduler).__name__,
            **settings,
            "height": size[0],
            "width": size[1],
        }
    )
    modules = {
        f"unet.{name}".rstrip("."): module
        for name, (_, module) in modules_to(pipe.unet, how["depth"]).items()
    }
    first = partial(_draw, pipe, prompts[0], (seed, 0), size, settings)
    if methods:
        with apply(pipe, methods), quiet():
            profiles = profile_run(pipe, first, **how)
    else:
        with record_calls(pipe) as calls, torch.no_grad(), quiet():
            first()
        profiles = _profiles([call for call in calls.values() if call.times], how)
    with observe_steps(pipe.unet, modules) as changes, torch.no_grad(), quiet():
        for index, prompt in enumerate(tqdm(prompts, desc="prompts", unit="picture")):
            changes.begin()
            _draw(pipe, prompt, (seed, index), size, settings)
        means = changes.means()
    why = "" if means else f"steps={steps}: one evaluation has none before it to compare with"
    return _Recorded(profiles, next(pipe.unet.parameters()).device, means, why)


def _profiles(calls: Sequence[NetworkCall], how: Mapping[str, Any]) -> list[Profile]:
    return [profile(call, **how) for call in tqdm(calls, desc="networks", unit="network")]


def _draw(
    pipe: DiffusionPipeline,
    prompt: str,
    noise: tuple[int, int],
    size: tuple[int, int],
    settings: Mapping[str, Any],
) -> None:
    """One picture; a pipeline that edits pictures is given one of noise."""
    takes = inspect.signature(pipe.__call__).parameters
    height, width = size
    own: dict[str, Any] = {"height": height, "width": width}
    if "image" in takes:
        drawn = np.random.default_rng(noise_seed(*noise)).integers(0, 256, (height, width, 3))
        own["image"] = Image.fromarray(drawn.astype(np.uint8))
    with call_guidance(pipe, settings["guidance"]) as scales:
        pipe(
            prompt=prompt,
            generator=noise_generator(*noise),
            num_inference_steps=settings["steps"],
            **scales,
            **{name: value for name, value in own.items() if name in takes},
        )


def _without_weights(cfg: DictConfig, steps: int, seed: int, how: Mapping[str, Any]) -> _Recorded:
    """The calls of networks that are built from their configs, on inputs of noise."""
    guidance = cfg.guidance
    if isinstance(guidance, bool) or not isinstance(guidance, int | float | None):
        raise ValueError(f"guidance={guidance}: must be a number, 0 or more")
    plain: Any = OmegaConf.to_container(cfg.model, resolve=True, throw_on_missing=True)
    model = architecture(plain)
    device = _device(cfg)
    size = latent_size(model, cfg.height, cfg.width)
    modules = model.build("cpu", seed)
    for module in modules.values():
        module.to(device)
    found: list[NetworkCall] = []
    guided = guidance is None or guidance > 1
    for times, name, make in run_calls(model, modules, steps, guided, 1, size):
        with record_calls({name: modules[name]}) as calls, torch.no_grad():
            make()
        for call in calls.values():
            if call.times:
                call.times *= times
                call.args, call.kwargs = _noise((call.args, call.kwargs), seed)
                found.append(call)
    return _Recorded(_profiles(found, how), device, {}, _RANDOM)


def _noise(tree: Any, seed: int) -> Any:
    """The same inputs with noise for their floating-point tensors."""
    if isinstance(tree, torch.Tensor) and tree.is_floating_point():
        drawn = torch.randn(tree.shape, generator=torch.Generator().manual_seed(seed))
        return drawn.to(tree)
    if isinstance(tree, tuple | list):
        return type(tree)(_noise(item, seed) for item in tree)
    if isinstance(tree, dict):
        return {key: _noise(item, seed) for key, item in tree.items()}
    return tree


def _device(cfg: DictConfig) -> torch.device:
    name = str(cfg.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    try:
        return torch.empty((), device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"device={name}: cannot be used here ({reason[:200]})") from error


def _warnings(recorded: _Recorded, profiles: Sequence[Profile]) -> list[str]:
    found = []
    if recorded.random:
        found.append(
            "the model has no weights (model.source=null): times were measured with random ones"
        )
    whole = sum(each.seconds * each.calls for each in profiles)
    for each in profiles:
        ratio = each.own_sum / each.seconds
        matters = each.seconds * each.calls > _TOLERANCE * whole
        if matters and abs(ratio - 1) > _TOLERANCE:
            found.append(
                f"{each.name}: the exclusive times add up to {100 * ratio:.0f} % of an unwatched "
                "call: the machine was busy, or depth is too large; raise repeats"
            )
    return found


def _in_order(
    changes: Mapping[str, list[float]], profiles: Sequence[Profile]
) -> dict[str, list[float]]:
    names = [row.name for each in profiles for row in each.rows]
    return {name: changes[name] for name in names if name in changes}
