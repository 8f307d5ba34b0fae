"""Quantized models in diffusers folders: packed integers and scales beside a description.

The description stands in the `config.json` of each part under `edgegen_quantization`; the weights
are in the part's safetensors file as `save_pretrained` writes it.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from ..pipelines.checkpoints import check_safetensors, one_line, read_json
from .attention import OPERANDS, QuantizedAttention, set_processor
from .codebooks import CodebookWeight, Layout
from .grids import Grid
from .modules import TWINS, Quantized, twin_of
from .quantizers import DynamicQuantizer, Period, StaticQuantizer
from .spec import Spec
from .weights import IntegerWeight

KEY = "edgegen_quantization"
FORMAT = 1


def note_quantization(part: Any, spec: Spec) -> None:
    """Let the configuration of a network, quantized for good, say so to whoever saves it."""
    # Files and folders are of the machine that calibrated.
    runs = replace(spec.calibration, images=(), store=None)
    plain = replace(spec, calibration=runs).plain()
    description = json.loads(json.dumps({"format": FORMAT, "spec": plain, **describe(part)}))
    if hasattr(part, "register_to_config"):
        part.register_to_config(**{KEY: description})
    else:
        setattr(part.config, KEY, description)


def is_quantized(folder: str | Path) -> bool:
    """Whether a part's folder holds a quantized network."""
    path = Path(folder) / "config.json"
    return path.is_file() and KEY in read_json(path)


def load_quantized(cls: Any, folder: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """A quantized network from its folder, in `eval` mode, bit for bit as it was saved.

    A pipeline with scales by groups of timesteps needs `attach_steps` afterwards.

    Args:
        cls: class of the network, of diffusers or transformers.
        folder: with `config.json` and safetensors.
        dtype: of what is not quantized, and of what is computed.

    Raises:
        FileNotFoundError, ValueError: one line that names the file and what is wrong with it.
    """
    folder = Path(folder)
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    config = read_json(path)
    description = config.pop(KEY, None)
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise ValueError(f"{path}: no {KEY} of format {FORMAT}, which this version reads")
    weights = _read_weights(folder)
    try:
        with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
            part = _build(cls, config)
        rebuild(part, description)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a quantized {cls.__name__}: {one_line(error)}") from error
    _fill(part, weights, folder)
    part = part.to(dtype).eval()
    note = {KEY: description}
    if hasattr(part, "register_to_config"):
        part.register_to_config(**note)
    else:
        setattr(part.config, KEY, description)
    return part


def describe(part: nn.Module) -> dict[str, Any]:
    """How each layer and attention of a network is quantized, as JSON holds it."""
    layers, attention = {}, {}
    groups = None
    for name, module in part.named_modules():
        if isinstance(module, Quantized):
            layers[name] = {
                "weights": _described_weight(module.stored),
                "inputs": _described(module.inputs),
                "bias": module.bias is not None,
            }
        elif isinstance(module, QuantizedAttention):
            path = name.removesuffix(".processor")
            attention[path] = {each: _described(getattr(module, each)) for each in OPERANDS}
        elif isinstance(module, Period):
            groups = {"groups": module.groups, "timesteps": module.timesteps}
    return {"layers": layers, "attention": attention, "period": groups}


def rebuild(part: nn.Module, description: dict[str, Any]) -> None:
    """Give a plain network the layers that a description tells of, with nothing in them yet.

    Raises:
        ValueError, AttributeError, KeyError, TypeError: it does not fit the network.
    """
    period = None if description["period"] is None else Period(**description["period"])
    for name, told in description["layers"].items():
        layer: Any = part.get_submodule(name)
        if type(layer) not in TWINS:
            raise ValueError(f"{name} is a {type(layer).__name__}")
        stored = _rebuilt_weight(told["weights"], layer.weight.shape)
        twin = twin_of(layer, stored, _rebuilt(told["inputs"], period))
        if told["bias"] and layer.bias is None:  # from the correction of biases
            twin.bias = nn.Parameter(layer.weight.new_zeros(twin.out_width))
        twin.persist()
        _replace(part, layer, twin)
    for name, told in description["attention"].items():
        operands = [_rebuilt(told[each], period) for each in OPERANDS]
        processor = QuantizedAttention(*operands)  # type: ignore[arg-type]
        processor.persist()
        module: Any = part.get_submodule(name)
        set_processor(module, processor)
        module.attention_bits = processor.bits


def _replace(part: nn.Module, layer: nn.Module, twin: nn.Module) -> None:
    for module in list(part.modules()):
        for name, child in module._modules.items():
            if child is layer:
                module._modules[name] = twin


def _described_weight(stored: Any) -> dict[str, Any] | None:
    if stored is None:
        return None
    if isinstance(stored, CodebookWeight):
        return {"codebooks": stored.describe()}
    return {
        "bits": stored.bits,
        "symmetric": stored.zero_point is None,
        "group": stored.group,
        "scales": list(stored.scale.shape),
    }


def _rebuilt_weight(told: Any, shape: torch.Size) -> IntegerWeight | CodebookWeight | None:
    if told is None:
        return None
    if "codebooks" in told:
        return CodebookWeight.empty(shape, Layout(shape[0], shape[1:].numel(), **told["codebooks"]))
    grid = Grid(told["bits"], told["symmetric"])
    integers = torch.zeros(shape, dtype=grid.dtype)
    point = None if grid.symmetric else torch.zeros(told["scales"])
    return IntegerWeight(integers, torch.ones(told["scales"]), point, grid, told["group"])


def _described(quantizer: Any) -> dict[str, Any] | None:
    if quantizer is None:
        return None
    told = {"bits": quantizer.bits, "symmetric": quantizer.grid.symmetric}
    if isinstance(quantizer, DynamicQuantizer):
        return {**told, "dynamic": True, "axes": quantizer.axes}
    return {
        **told,
        "dynamic": False,
        "axis": quantizer.axis,
        "split": quantizer.split,
        "scales": list(quantizer.scale.shape),
    }


def _rebuilt(told: Any, period: Period | None) -> Any:
    if told is None:
        return None
    grid = Grid(told["bits"], told["symmetric"])
    if told["dynamic"]:
        return DynamicQuantizer(grid, None if told["axes"] is None else tuple(told["axes"]))
    scale = torch.ones(told["scales"])
    point = None if grid.symmetric else torch.zeros(told["scales"])
    timed = period if told["scales"][0] > 1 else None
    return StaticQuantizer(grid, scale, point, told["axis"], told["split"], timed)


def _build(cls: Any, config: dict[str, Any]) -> Any:
    if hasattr(cls, "register_to_config"):  # of diffusers
        return cls.from_config(config)
    return cls(cls.config_class.from_dict(config))


def _read_weights(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder}: no weights (*.safetensors) in it")
    weights: dict[str, torch.Tensor] = {}
    for file in files:
        check_safetensors(file)
        found = load_file(file)
        if twice := found.keys() & weights.keys():
            raise ValueError(f"{file}: holds {min(twice)} once more; keep one file's weights")
        weights |= found
    return weights


def _fill(part: nn.Module, weights: dict[str, torch.Tensor], folder: Path) -> None:
    if not part.state_dict().keys() & weights.keys():  # text encoders of other transformers
        weights = {key.removeprefix("text_model."): value for key, value in weights.items()}
    what = f"{folder}: does not fit its configuration"
    try:
        missing, surplus = part.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        line = one_line(error).partition(": ")[2] or one_line(error)
        raise ValueError(f"{what}: {line}") from error
    for names, how in ((missing, "missing"), (surplus, "too many")):
        if names:
            raise ValueError(f"{what}: {len(names)} tensors are {how}, first {names[0]}")
