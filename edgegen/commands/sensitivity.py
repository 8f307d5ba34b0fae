"""`python scripts/sensitivity.py model=…`: which layers mind being quantized, and bits for each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, ListConfig
from tqdm import tqdm

from ..quantization import CalibrationSpec, Spec, parse_spec, quantized
from ..quantization.allocation import Bits, mixed_bits, mixed_spec, totals
from ..quantization.calibration import draw_calls
from ..quantization.calls import Call
from ..quantization.grids import BITS
from ..quantization.sensitivity import Sensitivity, measure_error, measure_sensitivity
from ..runs.atomic import write_atomic
from ..runs.record import Run, read_record
from ..runs.sensitivity_report import Choice, SensitivityReport, decibels, write_sensitivity
from ._generation import load_pipeline, model_files
from ._main import command
from ._model import quiet
from ._numbers import whole_number
from ._prompts import read_prompts
from ._sampling import guidance_scale

_MIXED = "mixed"


@command("sensitivity", free_text=("prompts",))
def main(cfg: DictConfig, run: Run) -> None:
    """Measure, choose bits under the budgets given, and write JSON, a spec and the report."""
    prompts = read_prompts(cfg)
    steps, seed = whole_number(cfg, "steps", 1), whole_number(cfg, "seed", 0)
    weights, activations = _widths(cfg, "weights"), _widths(cfg, "activations")
    budgets = {name: _budget(cfg, name) for name in ("size_kb", "gbops")}
    spec = parse_spec(None if cfg.spec is None else str(cfg.spec))
    earlier = None if cfg.measured is None else _read(Path(str(cfg.measured)).expanduser())
    if earlier:
        mixed_bits(earlier, **budgets)
    pipe = load_pipeline(cfg, steps)
    guidance = guidance_scale(cfg, pipe)
    calibration = CalibrationSpec(tuple(prompts), steps, seed, guidance)
    spec = replace(spec, calibration=calibration)
    with quiet():
        calls = draw_calls(pipe, ("unet",), calibration)
    found = earlier or measure_sensitivity(
        pipe, spec, calls, weights, activations, watch=partial(tqdm, unit="layer")
    )
    run.info(
        device=str(pipe.device),
        settings={
            "model": str(cfg.model.source),
            "scheduler": type(pipe.scheduler).__name__,
            "steps": steps,
            "guidance": guidance,
        },
    )
    for file in model_files(pipe):
        run.used_file(file)
    write_atomic(run.dir / "sensitivity.json", json.dumps(found.plain(), indent=1))
    run.log({"run/layers": len(found.layers), "run/timesteps": len(found.times)})
    # A budget that nothing fits is refused only here: `measured` takes up what is written.
    bits = mixed_bits(found, **budgets) if any(budgets.values()) else {}
    choices = _choices(pipe, spec, calls, found, bits)
    for choice in choices:
        run.log(
            {
                f"quality/sqnr_db_{choice.name}": decibels(choice.error),
                f"cost/size_kb_{choice.name}": choice.size_kb,
                f"cost/gbops_{choice.name}": choice.gbops,
            }
        )
    if bits:
        plain = mixed_spec(spec, bits).plain()
        write_atomic(run.dir / "spec.yaml", yaml.safe_dump(plain, sort_keys=False))
    report = SensitivityReport(str(cfg.model.source), found, bits, choices)
    page = write_sensitivity(run.dir, report, read_record(run.dir))
    print(_text(found, choices))
    print(f"{page} has all layers and timesteps")


def _choices(
    pipe: Any,
    spec: Spec,
    calls: Sequence[Call],
    found: Sensitivity,
    bits: dict[str, Bits],
) -> list[Choice]:
    """All layers alike, for all pairs of bits; then the mixed ones, if there are any."""
    widths = [
        sorted({width for layer in found.layers for width in layer.errors.get(kind, {})})
        for kind in ("weights", "activations")
    ]
    nothing: list[int | None] = [None]
    pairs: list[Bits] = list(itertools.product(*([*each] or nothing for each in widths)))  # type: ignore[arg-type]
    candidates = {_name(pair): {each.path: pair for each in found.layers} for pair in pairs}
    if bits:
        candidates[_MIXED] = bits
    made = []
    for name, chosen in candidates.items():
        own = mixed_spec(spec, chosen)
        own = replace(own, time_groups=1)  # as in what was measured
        errors = measure_error(pipe, calls, partial(quantized, pipe, own, calls=calls))
        sums = totals(found, chosen)
        error = sum(errors) / len(errors)
        made.append(Choice(name, sums["size_kb"], sums["gbops"], error, sums["error"]))
    return made


def _name(bits: Bits) -> str:
    return "".join(
        f"{letter}{32 if width is None else width}"
        for letter, width in zip("wa", bits, strict=True)
    )


def _text(found: Sensitivity, choices: Sequence[Choice]) -> str:
    lines = []
    for kind in ("weights", "activations"):
        ranked = [
            (min(layer.errors[kind]), layer) for layer in found.layers if layer.errors.get(kind)
        ]
        ranked.sort(key=lambda pair: -pair[1].mean(kind, pair[0]))
        for bits, layer in ranked[:3]:
            ratio = decibels(layer.mean(kind, bits))
            lines.append(f"{ratio:6.1f} dB  {kind} in {bits} bits: {layer.path}")
    lines += [
        f"{decibels(each.error):6.1f} dB  {each.name}: {each.size_kb:,.1f} kB, "
        f"{each.gbops:,.2f} GBOPs"
        for each in choices
    ]
    return "\n".join(lines)


def _widths(cfg: DictConfig, key: str) -> list[int]:
    value = cfg[key]
    allowed = ", ".join(map(str, BITS))
    if not isinstance(value, ListConfig) or any(each not in BITS for each in value):
        raise ValueError(f"{key}={value}: must be a list of {allowed}")
    return sorted(set(value))


def _read(path: Path) -> Sensitivity:
    """The `sensitivity.json` of an earlier run."""
    if not path.is_file():
        raise FileNotFoundError(f"measured={path}: no such file")
    try:
        return Sensitivity.read(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"measured={path}: must be a sensitivity.json") from error


def _budget(cfg: DictConfig, key: str) -> float | None:
    value = cfg[key]
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ValueError(f"{key}={value}: must be a number over 0, or null")
    return float(value)
