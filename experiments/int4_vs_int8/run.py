"""INT4 against INT8 on a roofline: language-model decoding beside a diffusion UNet.

    python experiments/int4_vs_int8/run.py

From architectures alone, on the `meta` device: no weights, a minute.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_module
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.cache_utils import DynamicCache

from edgegen.cost import Cost, CostTracker, count
from edgegen.cost.devices import DEVICES
from edgegen.cost.energy import PJ_PER_BYTE, PJ_PER_MAC
from edgegen.cost.roofline import Device
from edgegen.pipelines.architectures import architecture
from edgegen.pipelines.example_inputs import run_unet
from edgegen.pipelines.run_cost import latent_size
from edgegen.runs.experiment import table_code
from edgegen.runs.finished import from_csv, to_csv
from edgegen.runs.pareto import write_figure

HERE = Path(__file__).parent
LLAMA_2_7B: Mapping[str, Any] = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
}
CONTEXT = 1024  # tokens before the one that is decoded
# Weight bits, bits of activations and attention operands, rate against that of 8 bit products.
FORMS = {"W16A16": (16, 16, 0.5), "W8A8": (8, 8, 1.0), "W4A8": (4, 8, 1.0), "W4A4": (4, 4, 2.0)}
# Horowitz 2014 has no 4 bit product. A multiplier's energy goes with its width squared (0.2 pJ
# at 8 bit); the 32 bit sum stays (0.1 pJ).
PJ_OF_MAC = {16: PJ_PER_MAC[16], 8: PJ_PER_MAC[8], 4: 0.2 / 4 + 0.1}


@dataclass(frozen=True)
class Layer:
    """One module's own work: MACs, weights, and bytes of all else that it moves at 16 bit."""

    macs: int
    weights: int
    others: int

    def bytes(self, weight_bits: float, act_bits: float) -> float:
        """Moved at these widths."""
        return self.weights * weight_bits / 8 + self.others * act_bits / 16


def layers(module: nn.Module, cost: Cost) -> list[Layer]:
    """The modules that did something in a call of `module`, which was counted at 16 bit.

    A weight is moved once a call; a table of embeddings is not read whole, so its traffic is that
    of the rows taken.
    """
    own = {
        name: sum(p.numel() for p in each.parameters(recurse=False))
        for name, each in module.named_modules()
        if not isinstance(each, nn.Embedding)
    }
    found = []
    for name, each in cost.modules.items():
        weights = own.get(name, 0)
        found.append(Layer(each.macs_all, weights, max(0, each.bytes - 2 * weights)))
    return found


def seconds(work: list[Layer], device: Device, form: str) -> float:
    """Least time on a device, layer by layer: arithmetic or memory, whichever takes longer.

    A device's `flops` holds at its `bits`; halving the width doubles the rate.
    """
    weight_bits, act_bits, rate = FORMS[form]
    flops = device.flops * device.bits / 8 * rate
    return sum(
        max(2 * each.macs / flops, each.bytes(weight_bits, act_bits) / device.bandwidth)
        for each in work
    )


def joules(work: list[Layer], form: str) -> float:
    """Σ MACs × energy of one + bytes × energy of DRAM access: an estimate, see `cost.energy`."""
    weight_bits, act_bits, _ = FORMS[form]
    picojoules = sum(
        each.macs * PJ_OF_MAC[act_bits] + each.bytes(weight_bits, act_bits) * PJ_PER_BYTE
        for each in work
    )
    return picojoules / 1e12


class Filled(DynamicCache):
    """Keys and values of `CONTEXT` tokens and the new one, which a runtime writes in place."""

    def update(self, keys: Tensor, values: Tensor, *rest: Any, **options: Any) -> Any:
        size = (*keys.shape[:2], CONTEXT + keys.shape[2], keys.shape[3])
        return keys.new_empty(size), values.new_empty(size)


def workloads() -> dict[str, list[Layer]]:
    """What is run once: a token, a prompt, or a denoising step with both guidance branches."""
    with torch.device("meta"):
        llama = LlamaForCausalLM(LlamaConfig(**LLAMA_2_7B)).half().eval()
        token, prompt = (torch.zeros(1, n, dtype=torch.long) for n in (1, CONTEXT))
        mask = torch.zeros(1, 1, CONTEXT, CONTEXT).half()
    found = {
        f"Llama-2-7B, one token after {CONTEXT}": layers(
            llama, count(llama, token, past_key_values=Filled(), use_cache=True)
        ),
        f"Llama-2-7B, a prompt of {CONTEXT}": layers(
            llama, count(llama, prompt, attention_mask=mask, use_cache=False)
        ),
    }
    for name in ("sd15", "emoji"):
        with initialize_config_module("edgegen.configs", version_base="1.3"):
            shape = architecture(compose("flops", [f"model={name}"]).model)
        unet = shape.build("meta")["unet"].half()
        with CostTracker({"unet": unet}) as tracker, torch.no_grad():
            run_unet(unet, 2, *latent_size(shape, None, None))
        found[f"UNet of {name}, one step"] = layers(unet, tracker.summary()["unet"].call)
    return found


def main() -> None:
    """Count, and write `results.csv` and `table.md` beside this file."""
    rows: list[dict[str, Any]] = []
    for name, work in workloads().items():
        for device in DEVICES:
            for form in FORMS:
                bits = FORMS[form][:2]
                rows.append(
                    {
                        "workload": name,
                        "device": device.name,
                        "form": form,
                        "gmacs": sum(each.macs for each in work) / 1e9,
                        "mb": sum(each.bytes(*bits) for each in work) / 1e6,
                        "weights_mb": sum(each.weights for each in work) * bits[0] / 8e6,
                        "seconds": seconds(work, device, form),
                        "joules": joules(work, form),
                    }
                )
    text = to_csv(rows)
    code, results = table_code(HERE), from_csv(text)
    (HERE / "results.csv").write_text(text, encoding="utf-8")
    (HERE / "table.md").write_text(code.table(results), encoding="utf-8")
    for name, figure in code.figures(results).items():
        write_figure(HERE / name, figure)
    print((HERE / "table.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
