"""CLIP scores against torchmetrics, directions by hand."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.multimodal import clip_score as torchmetrics_clip_score
from transformers import CLIPModel, CLIPProcessor

from edgegen.metrics.quality.clip import Clip
from edgegen.metrics.quality.text import (
    ClipScore,
    DirectionalSimilarity,
    directional_similarity,
)


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Clip:
    return Clip(clip_folder, name="judge")


def pictures(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.rand(count, 3, 20, 28, generator=generator) * 255).round() / 255


SHORT = ["a fox", "red apple", "x"]
CAPTIONS = ["a fox", "red apple", "the longest caption of all, cut off at its end"]


def test_clip_score_agrees_with_torchmetrics(clip: Clip, clip_folder: Path) -> None:
    model = CLIPModel.from_pretrained(clip_folder).eval()
    # torchmetrics wants tensors where transformers 5 gives model outputs.
    wrapper = SimpleNamespace(
        config=model.config,
        to=lambda _: wrapper,
        get_image_features=lambda pixels: _tensor(model.get_image_features(pixels)),
        get_text_features=lambda *given: _tensor(model.get_text_features(*given)),
    )
    processor = CLIPProcessor(clip.processor, clip.tokenizer)
    batch = pictures(3)
    signs = []
    for shift in range(3):
        # Captions that fit: torchmetrics cuts the end token off others.
        captions = (SHORT * 2)[shift : shift + 3]
        with torch.no_grad():
            known = torch.stack(
                [
                    torchmetrics_clip_score(
                        (p * 255).round().byte(), c, lambda: (wrapper, processor)
                    )
                    for p, c in zip(batch, captions, strict=True)
                ]
            )
        metric = ClipScore(clip)
        metric.update(batch[:2], captions[:2])
        metric.update(batch[2:], captions[2:])
        single = metric.samples()[0][:, 0].float()
        # Theirs is cut off below 0.
        torch.testing.assert_close(single.clamp(min=0), known, rtol=1e-4, atol=1e-4)
        found = metric.compute()
        assert found["quality/clip_judge"].item() == pytest.approx(single.mean().item())
        assert found["quality/clip_judge_n"] == 3
        signs += (known > 1).tolist()
    assert any(signs)


def _tensor(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output.pooler_output  # type: ignore[attr-defined]


def test_long_captions_are_cut_off(clip: Clip) -> None:
    long, longer = clip.captions([CAPTIONS[2], CAPTIONS[2] + " and more"])
    assert torch.equal(long, longer)


def test_a_caption_does_not_depend_on_its_batch(clip: Clip) -> None:
    together = clip.captions(CAPTIONS)
    apart = torch.cat([clip.captions([caption]) for caption in CAPTIONS])
    torch.testing.assert_close(together, apart)


def test_names_come_from_the_judge(clip_folder: Path) -> None:
    assert ClipScore(clip_folder).names == ("quality/clip_tiny0",)
    assert ClipScore(clip_folder, "judge").names == ("quality/clip_judge",)
    assert DirectionalSimilarity(clip_folder, "judge").names == ("quality/directional_judge",)


def test_directions_by_hand() -> None:
    right, up = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    along = directional_similarity(right, up, right, up)
    against = directional_similarity(right, up, up, right)
    across = directional_similarity(right, -right, up, -up)
    still = directional_similarity(right, right, right, up)
    found = torch.cat([along, against, across, still])
    torch.testing.assert_close(found, torch.tensor([1.0, -1.0, 0.0, 0.0]))


def test_directional_metric_uses_unit_embeddings(clip: Clip) -> None:
    before, after = pictures(2, 1), pictures(2, 2)
    metric = DirectionalSimilarity(clip)
    metric.update(before, after, ["a fox", "red"], ["a dog", "blue"])
    images = [clip(side) for side in (before, after)]
    images = [e / e.norm(dim=1, keepdim=True) for e in images]
    texts = clip.captions(["a dog", "blue"]) - clip.captions(["a fox", "red"])
    gap = images[1] - images[0]
    known = (gap * texts).sum(1) / gap.norm(dim=1) / texts.norm(dim=1)
    found = metric.compute()["quality/directional_judge"].item()
    assert found == pytest.approx(known.mean().item(), rel=1e-4)


def test_as_many_captions_as_pictures(clip: Clip) -> None:
    with pytest.raises(ValueError, match="got 2, 1"):
        ClipScore(clip).update(pictures(2), ["one"])
