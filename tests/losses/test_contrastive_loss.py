from __future__ import annotations

import math

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from edgegen.losses.contrastive import clip_loss


@pytest.fixture
def embeddings() -> tuple[torch.Tensor, torch.Tensor]:
    return tuple(torch.randn(2, 7, 5, generator=torch.Generator().manual_seed(0)) * 3)


def by_hand(images, texts, scale, groups) -> float:
    def unit(x):
        return [[c / math.dist(v, [0] * len(v)) for c in v] for v in x.tolist()]

    u, v = unit(images), unit(texts)
    total = 0.0
    for queries, keys in ((u, v), (v, u)):
        for i, query in enumerate(queries):
            allowed = [j for j in range(len(keys)) if j == i or groups[j] != groups[i]]
            dots = {
                j: scale * sum(a * b for a, b in zip(query, keys[j], strict=True)) for j in allowed
            }
            total += math.log(sum(math.exp(d) for d in dots.values())) - dots[i]
    return total / (2 * len(u))


@pytest.mark.parametrize("groups", [[0, 1, 2, 3, 4, 5, 6], [0, 0, 1, 2, 1, 1, 3], [4] * 7])
def test_against_loops(embeddings, groups) -> None:
    images, texts = embeddings
    got = clip_loss(images, texts, torch.tensor(1.3), torch.tensor(groups))
    assert got.item() == pytest.approx(by_hand(images, texts, math.exp(1.3), groups), rel=1e-5)


def test_against_transformers_where_all_captions_differ() -> None:
    half = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    half |= {"num_attention_heads": 1}
    torch.manual_seed(0)
    text = {**half, "vocab_size": 50, "max_position_embeddings": 4, "eos_token_id": 2}
    vision = {**half, "image_size": 8, "patch_size": 8}
    model = CLIPModel(CLIPConfig(projection_dim=4, text_config=text, vision_config=vision))
    output = model(
        input_ids=torch.randint(0, 50, (6, 4)),
        pixel_values=torch.randn(6, 3, 8, 8),
        return_loss=True,
    )
    got = clip_loss(output.image_embeds, output.text_embeds, model.logit_scale, torch.arange(6))
    torch.testing.assert_close(got, output.loss)


def test_equal_captions_are_no_negatives_of_each_other(embeddings) -> None:
    images, texts = embeddings
    images.requires_grad_()
    clip_loss(images, texts, torch.tensor(1.0), torch.tensor([3] * 7)).backward()
    # Nothing to tell apart: no gradient.
    torch.testing.assert_close(images.grad, torch.zeros_like(images))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_finite(embeddings, dtype) -> None:
    images, texts = (x.to(dtype).requires_grad_() for x in embeddings)
    loss = clip_loss(images, texts, torch.tensor(4.6), torch.tensor([0, 0, 1, 1, 2, 3, 4]))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(images.grad).all()
