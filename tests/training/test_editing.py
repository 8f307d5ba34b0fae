from __future__ import annotations

import json
from pathlib import Path

import diffusers
import lightning
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDPMScheduler,
    StableDiffusionInstructPix2PixPipeline,
    UNet2DConditionModel,
)
from PIL import Image
from test_denoising import Data, tiny_unet
from torch.utils.data import DataLoader
from transformers import CLIPModel

import edgegen
from edgegen.pipelines.parts import text_encoder
from edgegen.pipelines.variants import editor_unet, without_highest_attention
from edgegen.training.denoising import DenoisingModule, text_encoder_of
from edgegen.training.editing import EditingModule
from edgegen.training.samples import EditGrid


def random_unet(**changes: object) -> UNet2DConditionModel:
    return UNet2DConditionModel.from_config({**tiny_unet().config, **changes})


@pytest.fixture(scope="module")
def unet_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unet")
    tiny_unet().save_pretrained(folder)
    return folder


def tiny_editor(clip_folder: Path, unet_folder: Path, **options: object) -> EditingModule:
    scheduler = DDPMScheduler(prediction_type="v_prediction", steps_offset=1, clip_sample=False)
    optimizer = {"lr": 1e-2, "schedule": "constant", "warmup": 0, "steps": 9}
    clip = text_encoder(clip_folder)
    return EditingModule(editor_unet(unet_folder, 8), clip, scheduler, optimizer, **options)


BATCHES = [
    (
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(n)),
        torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(n + 50)),
        torch.randint(0, 500, (2, 12), generator=torch.Generator().manual_seed(n)),
    )
    for n in range(4)
]


class Pairs(lightning.LightningDataModule):
    """Fixed batches, and one held-out example."""

    def __init__(self, vae_folder: Path, clip_folder: Path) -> None:
        super().__init__()
        parts = Data(vae_folder, clip_folder)
        self.vae, self.tokenizer = parts.vae, parts.tokenizer

    def train_dataloader(self) -> DataLoader:
        return DataLoader(BATCHES, batch_size=None)

    def examples(self, count: int) -> list[tuple[np.ndarray, str, np.ndarray]]:
        picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        return [(picture, "make it red", 255 - picture)] * count


def fit(module: EditingModule, data: Pairs, **options: object) -> None:
    trainer = lightning.Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, **{"max_steps": 3, **options},
    )  # fmt: skip
    trainer.fit(module, data)


# Weights to begin with


@torch.no_grad()
def test_a_widened_unet_equals_the_one_it_was_made_of(unet_folder: Path) -> None:
    base, editor = tiny_unet().eval(), editor_unet(unet_folder, 8).eval()
    assert (editor.config.in_channels, editor.config.sample_size) == (8, 8)
    noisy, source = torch.randn(2, 2, 4, 16, 16).unbind(0)
    text, step = torch.randn(2, 5, 16), torch.tensor([900, 3])
    wanted = base(noisy, step, text).sample
    for beside in (torch.zeros_like(source), source):
        found = editor(torch.cat([noisy, beside], 1), step, text).sample
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    # The zeros learn: the gradient of the new weights is not zero.
    with torch.enable_grad():
        loss = editor(torch.cat([noisy, source], 1), step, text).sample.square().mean()
        loss.backward()
    assert editor.conv_in.weight.grad[:, 4:].abs().max() > 0


@torch.no_grad()
def test_an_editor_stays_as_it_is_but_for_its_dearest_attention(
    unet_folder: Path, tmp_path: Path
) -> None:
    first = editor_unet(unet_folder, 8).eval()
    torch.nn.init.normal_(first.conv_in.weight)
    first.save_pretrained(tmp_path / "unet")
    inputs = torch.randn(2, 8, 16, 16), torch.tensor([900, 3]), torch.randn(2, 5, 16)
    again = editor_unet(tmp_path / "unet", 8).eval()
    assert torch.equal(again(*inputs).sample, first(*inputs).sample)
    light = editor_unet(tmp_path / "unet", 8, highest_attention=False).eval()
    plain = without_highest_attention(tmp_path / "unet").eval()
    assert torch.equal(light(*inputs).sample, plain(*inputs).sample)
    assert not torch.equal(light(*inputs).sample, first(*inputs).sample)


def test_no_editor_is_made_of_an_inpainting_model(tmp_path: Path) -> None:
    given = {k: v for k, v in tiny_unet().config.items() if k[0] != "_"}
    UNet2DConditionModel(**{**given, "in_channels": 9}).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="takes 9 channels and gives 4"):
        editor_unet(tmp_path)


def test_random_weights_in_the_same_architecture(unet_folder: Path) -> None:
    fresh = editor_unet(unet_folder, trained=False)
    assert fresh.config.sample_size == 16
    assert fresh.conv_in.weight[:, 4:].abs().max() > 0


def test_other_channels_are_refused(clip_folder: Path) -> None:
    with pytest.raises(ValueError, match="must take twice the latent channels"):
        EditingModule(random_unet(), CLIPModel.from_pretrained(clip_folder), DDPMScheduler(), {})


@torch.no_grad()
def test_text_encoders_are_found_in_a_clip_and_in_a_pipeline(
    clip_folder: Path, vae_folder: Path, unet_folder: Path, tmp_path: Path
) -> None:
    module = tiny_editor(clip_folder, unet_folder)
    module.export(tmp_path / "model", Data(vae_folder, clip_folder))
    ids = BATCHES[0][2]
    whole = text_encoder_of(text_encoder(clip_folder))
    half = text_encoder_of(text_encoder(tmp_path / "model"))
    torch.testing.assert_close(half(ids)[0], whole(ids)[0], atol=5e-3, rtol=5e-3)
    assert not any(parameter.requires_grad for parameter in half.parameters())


# Training


@pytest.mark.parametrize("gamma", [None, 5.0])
def test_loss_is_that_of_instruct_pix2pix(
    clip_folder: Path, vae_folder: Path, unet_folder: Path, gamma: float | None
) -> None:
    """The UNet sees [noisy target, source]; diffusers' scheduler gives noise and target."""
    module = tiny_editor(clip_folder, unet_folder, gamma=gamma)
    torch.nn.init.normal_(module.unet.conv_in.weight)
    seen: list[torch.Tensor] = []
    module.log = lambda name, value: seen.append(value.detach())  # type: ignore[method-assign]

    class Trainer:
        accumulate_grad_batches, world_size, global_rank, global_step = 1, 1, 0, 2

    module._trainer = Trainer()
    source, target, tokens = BATCHES[1]
    loss = module.training_step(BATCHES[1], 0)
    noise, steps = module.noise(target, 0)
    scheduler = module.scheduler
    noisy = scheduler.add_noise(target, noise, steps)
    output = module.unet(
        torch.cat([noisy, source], 1), steps, module.text_encoder(tokens)[0]
    ).sample
    error = (output - scheduler.get_velocity(target, noise, steps)).square().mean((1, 2, 3))
    alpha = scheduler.alphas_cumprod[steps]
    snr = alpha / (1 - alpha)
    wanted = (error if gamma is None else error * snr.clamp(max=gamma) / (snr + 1)).mean()
    torch.testing.assert_close(loss, wanted, atol=1e-5, rtol=1e-4)
    assert torch.equal(seen[0], loss.detach())


def test_both_halves_of_the_input_are_trained(
    clip_folder: Path, vae_folder: Path, unet_folder: Path
) -> None:
    module = tiny_editor(clip_folder, unet_folder)
    before = module.unet.conv_in.weight.detach().clone()
    fit(module, Pairs(vae_folder, clip_folder))
    moved = (module.unet.conv_in.weight - before).abs().amax((0, 2, 3))
    assert (moved > 1e-3).all()
    assert isinstance(module, DenoisingModule)


def test_the_export_is_a_plain_pipeline_that_edits_as_ours(
    clip_folder: Path, vae_folder: Path, unet_folder: Path, tmp_path: Path
) -> None:
    module, data = tiny_editor(clip_folder, unet_folder), Pairs(vae_folder, clip_folder)
    fit(module, data)
    module.export(tmp_path / "model", data)
    index = json.loads((tmp_path / "model" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionInstructPix2PixPipeline"
    plain = diffusers.DiffusionPipeline.from_pretrained(tmp_path / "model", safety_checker=None)
    ours = edgegen.load(tmp_path / "model")
    image = Image.fromarray(data.examples(1)[0][0])
    made = []
    for pipe in (plain, ours, module.pipeline(data)):
        assert type(pipe) is StableDiffusionInstructPix2PixPipeline
        pipe.set_progress_bar_config(disable=True)
        made.append(
            pipe(
                "make it red", image=image, num_inference_steps=3, guidance_scale=3.0,
                image_guidance_scale=1.5, generator=torch.Generator().manual_seed(0),
                output_type="np",
            ).images
        )  # fmt: skip
    assert np.array_equal(made[0], made[1])
    assert np.abs(made[0] - made[2]).max() < 0.05  # but for float16 in the file
    assert made[0].shape == (1, 32, 32, 3)


@torch.no_grad()
def test_the_pipeline_conditions_on_what_training_saw(
    clip_folder: Path, vae_folder: Path, unet_folder: Path
) -> None:
    """The source's latents in the data, and zeros for a dropped one, are the pipeline's own."""
    data = Data(vae_folder, clip_folder)
    data.vae.register_to_config(scaling_factor=0.3)
    pipe = tiny_editor(clip_folder, unet_folder).pipeline(data)
    pixels = torch.rand(1, 3, 32, 32) * 2 - 1
    found = pipe.prepare_image_latents(pixels, 1, 1, torch.float32, "cpu", True)
    source = AutoencoderKL.from_pretrained(vae_folder).encode(pixels).latent_dist.mode()
    assert torch.equal(found, torch.cat([source, source, torch.zeros_like(source)]))


def test_a_grid_shows_source_target_and_edit(
    clip_folder: Path, vae_folder: Path, unet_folder: Path, tmp_path: Path
) -> None:
    module, data = tiny_editor(clip_folder, unet_folder), Pairs(vae_folder, clip_folder)
    callback = EditGrid(str(tmp_path / "samples"), every=2, pairs=3, columns=1, steps=1)
    fit(module, data, max_steps=4, callbacks=[callback])
    files = sorted(path.name for path in (tmp_path / "samples").iterdir())
    assert files == ["step_000002.png", "step_000004.png"]
    with Image.open(tmp_path / "samples" / files[0]) as image:
        shown = np.asarray(image.convert("RGB"))
    source = data.examples(1)[0][0].repeat(3, 0).repeat(3, 1)
    for row in range(3):  # three times as large, 8 pixels apart, each row above its caption
        top = 8 + row * (shown.shape[0] - 8) // 3
        assert np.array_equal(shown[top : top + 96, 8:104], source)
        assert np.array_equal(shown[top : top + 96, 112:208], 255 - source)
