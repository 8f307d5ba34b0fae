"""Learned prediction of what was skipped: the adaptor of Clockwork Diffusion (arXiv 2312.08128)."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.resnet import ResnetBlock2D
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from .. import assets
from .cut import Cut, Stage
from .fingerprint import fingerprint, same_base

INPUTS = ("r_in", "r_out", "time", "text")
# Width as a share of the channels of r_out: 384 and 112 for SD 1.5 at stage 1, which gives the
# paper's 14 M and 3 M parameters.
SHARES = {"resnet": 0.6, "light": 0.175}


class ResNetAdaptor(nn.Module):
    """r̂_out(t) = r_out(t+1) + φ(r_in(t), r_out(t+1), t, text), at half the resolution of r_out.

    concat(r_in, r_out) → 3×3 convolution with stride 2 → + Linear(pooled text) → two residual
    blocks with the time embedding → 4×4 transposed convolution with stride 2. The last layer
    starts at zero: untrained, the adaptor predicts r_out(t+1). The text is pooled by its mean over
    tokens, of the features that the UNet attends to.

    Args:
        r_in, r_out: channels of the features before and after the part left out.
        time: width of the UNet's time embedding.
        text: width of its text features.
        width: channels inside.
        inputs: which of `INPUTS` it looks at; r_in or r_out at least. Without r_out nothing is
            added to: φ alone is the prediction.

    Attributes:
        trained: what it was trained for, where that is known: `steps` (evaluations of a run),
            `full` (which of them ran in full, from 1), `scheduler` and `guidance`.

    Raises:
        ValueError: no such inputs, or a width below 1.
    """

    def __init__(
        self,
        r_in: int,
        r_out: int,
        time: int,
        text: int,
        width: int,
        inputs: Sequence[str] = INPUTS,
    ) -> None:
        super().__init__()
        unknown = set(inputs) - set(INPUTS)
        if unknown or not {"r_in", "r_out"} & set(inputs):
            raise ValueError(
                f"adaptor inputs={list(inputs)}: allowed are {', '.join(INPUTS)}, and one of r_in "
                "and r_out is needed"
            )
        if isinstance(width, bool) or not isinstance(width, int) or width < 1:
            raise ValueError(f"adaptor width={width}: must be a whole number of at least 1")
        self.inputs = frozenset(inputs)
        self.settings = {"r_in": r_in, "r_out": r_out, "time": time, "text": text, "width": width}
        self.trained: Mapping[str, Any] = {}
        channels = r_in * ("r_in" in inputs) + r_out * ("r_out" in inputs)
        self.conv_in = nn.Conv2d(channels, width, 3, stride=2, padding=1)
        self.text_proj = nn.Linear(text, width) if "text" in inputs else None
        self.resnets = nn.ModuleList(
            ResnetBlock2D(
                in_channels=width,
                temb_channels=time if "time" in inputs else None,
                groups=math.gcd(32, width),
                eps=1e-5,
            )
            for _ in range(2)
        )
        self.conv_out = nn.ConvTranspose2d(width, r_out, 4, stride=2, padding=1)
        if "r_out" in inputs:
            nn.init.zeros_(self.conv_out.weight)
            nn.init.zeros_(_bias(self.conv_out))

    def forward(
        self, r_in: Any = None, r_out: Any = None, time: Any = None, text: Any = None
    ) -> torch.Tensor:
        """r̂_out(t), (B, r_out, H, W).

        Args:
            r_in: features before the cut at t, (B, r_in, h, w), brought to the size of r_out.
            r_out: features after it one step earlier, (B, r_out, H, W); also without being an
                input it tells the size.
            time: embedding of t, (B, time).
            text: (B, T, text) or (B, text); of a tuple (IP-Adapter) the first.
        """
        size = r_out.shape[2:]
        features = []
        if "r_in" in self.inputs:
            if r_in.shape[2:] != size:
                r_in = F.interpolate(r_in, size=size, mode="nearest")
            features.append(r_in)
        if "r_out" in self.inputs:
            features.append(r_out)
        hidden = self.conv_in(torch.cat(features, dim=1))
        if self.text_proj is not None:
            text = text[0] if isinstance(text, tuple) else text
            pooled = text.mean(dim=1) if text.dim() == 3 else text
            hidden = hidden + self.text_proj(pooled)[:, :, None, None]
        for resnet in self.resnets:
            hidden = resnet(hidden, time if "time" in self.inputs else None)
        # Twice the half, rounded up: one row or column too many where the size is odd.
        change = self.conv_out(hidden)[:, :, : size[0], : size[1]]
        return r_out + change if "r_out" in self.inputs else change


def make_adaptor(
    unet: Any,
    cut: Cut,
    kind: str = "resnet",
    inputs: Sequence[str] = INPUTS,
    width: int | None = None,
) -> ResNetAdaptor:
    """An untrained adaptor for the cut of a UNet, on its device and in its precision.

    Args:
        kind: `resnet`, or `light` for about a fifth of the parameters.
        width: channels inside; by default the share of r_out's that the kind stands for.

    Raises:
        ValueError: an unknown kind, or a cut that is no `Stage` of this UNet.
    """
    if kind not in SHARES:
        raise ValueError(f"adaptor '{kind}': allowed are {', '.join(SHARES)}")
    if not isinstance(cut, Stage):
        raise ValueError(f"cut {cut}: learned predictors need a stage")
    place = cut.place(unet)
    r_in = unet.down_blocks[place.down[0] - 1].resnets[-1].out_channels
    r_out = unet.up_blocks[place.up[0] - 1].resnets[-1].out_channels
    weight = next(unet.parameters())
    with torch.device(weight.device):
        adaptor = ResNetAdaptor(
            r_in,
            r_out,
            time=unet.time_embedding.linear_2.out_features,
            text=text_width(unet),
            width=max(8, round(SHARES[kind] * r_out / 8) * 8) if width is None else width,
            inputs=inputs,
        )
    return adaptor.to(weight.device, weight.dtype)


def text_width(unet: Any) -> int:
    """Width of the text features that a UNet attends to."""
    width = unet.config.cross_attention_dim
    return width if isinstance(width, int) else width[0]


def save_adaptor(adaptor: ResNetAdaptor, path: str | Path, unet: nn.Module, cut: Stage) -> None:
    """Write weights, settings, cut and the fingerprint of the base UNet as one safetensors file.

    What the adaptor was trained for, `adaptor.trained`, goes with it.
    """
    about = {
        "settings": adaptor.settings | {"inputs": sorted(adaptor.inputs, key=INPUTS.index)},
        "cut": {"stage": cut.stage, "before_upsampler": cut.before_upsampler},
        "base": fingerprint(unet),
        "trained": dict(adaptor.trained),
    }
    weights = {name: tensor.contiguous() for name, tensor in adaptor.state_dict().items()}
    path = Path(path)
    part = path.with_name(path.name + ".part")  # so that there is never half a file
    # One entry: safetensors writes several in no fixed order, and files could not be compared.
    save_file(weights, part, metadata={"edgegen_adaptor": json.dumps(about)})
    os.replace(part, path)


def load_adaptor(path: str | Path, unet: nn.Module, cut: Cut) -> ResNetAdaptor:
    """An adaptor from its file, on the UNet's device and in its precision, in eval mode.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no adaptor, one for another base model, or for another cut.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such adaptor file")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["edgegen_adaptor"])
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        base, made_for = about["base"], Stage(**about["cut"])
        adaptor = ResNetAdaptor(**about["settings"])
        adaptor.load_state_dict(weights)
        if trained := about.get("trained", {}):
            adaptor.trained = {**trained, "full": list(trained["full"]), "steps": trained["steps"]}
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path}: truncated, or no adaptor written by save_adaptor") from error
    if not same_base(base, fingerprint(unet)):
        raise ValueError(f"{path}: was trained for another base model than this one")
    if made_for != cut:
        raise ValueError(f"{path}: was trained for {made_for}, not for {cut}")
    weight = next(unet.parameters())
    return adaptor.to(weight.device, weight.dtype).eval().requires_grad_(False)


def embedded_adaptors(unet: nn.Module, cut: Cut) -> list[ResNetAdaptor]:
    """The adaptors inside the package that were trained for this model and cut, as `load_adaptor`.

    Raises ValueError where there is none.
    """
    folder, found = assets.ROOT / "adaptors", []
    if folder.is_dir():
        assets.verify(folder)
        for path in sorted(folder.glob("*.safetensors")):
            try:
                found.append(load_adaptor(path, unet, cut))
            except ValueError:
                continue
    if not found:
        raise ValueError(
            f"predictor=learned: the package holds no adaptor for this model and {cut}; "
            "scripts/train.py experiment=clockwork/emoji trains one"
        )
    return found


def _bias(layer: nn.ConvTranspose2d) -> torch.Tensor:
    assert layer.bias is not None
    return layer.bias
