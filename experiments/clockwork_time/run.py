"""How much time reuse saves beside what its MACs promise, on full-size and on embedded UNets.

    OMP_NUM_THREADS=1 python experiments/clockwork_time/run.py

Methods take turns in one process; the processor must have nothing else to do.
"""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler, UNet2DConditionModel
from omegaconf import OmegaConf

import edgegen
from edgegen.cost.latency import interleaved, paired_ratio, series
from edgegen.runs.experiment import table_code
from edgegen.runs.finished import from_csv, to_csv

HERE = Path(__file__).parent
STEPS = 8
METHODS: dict[str, Any] = {
    "plain": lambda pipe: nullcontext(),
    "clock 2": lambda pipe: edgegen.clockwork(pipe, 2),
    "clock 2, after the upsampler": lambda pipe: edgegen.clockwork(pipe, 2, before_upsampler=False),
    "span 2": lambda pipe: edgegen.clockwork(pipe, {"span": 2}),
}


def main() -> None:
    """Measure and write `results.csv` and `table.md` beside this file."""
    rows: list[dict[str, Any]] = []
    for name, pipe, side, tokens, rounds in (
        ("emoji, 64²", edgegen.load("emoji"), 16, 24, 20),
        ("SD 1.5, 256², random weights", full_size(), 32, 77, 6),
    ):
        rows += measured(name, pipe, side, tokens, rounds)
        text = to_csv(rows)
        (HERE / "results.csv").write_text(text, encoding="utf-8")
        (HERE / "table.md").write_text(table_code(HERE).table(from_csv(text)), encoding="utf-8")
    print((HERE / "table.md").read_text(encoding="utf-8"))


def full_size() -> Any:
    """Stable Diffusion 1.5's UNet with random weights, and a scheduler."""
    from edgegen import configs

    file = Path(str(configs.__path__[0])) / "component" / "sd15-unet.yaml"
    config = OmegaConf.to_container(OmegaConf.load(file))
    torch.manual_seed(0)
    unet = UNet2DConditionModel.from_config(config).eval()
    scheduler = DPMSolverMultistepScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012
    )
    return SimpleNamespace(unet=unet, scheduler=scheduler)


def measured(name: str, pipe: Any, side: int, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """Time and MACs of each method, as shares of the plain run's."""
    unet = pipe.unet.to(memory_format=torch.channels_last)
    text = torch.randn(2, tokens, unet.config.cross_attention_dim)
    noise = torch.randn(1, unet.config.in_channels, side, side)

    def draw(_: int) -> None:
        pipe.scheduler.set_timesteps(STEPS)
        sample = noise
        with torch.no_grad():
            for time in pipe.scheduler.timesteps:
                output = unet(torch.cat([sample] * 2), time, text, return_dict=False)[0]
                without, given = output.chunk(2)
                guided = without + 3 * (given - without)
                sample = pipe.scheduler.step(guided, time, sample, return_dict=False)[0]

    macs = {}
    for method, context in METHODS.items():
        with context(pipe), edgegen.CostTracker({"unet": unet}) as cost:
            draw(0)
        macs[method] = cost.metrics()["cost/unet_tflops_all"]
    contexts = {method: partial(context, pipe) for method, context in METHODS.items()}
    readings = interleaved(contexts, draw, rounds=rounds, warmup=1, description=name)
    rows = []
    for method in METHODS:
        ratio = paired_ratio(series(readings, method), series(readings, "plain"))
        rows.append(
            {
                "model": name,
                "method": method,
                "seconds": float(torch.tensor(series(readings, method)).median()),
                "ratio": ratio.value,
                "ratio_lo": ratio.low,
                "ratio_hi": ratio.high,
                "tflops_ratio": macs[method] / macs["plain"],
                "rounds": ratio.n,
                "threads": torch.get_num_threads(),
            }
        )
    return rows


if __name__ == "__main__":
    main()
