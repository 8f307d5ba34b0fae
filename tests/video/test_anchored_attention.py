"""The bank against attention written out by hand, the plain model and the published size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention
from omegaconf import OmegaConf
from video_models import make_unet

from edgegen.cost import CostTracker
from edgegen.pipelines.architectures import build
from edgegen.video.attention import AnchoredAttention, Bank, anchored_attention, bank_bytes

CONFIGS = Path(__file__).parents[2] / "configs"
BRANCHES, TOKENS, WIDTH, HEADS = 3, 6, 8, 2


def layer(**settings: Any) -> Attention:
    torch.manual_seed(3)
    attn = Attention(query_dim=WIDTH, heads=HEADS, dim_head=WIDTH // HEADS, **settings).eval()
    return attn.requires_grad_(False)


def anchored(attn: Attention, own: bool = True) -> Bank:
    bank = Bank(own)
    bank.branches = BRANCHES
    attn.set_processor(AnchoredAttention(bank, "layer", attn.processor))
    return bank


def batch(frames: int, seed: int) -> torch.Tensor:
    """(BRANCHES · frames, TOKENS, WIDTH), branch by branch."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(BRANCHES * frames, TOKENS, WIDTH, generator=generator)


def by_hand(attn: Attention, tokens: torch.Tensor, seen: list[torch.Tensor]) -> torch.Tensor:
    """One frame's attention, token by token and head by head, to all tokens of `seen`."""
    context = torch.cat(seen).double()
    to_q, to_k, to_v = (each.weight.double() for each in (attn.to_q, attn.to_k, attn.to_v))
    out = torch.zeros(TOKENS, WIDTH, dtype=torch.float64)
    size = WIDTH // HEADS
    for head in range(HEADS):
        part = slice(head * size, (head + 1) * size)
        keys = (context @ to_k.T)[:, part]
        values = (context @ to_v.T)[:, part]
        for token in range(TOKENS):
            query = (tokens[token].double() @ to_q.T)[part]
            weights = [torch.exp(query @ key / size**0.5) for key in keys]
            out[token, part] = sum(
                w * value for w, value in zip(weights, values, strict=True)
            ) / sum(weights)
    return out @ attn.to_out[0].weight.double().T + attn.to_out[0].bias.double()


def close(found: torch.Tensor, wanted: torch.Tensor) -> None:
    torch.testing.assert_close(found.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("own", [True, False])
def test_frames_see_the_anchors_of_their_branch_and_step(own: bool) -> None:
    attn = layer()
    bank = anchored(attn, own)
    anchors, others = {0: batch(2, 1), 1: batch(2, 2)}, batch(4, 3)
    bank.mode = "record"
    for step in (0, 1):
        bank.step = step
        together = attn(anchors[step])
        for branch in range(BRANCHES):
            pair = list(anchors[step].view(BRANCHES, 2, TOKENS, WIDTH)[branch])
            for number, tokens in enumerate(pair):
                found = together.view(BRANCHES, 2, TOKENS, WIDTH)[branch, number]
                torch.testing.assert_close(
                    found.double(), by_hand(attn, tokens, pair), rtol=1e-4, atol=1e-5
                )
    bank.mode = "attend"
    for step in (1, 0):
        bank.step = step
        found = attn(others).view(BRANCHES, 4, TOKENS, WIDTH)
        for branch in range(BRANCHES):
            pair = list(anchors[step].view(BRANCHES, 2, TOKENS, WIDTH)[branch])
            for frame in range(4):
                tokens = others.view(BRANCHES, 4, TOKENS, WIDTH)[branch, frame]
                seen = [tokens, *pair] if own else pair
                wanted = by_hand(attn, tokens, seen)
                torch.testing.assert_close(
                    found[branch, frame].double(), wanted, rtol=1e-4, atol=1e-5
                )


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"bias": True, "residual_connection": True, "rescale_output_factor": 2.0},
        {"norm_num_groups": 4, "eps": 1e-5, "residual_connection": True},
        {"qk_norm": "layer_norm"},
    ],
)
@pytest.mark.parametrize("image", [False, True])
def test_one_anchor_that_is_the_frame_is_plain_attention(
    settings: dict[str, Any], image: bool
) -> None:
    attn = layer(**settings)
    tokens = batch(1, 4)
    if image:  # (B, C, H, W)
        tokens = tokens.transpose(1, 2).reshape(BRANCHES, WIDTH, 2, 3).contiguous()
    plain = attn(tokens)
    bank = anchored(attn, own=False)
    assert torch.equal(attn(tokens), plain)
    bank.mode = "record"
    assert torch.equal(attn(tokens), plain)
    bank.mode = "attend"
    assert torch.equal(attn(tokens), plain)
    bank.get("layer")[1].zero_()
    assert not torch.equal(attn(tokens), plain)


def test_cross_attention_and_masks() -> None:
    attn = layer()
    tokens, text = batch(1, 5), batch(1, 6)
    plain = attn(tokens, encoder_hidden_states=text)
    bank = anchored(attn)
    bank.mode = "record"
    assert torch.equal(attn(tokens, encoder_hidden_states=text), plain)
    assert bank.steps() == []
    with pytest.raises(ValueError, match="takes no attention mask"):
        attn(tokens, attention_mask=torch.zeros(BRANCHES, 1, TOKENS))


def test_the_bank_keeps_and_forgets_by_step() -> None:
    attn = layer()
    bank = anchored(attn)
    bank.mode = "record"
    for bank.step in (0, 1, 2):
        attn(batch(2, bank.step))
    assert bank.nbytes == 3 * 2 * BRANCHES * 2 * TOKENS * WIDTH * 4
    bank.forget(1)
    assert bank.steps() == [0, 2]
    bank.step = 1
    bank.mode = "attend"
    with pytest.raises(RuntimeError, match="nothing in layer at step 1"):
        attn(batch(1, 0))
    bank.forget()
    assert bank.nbytes == 0


def call(unet: Any, frames: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(8)
    latents = torch.randn(frames, 8, 9, 7, generator=generator)
    text = torch.randn(frames, 5, 16, generator=generator)
    with torch.no_grad():
        return unet(latents, 10, encoder_hidden_states=text).sample


def test_on_exit_all_is_as_before() -> None:
    unet = make_unet()
    processors, keys = dict(unet.attn_processors), list(unet.state_dict())
    before = call(unet)
    with anchored_attention(unet) as bank:
        assert torch.equal(call(unet), before)  # until told otherwise
        bank.mode = "record"
        assert not torch.allclose(call(unet), before)
        assert list(unet.state_dict()) == keys
    with pytest.raises(ZeroDivisionError), anchored_attention(unet):
        bank.step = 1 // 0
    assert unet.attn_processors == processors
    assert all(unet.attn_processors[name] is each for name, each in processors.items())
    assert torch.equal(call(unet), before)
    assert bank.nbytes == 0
    assert "_cost_modes" not in vars(unet)


def test_anchors_see_each_other_and_frames_see_them() -> None:
    """Through a whole UNet: a frame's output moves with the anchors, an anchor's with the other."""
    unet = make_unet()
    with anchored_attention(unet) as bank:
        bank.mode = "record"
        call(unet)
        bank.mode = "attend"
        first = call(unet, 1)
        for kept in bank._kept.values():
            kept[1].mul_(2)
        assert not torch.allclose(call(unet, 1), first)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 12)])
def test_the_size_of_a_bank_is_foretold(size: tuple[int, int]) -> None:
    unet = make_unet()
    latents, text = torch.zeros(6, 8, *size), torch.zeros(6, 5, 16)
    with anchored_attention(unet) as bank, torch.no_grad():
        bank.mode, bank.branches = "record", 3
        unet(latents, 10, encoder_hidden_states=text)
        assert bank.nbytes == 6 * bank_bytes(unet, size)


def test_the_published_size_of_a_bank() -> None:
    """SD 1.5 in half precision at 512×384: 34.65 MB an anchor, guidance branch and step."""
    component: Any = OmegaConf.load(CONFIGS / "component" / "ip2p-unet.yaml")
    base = OmegaConf.load(CONFIGS / "component" / "sd15-unet.yaml")
    component.pop("defaults", None)
    unet = build(OmegaConf.to_container(OmegaConf.merge(base, component))).to(torch.float16)
    layers = [name for name in unet.attn_processors if "attn1" in name]
    assert len(layers) == 16
    assert bank_bytes(unet, (48, 64)) / 1e6 == pytest.approx(34.65, abs=0.01)


def test_what_anchors_cost_is_counted() -> None:
    """Attention to K anchors beside one's own keys: (1 + K) times the products."""
    unet = make_unet()
    with anchored_attention(unet) as bank:
        found = {}
        for mode, frames in (("plain", 1), ("record", 3), ("attend", 1)):
            with CostTracker(unet) as cost:
                bank.mode = mode
                call(unet, frames)
            total = cost.summary().total
            found[mode] = (total.macs_all - total.macs_conv_linear) / frames
    inner = sum(
        layers * tokens * tokens * 2 * width  # one layer down and two up, one in the middle
        for layers, tokens, width in ((3, 9 * 7, 8), (3, 5 * 4, 16), (1, 3 * 2, 16))
    )
    assert found["record"] - found["plain"] == 2 * inner
    assert found["attend"] - found["plain"] == 3 * inner


@pytest.mark.parametrize("change", ["processor", "none"])
def test_what_cannot_be_anchored_is_refused(change: str) -> None:
    unet: Any
    if change == "processor":

        class Odd:
            def __call__(self, attn: Any, hidden_states: torch.Tensor, **_: Any) -> torch.Tensor:
                return hidden_states

        unet = make_unet()
        unet.set_attn_processor(Odd())
        message = "is a Odd"
    else:
        from diffusers import UNet2DModel

        unet = UNet2DModel(
            block_out_channels=(8, 8),
            down_block_types=("DownBlock2D",) * 2,
            up_block_types=("UpBlock2D",) * 2,
            norm_num_groups=4,
        )
        message = "no self-attention"
    with pytest.raises(ValueError, match=message), anchored_attention(unet):
        pass


@pytest.mark.parametrize("own", [True, False])
def test_a_probe_sees_the_weights_that_make_the_output(own: bool) -> None:
    """What it is shown, times the values, is what the attention gives."""
    unet = make_unet()
    shown: dict[str, torch.Tensor] = {}

    def probe(layer: str, step: int, frames: Any, weights: torch.Tensor) -> None:
        assert (step, list(frames)) == (4, [7, 9])
        shown[layer] = weights

    text = torch.randn(4, 5, 16)
    anchors, frames = (torch.randn(count, 8, 8, 8) for count in (6, 4))  # 2 branches, 3 anchors
    with anchored_attention(unet, own) as bank, torch.no_grad():
        bank.step, bank.branches = 4, 2
        bank.mode, bank.frames = "record", [0, 1, 2]
        unet(anchors, 1, text[:1].expand(6, -1, -1))
        plain = unet.attn_processors
        bank.mode, bank.frames = "attend", [7, 9]
        expected = unet(frames, 1, text).sample
        bank.probe = probe
        assert torch.equal(unet(frames, 1, text).sample, expected)
        assert set(shown) == {name for name in plain if "attn1" in name}
        layer = next(iter(shown))
        tokens = shown[layer].shape[2]
        assert shown[layer].shape == (2, 2, tokens, (3 + own) * tokens)
        assert torch.allclose(shown[layer].sum(-1), torch.ones(()), atol=1e-5)
        # One head, so that the mean over heads is that head's weights.
        attn = unet.get_submodule(layer.removesuffix(".processor"))
        attn.heads = 1
        hidden = torch.randn(4, tokens, attn.to_q.in_features)
        found = plain[layer](attn, hidden)
        value = bank.get(layer)[1][:, None].expand(-1, 2, -1, -1)
        if own:
            value = torch.cat([attn.to_v(hidden).unflatten(0, (2, 2)), value], 2)
        wanted = attn.to_out[0]((shown[layer] @ value).flatten(0, 1))
        assert torch.allclose(found, wanted, atol=1e-5)
