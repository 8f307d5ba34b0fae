"""Where a UNet is cut: what a reuse step leaves out, and which features it needs instead.

Skip connections are numbered as the encoder makes them: `conv_in` is 0, then each level's layers
and its downsampler. The decoder's layers take them in reverse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_DOWN = ("CrossAttnDownBlock2D", "DownBlock2D")
_MID = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", "NoneType")
_UP = ("CrossAttnUpBlock2D", "UpBlock2D")


@dataclass(frozen=True)
class Place:
    """A cut on one UNet.

    Attributes:
        down: (block, layer) of the encoder's first layer left out; a downsampler counts as the
            last layer of its block. (len(down_blocks), 0) if only the middle is left out.
        up: (block, layer) of the decoder's first layer that runs again.
        before_upsampler: whether the upsampler just before that layer runs too.
    """

    down: tuple[int, int]
    up: tuple[int, int]
    before_upsampler: bool = False


@dataclass(frozen=True)
class Stage:
    """Clockwork's cut (arXiv 2312.08128): the `stage` ≥ 1 highest resolutions always run.

    Stage 1 leaves out down 1 to 3, mid and up 0 to 2 of an SD 1.5 UNet; stage 2 keeps down 1 and
    up 2 as well. The downsampler into the part left out always runs: its output is r_in.

    Args:
        stage: below the number of levels.
        before_upsampler: whether r_out is taken before the upsampler that ends the part left out,
            as in the paper's FLOPs, so that it runs always; or after it, as in the authors' code.
    """

    stage: int = 1
    before_upsampler: bool = True

    def place(self, unet: Any) -> Place:
        """Raises ValueError where the UNet has no such stage."""
        levels = len(unet.down_blocks)
        _check("stage", self.stage, 1, levels - 1)
        return Place((self.stage, 0), (levels - self.stage, 0), self.before_upsampler)


@dataclass(frozen=True)
class Branch:
    """DeepCache's cut (arXiv 2312.00858): the skip connections 0 to `branch` are made anew.

    With two layers a level, as in Stable Diffusion, this is `cache_branch_id`.
    """

    branch: int = 0

    def place(self, unet: Any) -> Place:
        """Raises ValueError where the UNet has no such skip connection."""
        skips = [(-1, 0)]  # conv_in
        for level, block in enumerate(unet.down_blocks):
            count = len(block.resnets) + len(block.downsamplers or ())
            skips += [(level, layer) for layer in range(count)]
        layers = [
            (up, i) for up, block in enumerate(unet.up_blocks) for i in range(len(block.resnets))
        ]
        if len(layers) != len(skips):
            raise ValueError(
                f"the UNet makes {len(skips)} skip connections for {len(layers)} decoder layers: "
                "it cannot be cut at a branch"
            )
        _check("branch", self.branch, 0, len(skips) - 1)
        left_out = [*skips, (len(unet.down_blocks), 0)][self.branch + 1]
        return Place(left_out, layers[-1 - self.branch])


@dataclass(frozen=True)
class Encoder:
    """Faster Diffusion's cut (arXiv 2312.09608): all but the decoder is left out.

    What is kept is every skip connection and the output of the middle.
    """


Cut = Stage | Branch | Encoder


def check_unet(unet: Any) -> None:
    """Raises ValueError for a network that is not built of the blocks of Stable Diffusion."""
    name = type(unet).__name__
    if "Transformer" in name:
        raise ValueError(
            f"{name} is a transformer, which has no levels to cut: features are reused in UNets "
            "(SD 1.x, SD 2.x, SDXL, InstructPix2Pix) for now"
        )
    if not all(
        hasattr(unet, part) for part in ("conv_in", "down_blocks", "mid_block", "up_blocks")
    ):
        raise ValueError(f"{name} is no UNet2DConditionModel: features are reused in these")
    blocks: list[tuple[Any, tuple[str, ...]]] = [(block, _DOWN) for block in unet.down_blocks]
    blocks += [(unet.mid_block, _MID), *((block, _UP) for block in unet.up_blocks)]
    for block, known in blocks:
        if type(block).__name__ not in known:
            raise ValueError(
                f"{name} holds a {type(block).__name__}: features are reused in UNets of "
                f"{', '.join((*_DOWN, *_MID[:2], *_UP))}"
            )


def _check(name: str, number: Any, least: int, most: int) -> None:
    whole = isinstance(number, int) and not isinstance(number, bool)
    if not whole or not least <= number <= most:
        allowed = f"{least} to {most}" if most >= least else "none, it has one level only"
        raise ValueError(f"{name}={number}: allowed on this UNet are {allowed}")
