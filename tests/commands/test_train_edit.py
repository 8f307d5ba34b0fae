from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

import edgegen
from edgegen.commands.train import main


@pytest.fixture
def typed(
    tmp_path: Path,
    emoji_file: Path,
    vae_folder: Path,
    clip_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> list[str]:
    """What is typed for a tiny training of an editor, but for `output_dir` and steps."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=2,
        cross_attention_dim=16,
        norm_num_groups=4,
    ).save_pretrained("unet")
    return [
        "experiment=edit/emoji",
        f"vae={vae_folder}",
        f"text={clip_folder}",
        "unet=unet",
        f"data.emoji={emoji_file}",
        "data.size=32",
        "data.sources=3",
        "data.edits=2",
        "data.batch_size=2",
        "data.cache=cache",
        "module.unet.sample_size=8",
        "module.compile=false",
        "module.optimizer.warmup=2",
        "module.optimizer.steps=9",
        "callbacks.samples.every=2",
        "callbacks.samples.pairs=2",
        "callbacks.samples.steps=1",
    ]


def test_resumed_equals_never_stopped(typed: list[str]) -> None:
    main([*typed, "output_dir=whole", "trainer.max_steps=4"])
    main([*typed, "output_dir=parts", "trainer.max_steps=3"])
    more = ["data.workers=1", "resume=true"]
    main([*typed, "output_dir=parts", "trainer.max_steps=4", *more])
    whole, parts = (
        torch.load(Path(name, "checkpoints/last.ckpt"), weights_only=True)
        for name in ("whole", "parts")
    )
    assert whole["EditData"] == parts["EditData"] == {"samples_seen": 8}
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, parts["state_dict"][name]), name
    for ours, theirs in zip(
        whole["ema"]["shadow_params"], parts["ema"]["shadow_params"], strict=True
    ):
        assert torch.equal(ours, theirs)
    assert {p.name for p in Path("whole/samples").iterdir()} == {
        "step_000002.png", "step_000004.png",
    }  # fmt: skip
    for path in Path("whole/model").rglob("*.safetensors"):
        assert path.read_bytes() == Path("parts", *path.parts[1:]).read_bytes(), path
    pipe = edgegen.load("whole/model")
    assert type(pipe).__name__ == "StableDiffusionInstructPix2PixPipeline"
    assert pipe.unet.config.in_channels == 2 * pipe.vae.config.latent_channels


def test_an_editor_becomes_cheaper_stage_by_stage(typed: list[str]) -> None:
    """Its dearest attention left out, then one branch for three, then one step for two."""
    more = ["trainer.max_steps=2", "callbacks.samples.every=2"]
    main([*typed, *more, "output_dir=base"])
    rest = [
        each for each in typed if not each.startswith(("experiment=", "vae=", "text=", "unet="))
    ]
    light = ["experiment=edit/efficient", "base=base/model", "output_dir=light"]
    main([*rest, *more, *light])
    guided = ["experiment=edit/guidance", "base=base/model", "student=light/model"]
    main([*rest, *more, *guided, "module.width=16", "output_dir=guided"])
    few = ["experiment=edit/few_step", "base=guided/model", "module.steps=1", "output_dir=few"]
    main([*rest, *more, *few])
    names = ("base", "light", "guided", "few")
    pipes = [edgegen.load(f"{name}/model") for name in names]
    attention = ["down_blocks.0.attentions" in str(pipe.unet.state_dict().keys()) for pipe in pipes]
    assert attention == [True, False, False, False]
    assert [pipe.unet.config.time_cond_proj_dim for pipe in pipes] == [None, None, 16, 16]
    texts = [pipe.text_encoder.state_dict() for pipe in pipes]
    for name, weight in texts[0].items():  # which the first training alone changes
        assert torch.equal(weight, texts[3][name]), name
    sheets = [Path(name, "samples/step_000002.png") for name in names]
    assert all(sheet.is_file() for sheet in sheets)
    assert pipes[3].scheduler.config.timestep_spacing == "trailing"
