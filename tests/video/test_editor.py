"""The editor against plain diffusers, attention written anew, and itself in another order."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    LatentConsistencyModelPipeline,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
)
from edits import INSTRUCTION, SEED, STEPS, edit, plain
from video_models import BETAS, MadeClip, picture

import edgegen
from edgegen.assets import write_sums
from edgegen.media.clips import Frame
from edgegen.pipelines.recommended import read_sampling
from edgegen.pipelines.save import save_embedded
from edgegen.pipelines.variants import with_guidance_input
from edgegen.reuse.gating import gating
from edgegen.sampling.generate import noise_generator
from edgegen.sampling.guidance import edit_guidance
from edgegen.video import VideoEditor
from edgegen.video.editor import SCHEDULES


def test_one_anchor_alone_is_the_plain_model(any_scheduler: Any, tmp_path: Path) -> None:
    found = edit(any_scheduler, MadeClip(1), tmp_path, 1)
    assert np.array_equal(found, plain(any_scheduler, [0]))
    assert found.std() > 10


def test_a_model_that_takes_both_scales_is_evaluated_once(pipe: Any, tmp_path: Path) -> None:
    pipe.unet = with_guidance_input(pipe.unet, 16).eval()
    torch.nn.init.normal_(pipe.unet.time_embedding.cond_proj.weight)
    seen: list[int] = []
    pipe.unet.conv_in.register_forward_hook(lambda _, args, out: seen.append(len(out)))
    found = edit(pipe, MadeClip(1), tmp_path, 1, guidance=4.0, image_guidance=2.0)
    assert seen == [1] * STEPS
    with edit_guidance(pipe, 4.0, 2.0) as scales:
        assert np.array_equal(found, plain(pipe, [0], **scales))
    assert not np.array_equal(found, edit(pipe, MadeClip(1), tmp_path, 1, image_guidance=2.5))


def test_the_scales_are_those_that_the_model_says(pipe: Any, tmp_path: Path) -> None:
    said = {"steps": 3, "guidance": 2.0, "image_guidance": 1.25}
    folder = save_embedded(pipe, tmp_path / "model", said)
    loaded = edgegen.load(folder)
    loaded.set_progress_bar_config(disable=True)
    made = tmp_path / "made"
    made.mkdir()
    own = edit(loaded, MadeClip(2), made, 1, guidance=None, steps=None)
    scales = {"guidance": 2.0, "image_guidance": 1.25}
    assert np.array_equal(own, edit(loaded, MadeClip(2), made, 1, **scales))
    (folder / "sampling.json").unlink()
    write_sums(folder)
    usual = edit(loaded, MadeClip(2), made, 1, guidance=None)
    scales = {"guidance": 7.5, "image_guidance": 1.5}
    assert np.array_equal(usual, edit(loaded, MadeClip(2), made, 1, **scales))
    assert not np.array_equal(own, usual)
    for text, said in (
        ('{"guidance": "2"}', "guidance=2: must be a number from 0"),
        ('{"steps": 2.5}', "steps=2.5"),
        ('{"scale": 2}', "unknown key 'scale'; allowed: steps, guidance, image_guidance"),
        ("[2]", "expected a JSON object"),
    ):
        (folder / "sampling.json").write_text(text)
        with pytest.raises(ValueError, match=said):
            read_sampling(folder)


def test_behind_a_gate_every_frame_keeps_its_own(sd_pipe: Any, tmp_path: Path) -> None:
    """One branch of the batch runs there: chunks and anchors are told apart as before."""
    run = partial(edit, sd_pipe, MadeClip(6), tmp_path, steps=6, strength=1.0)
    plain = run(2, chunk=2)
    with gating(sd_pipe, 2):
        gated = [run(anchors, chunk=chunk) for anchors in (2, "none") for chunk in (2, 4, 1)]
        unguided = [run("none", chunk=chunk, guidance=1.0) for chunk in (1, 4)]
    for first, second in ((0, 1), (0, 2), (3, 4), (3, 5)):
        assert np.abs(gated[first].astype(int) - gated[second]).max() <= 2
    assert np.abs(unguided[0].astype(int) - unguided[1]).max() <= 2
    assert np.abs(gated[0].astype(int) - plain).max() > 2
    assert np.abs(gated[0][3].astype(int) - gated[0][1]).max() > 2
    assert getattr(sd_pipe, "_guidance_scale", None) is None


def test_a_latent_consistency_model_edits(sd_pipe: Any, tmp_path: Path) -> None:
    unet = with_guidance_input(sd_pipe.unet, 16).eval()
    parts = {name: part for name, part in sd_pipe.components.items() if name != "image_encoder"}
    parts |= {"unet": unet, "scheduler": LCMScheduler(**BETAS)}
    pipe = LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    same = StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False)
    for each in (pipe, same):
        each.set_progress_bar_config(disable=True)
    found = edit(pipe, MadeClip(3), tmp_path, 1, steps=4, strength=0.8)
    assert np.array_equal(found, edit(same, MadeClip(3), tmp_path, 1, steps=4, strength=0.8))
    assert found.std() > 10


def test_without_own_keys_the_anchor_itself_is_the_plain_model(pipe: Any, tmp_path: Path) -> None:
    """A frame equal to the anchor, attending to the anchor alone; and to itself twice."""

    class Still(MadeClip):
        def __iter__(self) -> Any:
            return (Frame(picture(0), number, 1) for number in range(2))

    wanted = plain(pipe, [0])[0]
    alone = edit(pipe, Still(2), tmp_path, [0], own=False, chunk=1)
    assert np.array_equal(alone, np.stack([wanted, wanted]))
    twice = edit(pipe, Still(2), tmp_path, [0], own=True, chunk=1)
    assert np.array_equal(twice[0], wanted)
    assert np.abs(twice[1].astype(int) - wanted).max() <= 1  # the same but for rounding


@pytest.mark.parametrize("strength", [0.4, 1.0])
def test_img2img_is_that_of_diffusers(sd_pipe: Any, tmp_path: Path, strength: float) -> None:
    found = edit(sd_pipe, MadeClip(1), tmp_path, 1, steps=5, strength=strength)
    vae = sd_pipe.vae
    pixels = torch.from_numpy(picture(0)).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist.mode() * vae.config.scaling_factor
    other = StableDiffusionImg2ImgPipeline(**sd_pipe.components, requires_safety_checker=False)
    other.set_progress_bar_config(disable=True)
    wanted = other(
        INSTRUCTION,
        image=latents,
        strength=strength,
        num_inference_steps=5,
        guidance_scale=4.0,
        generator=noise_generator(SEED, 0),
    ).images[0]
    assert np.abs(found[0].astype(int) - np.asarray(wanted)).max() <= 1


class Joint:
    """Self-attention over all pictures of a guidance branch, written anew."""

    def __init__(self, attended: Sequence[int] | None = None) -> None:
        self.attended = attended

    def __call__(self, attn: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
        batch, tokens, width = hidden_states.shape
        branches = hidden_states.view(3, batch // 3, tokens, width)
        outs = []
        for branch in branches:
            for number, one in enumerate(branch):
                if self.attended is None or number in self.attended:
                    seen = branch if self.attended is None else branch[list(self.attended)]
                else:
                    seen = torch.cat([one[None], branch[list(self.attended)]])
                key, value = attn.to_k(seen.flatten(0, 1)), attn.to_v(seen.flatten(0, 1))
                heads = [
                    each.unflatten(-1, (attn.heads, -1)) for each in (attn.to_q(one), key, value)
                ]
                scores = torch.einsum("qhd,khd->hqk", heads[0], heads[1]) * attn.scale
                outs.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), heads[2]).flatten(1))
        return attn.to_out[0](torch.stack(outs))


def test_all_of_it_at_once(pipe: Any, tmp_path: Path) -> None:
    """All frames in one batch, with every attention written out, give the same pictures."""
    frames, anchors = 7, (1, 3, 5)
    found = edit(pipe, MadeClip(frames), tmp_path, list(anchors), chunk=3)
    before = dict(pipe.unet.attn_processors)
    pipe.unet.set_attn_processor(
        {k: Joint(anchors) if "attn1" in k else v for k, v in before.items()}
    )
    wanted = plain(pipe, range(frames))
    assert np.abs(found.astype(int) - wanted).max() <= 1
    # The anchors are those of their joint denoising, whatever the other frames are.
    pipe.unet.set_attn_processor({k: Joint() if "attn1" in k else v for k, v in before.items()})
    assert np.abs(found[list(anchors)].astype(int) - plain(pipe, anchors)).max() <= 1
    pipe.unet.set_attn_processor(before)
    assert np.abs(found.astype(int) - plain(pipe, range(frames))).max() > 5


# Noise


def test_frames_differ_by_their_source_alone(pipe: Any, tmp_path: Path) -> None:
    class Still(MadeClip):
        def __iter__(self) -> Any:
            return (Frame(picture(3), number, 1) for number in range(5))

    # The frames of a chunk, and of its padding, come from the same noise at every step.
    found = edit(pipe, Still(5), tmp_path, [2], chunk=3)
    assert np.abs(found.astype(int) - found[:1]).max() <= 1
    other = edit(pipe, Still(5), tmp_path, [2], chunk=3, seed=SEED + 1)
    assert np.abs(found.astype(int) - other).max() > 5


# Settings


def test_without_anchors_every_frame_is_edited_as_a_picture(pipe: Any, tmp_path: Path) -> None:
    run = partial(edit, pipe, MadeClip(5), tmp_path, "none", chunk=2)
    alone = np.concatenate([plain(pipe, [number]) for number in range(5)])
    one, two = (run(schedule=each) for each in ("frames", "steps"))
    assert np.array_equal(one, two)
    assert np.abs(one.astype(int) - alone).max() <= 1


def test_every_frame_may_have_noise_of_its_own(pipe: Any, tmp_path: Path) -> None:
    class Still(MadeClip):
        def __iter__(self) -> Any:
            return (Frame(picture(3), number, 1) for number in range(5))

    def own(clip: MadeClip, **settings: Any) -> np.ndarray:
        return edit(pipe, clip, tmp_path, "none", shared_noise=False, **settings)

    still = own(Still(5), chunk=3)
    differences = np.abs(still[1:].astype(int) - still[:-1]).mean((1, 2, 3))
    assert differences.min() > 1
    # It depends on the frame's number, not on its chunk, nor on the clip's length.
    one, two = (own(MadeClip(5), schedule=each, chunk=2) for each in ("frames", "steps"))
    assert np.array_equal(one, two)
    assert np.abs(own(MadeClip(3), chunk=2).astype(int) - one[:3]).max() <= 1
    assert np.abs(own(MadeClip(5), chunk=5).astype(int) - one).max() <= 1


def test_preview_is_the_clip_of_its_first_frames(pipe: Any, tmp_path: Path) -> None:
    assert np.array_equal(
        edit(pipe, MadeClip(9), tmp_path, 2, limit=4), edit(pipe, MadeClip(4), tmp_path, 2)
    )


@pytest.mark.parametrize("size", [(15, 19), (1, 9), (40, 25), (16, 200)])
def test_sizes(pipe: Any, tmp_path: Path, size: tuple[int, int]) -> None:
    found = edit(pipe, MadeClip(4, *size), tmp_path, 1, resolution=20, steps=1)
    scale = min(1, 20 / max(size))
    assert found.shape[1:3] == tuple(max(1, round(side * scale)) for side in size)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"instruction": "  "}, "instruction: is empty"),
        ({"anchors": 6}, "anchors=6: the clip has only 5 frames"),
        ({"anchors": [5]}, "frames 0 to 4"),
        ({"steps": 0}, "steps=0"),
        ({"seed": -1}, "seed=-1"),
        ({"strength": 0.0}, "strength=0"),
        ({"limit": 0}, "limit=0"),
        ({"resolution": 1}, "resolution=1"),
        ({"chunk": 0}, "chunk=0"),
        ({"schedule": "both"}, "schedule=both: allowed are auto, frames, steps"),
        ({"output": "a.xyz"}, "no container with the ending .xyz"),
        ({"codec": "nonsense", "output": "a.mkv"}, "nonsense is no encoder"),
    ],
)
def test_bad_settings_write_nothing(
    pipe: Any, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    instruction = settings.pop("instruction", INSTRUCTION)
    anchors = settings.pop("anchors", 2)
    own = {key: settings.pop(key) for key in ("schedule", "chunk") if key in settings}
    before = sorted(tmp_path.iterdir())
    output = tmp_path / settings.pop("output", "a.mkv")
    with pytest.raises(ValueError, match=message) as refused:
        VideoEditor(pipe, anchors, **own).edit(MadeClip(5), output, instruction, **settings)
    assert "\n" not in str(refused.value)
    assert sorted(tmp_path.iterdir()) == before


def test_other_pipelines_are_refused() -> None:
    with pytest.raises(ValueError, match="dict cannot edit a video; allowed are StableDiff"):
        VideoEditor({})
    assert SCHEDULES == ("auto", "frames", "steps")


def test_the_pipeline_is_as_before(pipe: Any, tmp_path: Path) -> None:
    def state() -> tuple[Any, ...]:
        scheduler = {k: v for k, v in vars(pipe.scheduler).items() if not torch.is_tensor(v)}
        return dict(pipe.unet.attn_processors), list(pipe.unet.state_dict()), scheduler

    before, picture_before = state(), plain(pipe, [0])
    before = state()
    edit(pipe, MadeClip(4), tmp_path, 2)
    with pytest.raises(ZeroDivisionError):
        edit(pipe, MadeClip(4), tmp_path, 2, progress=lambda done, total: 1 // 0)
    assert state() == before
    assert np.array_equal(plain(pipe, [0]), picture_before)
