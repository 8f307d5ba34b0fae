"""`python scripts/engines.py model=emoji`: what integers gain in time, beside the best floats."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig
from tqdm import tqdm

from ..cost.latency import Ratio, interleaved, paired_ratio, series, timing
from ..cost.summary import text_table
from ..quantization import CalibrationSpec
from ..quantization.calibration import draw_calls
from ..quantization.engines import Executor, Inputs, frozen, inputs_of, int8_graph
from ..runs.atomic import write_atomic
from ..runs.record import Run
from ..runs.sensitivity_report import decibels
from ._generation import load_pipeline, model_files
from ._main import command
from ._model import quiet
from ._numbers import whole_number
from ._prompts import read_prompts
from ._sampling import guidance_scale

_BASE = "eager"
_ENGINES = (_BASE, "channels_last", "compiled", "bf16", "int8", "int8_bf16")

Engine = Callable[..., torch.Tensor]


@command("engines", free_text=("prompts",))
def main(cfg: DictConfig, run: Run) -> None:
    """Time one UNet call under each engine in turn, and compare outputs with full precision."""
    prompts = read_prompts(cfg)
    steps, seed = whole_number(cfg, "steps", 1), whole_number(cfg, "seed", 0)
    batch, rounds = whole_number(cfg, "batch", 1), whole_number(cfg, "rounds", 1)
    warmup, threads = whole_number(cfg, "warmup", 1), whole_number(cfg, "threads", 1)
    names = _names(cfg)
    torch.set_num_threads(threads)
    pipe = load_pipeline(cfg, steps)
    guidance = guidance_scale(cfg, pipe)
    # Measured on other noise than what ranges were found in.
    runs = [CalibrationSpec(tuple(prompts), steps, each, guidance) for each in (seed, seed + 1)]
    with quiet():
        seen, fresh = (inputs_of(draw_calls(pipe, ("unet",), each), batch) for each in runs)
    unet = pipe.unet
    engines = {
        name: _engine(name, unet, seen, batch)
        for name in tqdm(names, desc="engines", unit="engine")
    }
    run.info(
        device=str(unet.device),
        settings={
            "model": str(cfg.model.source),
            "batch": batch,
            "threads": threads,
            "steps": steps,
            "guidance": guidance,
        },
    )
    for file in model_files(pipe):
        run.used_file(file)
    with torch.no_grad():
        truths = [unet(*inputs, return_dict=False)[0] for inputs in fresh]
        ratios = {name: _noise(each, fresh, truths) for name, each in engines.items()}
        metrics, rows = _timed(engines, fresh, rounds, warmup, ratios)
    run.log(metrics)
    heads = ("engine", "seconds", "CPU seconds", "speed", "95 %", "SQNR dB")
    text = text_table(heads, rows) + "\n"
    write_atomic(run.dir / "engines.txt", text)
    print(text, end="")


def _engine(name: str, unet: Any, seen: Sequence[Inputs], batch: int) -> Engine:
    """A function of `Inputs`, compiled where it is."""
    if name.startswith("int8"):
        graph = int8_graph(unet, seen)
        made: Engine = Executor(graph, batch, compiled=True, bf16=name == "int8_bf16")
    else:
        if name == _BASE:  # in the layout that diffusers loads
            unet = copy.deepcopy(unet).to(memory_format=torch.contiguous_format)
        plain = name in (_BASE, "channels_last")
        forward = unet.forward if plain else frozen(unet.forward)

        def made(*inputs: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
                out: torch.Tensor = forward(*inputs, return_dict=False)[0]
            return out.float()

    with torch.no_grad():
        made(*seen[0])
    return made


def _noise(engine: Engine, inputs: Sequence[Inputs], truths: Sequence[torch.Tensor]) -> float:
    """Signal-to-quantization-noise ratio in dB, over all inputs together."""
    error = size = 0.0
    for each, truth in zip(inputs, truths, strict=True):
        error += float((engine(*each) - truth).square().sum())
        size += float(truth.square().sum())
    return decibels(error / size)


def _timed(
    engines: Mapping[str, Engine],
    inputs: Sequence[Inputs],
    rounds: int,
    warmup: int,
    noise: Mapping[str, float],
) -> tuple[dict[str, float], list[list[str]]]:
    """Metrics, and a row an engine."""
    current: dict[str, Engine] = {}

    @contextmanager
    def running(engine: Engine) -> Iterator[None]:
        current["engine"] = engine
        yield

    readings = interleaved(
        {name: lambda each=each: running(each) for name, each in engines.items()},  # type: ignore[misc]
        lambda number: current["engine"](*inputs[number % len(inputs)]),
        rounds=rounds,
        warmup=warmup,
        meters={"seconds": time.perf_counter, "cpu_seconds": time.process_time},
        description="rounds",
    )
    metrics: dict[str, float] = {}
    rows = []
    for name in engines:
        wall, work = (series(readings, name, meter) for meter in ("seconds", "cpu_seconds"))
        metrics[f"cost/seconds_{name}"] = timing(wall).median
        metrics[f"cost/cpu_seconds_{name}"] = timing(work).median
        # Of CPU time, which other programs on the machine change least.
        speed = paired_ratio(series(readings, _BASE, "cpu_seconds"), work)
        metrics |= _bounded(f"cost/speed_{name}", speed)
        if name != _BASE:
            metrics[f"quality/sqnr_db_{name}"] = noise[name]
        interval = "" if speed.low is None else f"{speed.low:.2f} to {speed.high:.2f}"
        ratio = f"{noise[name]:.1f}" if name != _BASE else ""
        shown = [f"{timing(wall).median:.4f}", f"{timing(work).median:.4f}", f"{speed.value:.2f}"]
        rows.append([name, *shown, interval, ratio])
    for integers in ("int8", "int8_bf16"):
        if not {"bf16", integers} <= set(engines):
            continue
        both = (series(readings, name, "cpu_seconds") for name in ("bf16", integers))
        metrics |= _bounded(f"cost/speed_{integers}_vs_bf16", paired_ratio(*both))
    return metrics, rows


def _bounded(name: str, ratio: Ratio) -> dict[str, float]:
    found = {name: ratio.value, f"{name}_n": ratio.n}
    if ratio.low is not None and ratio.high is not None:
        found |= {f"{name}_lo": ratio.low, f"{name}_hi": ratio.high}
    return found


def _names(cfg: DictConfig) -> list[str]:
    value = cfg.engines
    known = isinstance(value, ListConfig) and all(each in _ENGINES for each in value)
    if not known or _BASE not in value or len(set(value)) < len(value):
        raise ValueError(
            f"engines={value}: must be a list of {', '.join(_ENGINES)}, {_BASE} among them"
        )
    return list(value)
