"""GPTVQ layer by layer at equal effective bits: `vectors.csv` beside this file, and a summary.

    python experiments/quantization_table/vectors.py [EVERY]

Takes each EVERY-th layer (default: all) of the embedded UNet that is as large as a group of 2-D
codebooks, and the Hessian of its inputs over ten steps of eight pictures: tr((W−Q)H(W−Q)ᵀ) as a
share of tr(WHWᵀ), by uniform GPTQ (the best of four scales, symmetric or not, groups of 128) and by
GPTVQ in one dimension and in two.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from edgegen.api import load
from edgegen.quantization.codebooks import layout_of
from edgegen.quantization.gptq import Hessian, round_by_gptq
from edgegen.quantization.gptvq import quantize_vectors
from edgegen.quantization.grids import Grid
from edgegen.quantization.weights import IntegerWeight, weight_scales
from edgegen.runs.atomic import write_atomic
from edgegen.runs.finished import to_csv

HERE = Path(__file__).parent
CAPTIONS = ["red apple", "fox", "tulip", "pizza", "panda", "grapes", "hamburger", "house"]
BITS, SHARE, GROUP = 2, 0.125, 128


def main(every: int) -> None:
    """Measure, write, and print how many layers come in the order of the paper."""
    rows = []
    for name, layer, hessian in tqdm(layers(every), desc="layers"):
        weight = layer.weight.detach()
        whole = loss(weight, torch.zeros_like(weight), hessian)
        row: dict[str, object] = {"layer": name, "weights": weight.numel()}
        for kind, (bits, error) in losses(weight, hessian).items():
            row |= {f"bits_{kind}": bits, f"loss_{kind}": error / whole}
        rows.append(row)
    write_atomic(HERE / "vectors.csv", to_csv(rows))
    found = {kind: np.array([row[f"loss_{kind}"] for row in rows]) for kind in ("2d", "1d", "gptq")}
    for less, more in (("2d", "1d"), ("1d", "gptq"), ("2d", "gptq")):
        ratio = found[less] / found[more]
        mean = np.exp(np.log(ratio).mean())
        print(f"{less} < {more}: {(ratio < 1).sum()} of {len(rows)} layers, ratio {mean:.3f}")
    for kind in found:
        print(f"{kind}: {np.mean([row[f'bits_{kind}'] for row in rows]):.3f} bits")


def layers(every: int) -> list[tuple[str, nn.Linear | nn.Conv2d, torch.Tensor]]:
    """Name, layer, Hessian (K, K)."""
    pipe = load("emoji")
    pipe.set_progress_bar_config(disable=True)
    large = [
        (name, layer)
        for name, layer in pipe.unet.named_modules()
        if isinstance(layer, nn.Linear | nn.Conv2d)
        and layout_of(layer.weight.shape, BITS, 2, SHARE).dimension == 2
    ][::every]
    seen = {name: Hessian(layer) for name, layer in large}
    for name, layer in large:
        layer.register_forward_pre_hook(lambda _, args, see=seen[name].see: see(args[0]))
    generator = torch.Generator().manual_seed(0)
    captions = [f"{caption}, noto style" for caption in CAPTIONS]
    pipe(captions, num_inference_steps=10, generator=generator, output_type="latent")
    return [(name, layer, seen[name].matrix) for name, layer in large]


def losses(weight: torch.Tensor, hessian: torch.Tensor) -> dict[str, tuple[float, float]]:
    """Effective bits, codebooks and scales charged, and tr((W−Q)H(W−Q)ᵀ)."""
    uniform = []
    for symmetric in (True, False):
        for method in ("minmax", "mse"):
            grid = Grid(BITS, symmetric)
            scales = weight_scales(weight, grid, "group", GROUP, method)
            integers = round_by_gptq(weight, hessian, scales, grid, GROUP)
            stored = IntegerWeight(integers, *scales, grid, GROUP)
            bits = 8 * stored.stored_bytes / weight.numel()
            uniform.append((loss(weight, stored(), hessian), bits))
    error, bits = min(uniform)
    found = {"gptq": (bits, error)}
    for dimension in (1, 2):
        vectors = quantize_vectors(weight, layout_of(weight.shape, BITS, dimension, SHARE), hessian)
        found[f"{dimension}d"] = (vectors.bits, loss(weight, vectors(), hessian))
    return found


def loss(weight: torch.Tensor, quantized: torch.Tensor, hessian: torch.Tensor) -> float:
    """tr((W−Q)H(W−Q)ᵀ)."""
    error = (weight - quantized).flatten(1)
    return float(((error @ hessian) * error).sum())


if __name__ == "__main__":
    with torch.no_grad():
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 1)
