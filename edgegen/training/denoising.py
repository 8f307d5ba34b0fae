"""Training of a text-conditioned latent diffusion UNet."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import lightning
import torch
from diffusers import (
    DiffusionPipeline,
    DPMSolverMultistepScheduler,
    SchedulerMixin,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, fully_shard
from transformers import CLIPModel, CLIPTextConfig, CLIPTextModel

from ..losses.diffusion import denoising_loss, diffuse, shift_time
from ..pipelines.layout import channels_last
from ..pipelines.recommended import checked_sampling
from ..pipelines.save import save_embedded
from .optimization import optimizer_and_schedule, step_generator


def text_encoder_of(clip: CLIPModel | CLIPTextModel) -> CLIPTextModel:
    """The text half of a CLIP as the CLIPTextModel that Stable Diffusion conditions on, frozen."""
    if isinstance(clip, CLIPTextModel):
        return copy.deepcopy(clip).eval().requires_grad_(False)
    config = CLIPTextConfig(**{**clip.config.text_config.to_dict(), "dtype": None})
    encoder = CLIPTextModel(config)
    encoder.load_state_dict(clip.text_model.state_dict(), strict=True)
    return encoder.eval().requires_grad_(False)


def frozen(net: nn.Module) -> nn.Module:
    """A network that is learned from: in evaluation mode, without gradients, channels last."""
    return channels_last(net.requires_grad_(False).eval())


class DenoisingModule(lightning.LightningModule):
    """ε- or v-prediction with Min-SNR weights and an exponential moving average of the weights.

    Args:
        unet: what is trained, a UNet2DConditionModel.
        clip: its text half conditions the UNet; or that half alone.
        scheduler: gives ᾱ and the prediction type.
        optimizer: keyword arguments of `optimization.optimizer_and_schedule`.
        ema_decay: of the averaged weights, which are what is exported and sampled from; null
            averages none, and the last weights take their place.
        gamma: of Min-SNR; null weighs all steps alike.
        shift: of the timesteps drawn, see `losses.diffusion.shift_time`; 1 draws all alike.
        compile: run the UNet through torch.compile.
        text_lr: learning rate of the text encoder, by AdamW without decay; null leaves it as it is.
        eager_attention: plain matrix products while training; on CPUs the fused kernel's backward
            pass is slower than theirs at these sizes.
        seed: of noise and timesteps.
        sampling: how what is exported is meant to be sampled from, which goes with it: `steps`,
            `guidance`, `image_guidance`, see `pipelines.recommended`.
    """

    alpha_bar: Tensor

    def __init__(
        self,
        unet: nn.Module,
        clip: CLIPModel | CLIPTextModel,
        scheduler: SchedulerMixin,
        optimizer: dict[str, Any],
        ema_decay: float | None = 0.9995,
        gamma: float | None = 5.0,
        shift: float = 1.0,
        compile: bool = False,
        text_lr: float | None = None,
        eager_attention: bool = False,
        seed: int = 0,
        sampling: dict[str, float] | None = None,
    ) -> None:
        super().__init__()
        self.sampling = checked_sampling(sampling or {}, "module.sampling")
        if not shift > 0:
            raise ValueError(f"module.shift={shift}: must be above 0; 1 draws all steps alike")
        self.unet = channels_last(unet)
        if eager_attention:
            self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder = text_encoder_of(clip).requires_grad_(text_lr is not None)
        self.scheduler, self.optimizer_options = scheduler, optimizer
        self.gamma, self.shift, self.seed, self.text_lr = gamma, shift, seed, text_lr
        self.ema: EMAModel | None = None
        if ema_decay is not None:
            self.ema = EMAModel(self._trained(), decay=ema_decay, foreach=True)
        self.register_buffer("alpha_bar", scheduler.alphas_cumprod.clone(), persistent=False)
        # In a tuple, so that the compiled twin is no second submodule with the same weights.
        self._forward = (torch.compile(self.unet) if compile else self.unet,)

    def check_sharding(self) -> None:
        """Say in a line why the weights cannot be split over processes, if they cannot."""
        if self.text_lr is not None:
            raise ValueError(
                "only the UNet can be sharded: set module.text_lr=null or use trainer=ddp"
            )
        if self.ema is not None:
            raise ValueError(
                "sharded weights are not averaged: set module.ema_decay=null or use trainer=ddp"
            )
        if self.optimizer_options.get("muon"):
            raise ValueError(
                "Muon needs whole matrices: set module.optimizer.muon=false or use trainer=ddp"
            )

    def configure_model(self) -> None:
        """Split the UNet over the processes of each machine, where the trainer asks for it."""
        if self.device_mesh is None or isinstance(self.unet, FSDPModule):
            return
        unet: Any = self.unet.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        for block in (*unet.down_blocks, unet.mid_block, *unet.up_blocks, unet):
            if block is not None:
                fully_shard(block, mesh=self.device_mesh)

    def _trained(self) -> list[nn.Parameter]:
        text = [] if self.text_lr is None else list(self.text_encoder.parameters())
        return [*self.unet.parameters(), *text]

    def noise(self, latents: Tensor, batch_idx: int) -> tuple[Tensor, Tensor]:
        """Noise and stratified timesteps, functions of the seed and the batch's place alone."""
        generator = step_generator(self, self.seed, batch_idx)
        noise = torch.randn(latents.shape, generator=generator, device=latents.device)
        count, steps = len(latents), len(self.alpha_bar)
        offset = torch.rand(1, generator=generator, device=latents.device)
        uniform = (torch.arange(count, device=latents.device) / count + offset) % 1
        return noise, (shift_time(uniform, self.shift) * steps).long().clamp_max(steps - 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        latents, tokens = batch
        return self.loss_of(latents, tokens, batch_idx)

    def loss_of(self, latents: Tensor, tokens: Tensor, batch_idx: int, *beside: Tensor) -> Tensor:
        """The loss of denoising `latents` (B, C, h, w) under `tokens` (B, L); logged.

        `beside` are (B, …, h, w) that the UNet sees with the noisy latents, as more channels.
        """
        text = self.text_encoder(tokens)[0]
        noise, timesteps = self.noise(latents, batch_idx)
        alpha_bar = self.alpha_bar[timesteps]
        seen = torch.cat([diffuse(latents, noise, alpha_bar), *beside], 1)
        seen = seen.contiguous(memory_format=torch.channels_last)
        output = self._forward[0](seen, timesteps, text, return_dict=False)[0]
        kind = self.scheduler.config.prediction_type
        loss = denoising_loss(output, latents, noise, alpha_bar, kind, self.gamma)
        self.log("train/loss", loss)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        # Not in `on_train_batch_end`, which comes after the checkpoint callback's own and also
        # after batches whose gradient is only accumulated.
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:
            self.ema.step(self._trained())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.ema is not None:
            checkpoint["ema"] = self.ema.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if ("ema" in checkpoint) != (self.ema is not None):
            kept = "an average of the weights" if "ema" in checkpoint else "no average"
            raise ValueError(f"the checkpoint holds {kept}: set module.ema_decay as it was")
        if self.ema is not None:
            if len(checkpoint["ema"]["shadow_params"]) != len(self.ema.shadow_params):
                raise ValueError(
                    "the checkpoint holds averages of other weights: set module.text_lr as it was"
                )
            self.ema.load_state_dict(checkpoint["ema"])

    def on_fit_start(self) -> None:
        if self.ema is not None:
            self.ema.to(self.device)

    def on_fit_end(self) -> None:
        if isinstance(self.unet, FSDPModule):
            self.unet = self.averaged()[0]

    def averaged(self) -> tuple[nn.Module, CLIPTextModel]:
        """Copies of the UNet and of the text encoder that hold the averaged weights.

        Where the weights are sharded, every process must ask for it; the first gets them.
        """
        text = copy.deepcopy(self.text_encoder).float().cpu().requires_grad_(False)
        sharded: Any = self.unet
        if isinstance(sharded, FSDPModule):
            options = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = get_model_state_dict(self.unet, options=options)
            whole: nn.Module = UNet2DConditionModel.from_config(dict(self.unet.config))  # type: ignore[arg-type]
            whole.load_state_dict(state or whole.state_dict())
            return whole.eval(), text
        unet = copy.deepcopy(self.unet).float().cpu().eval()
        if self.ema is not None:
            more = () if self.text_lr is None else text.parameters()
            self.ema.copy_to([*unet.parameters(), *more])
        return unet.to(memory_format=torch.contiguous_format), text  # type: ignore[call-overload]

    kind: type[DiffusionPipeline] = StableDiffusionPipeline
    """The pipeline that the parts make together."""

    def pipeline(self, data: Any) -> DiffusionPipeline:
        """Everything together as diffusers knows it, with averaged weights."""
        unet, text = self.averaged()
        return self.kind(
            vae=data.vae,
            text_encoder=text,
            tokenizer=data.tokenizer,
            unet=unet,
            scheduler=DPMSolverMultistepScheduler.from_config(self.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def export(self, folder: Path, data: Any) -> None:
        """Save the pipeline as a plain diffusers folder in float16."""
        save_embedded(self.pipeline(data), folder, self.sampling or None)

    def configure_optimizers(self) -> Any:
        text = {}
        if self.text_lr is not None:
            text = {"separate": self.text_encoder.parameters(), "separate_lr": self.text_lr}
        return optimizer_and_schedule(self.unet.parameters(), **text, **self.optimizer_options)


class TaughtModule(DenoisingModule):
    """What learns from a UNet of the same inputs.

    Args:
        unet: what is trained.
        teacher: frozen; in no checkpoint.
        arguments, options: further ones of `DenoisingModule`.

    Raises ValueError for `text_lr`.
    """

    def __init__(
        self, unet: nn.Module, teacher: nn.Module, *arguments: Any, **options: Any
    ) -> None:
        if options.get("text_lr") is not None:
            raise ValueError("module.text_lr: the teacher reads the same text; must be null")
        super().__init__(unet, *arguments, **options)
        self._teacher = (frozen(teacher),)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._teacher[0].to(self.device)
