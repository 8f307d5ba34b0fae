"""Captioned latents: every picture encoded in many views once, then only read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from .emoji import STYLES, EmojiSet
from .modules import StreamDataModule, to_tensor
from .stream import Stream, sample_rng
from .views import BACKGROUNDS, composite, place, random_caption


class LatentData(StreamDataModule):
    """(latent, token ids) of captioned emoji, for training a latent diffusion model.

    Each picture is encoded in `views` views: mirrored where its label allows, moved and scaled a
    little, and at times on a coloured background that the caption then names. A view is a function
    of (seed, picture, view), so the store is too; it is kept in `cache` under a hash of everything
    that went into it.

    Args:
        vae: the trained autoencoder; its latents times `scaling_factor` are what is learned.
        tokenizer: pads and cuts captions to its `model_max_length`.
        groups, styles, tones, limit: the domain, see `EmojiSet`.
        views: encoded views of a picture.
        flip: share of mirrored views, where the label allows it.
        shift: largest shift in pixels.
        scale: range of the drawing's size.
        coloured: share of views on a coloured background.
        unconditional: share of samples whose caption is empty, for classifier-free guidance.
        cache: folder of the encoded stores; None encodes anew.
    """

    def __init__(
        self,
        vae: AutoencoderKL,
        tokenizer: Any,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        emoji: str | None = None,
        groups: Sequence[str] | None = None,
        styles: Sequence[str] = STYLES,
        tones: bool = False,
        limit: int | None = None,
        views: int = 32,
        flip: float = 0.5,
        shift: float = 3.0,
        scale: tuple[float, float] = (0.88, 1.0),
        coloured: float = 0.1,
        unconditional: float = 0.1,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(batch_size, seed, workers)
        self.vae, self.tokenizer = vae, tokenizer
        self.domain = {"groups": groups, "styles": styles, "tones": tones, "limit": limit}
        self.views, self.unconditional = views, unconditional
        self.flip, self.shift, self.scale, self.coloured = flip, shift, scale, coloured
        self.emoji_path, self.cache = emoji, cache
        self.emoji = EmojiSet(emoji, **self.domain)  # type: ignore[arg-type]
        self.items = self.emoji.indices("train")
        self._stream = Stream(list(range(len(self.items))), self.sample, seed)

    def setup(self, stage: str | None = None) -> None:
        if self.train_set is not None:
            return
        path = None if self.cache is None else Path(self.cache) / f"{self._key()}.safetensors"
        if path is not None and path.exists():
            self.latents = load_file(path)["latents"]
        else:
            self.latents = self._encode()
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary = path.with_suffix(f".{os.getpid()}.tmp")
                save_file({"latents": self.latents}, temporary)
                temporary.replace(path)
        self.train_set = self._stream

    def _key(self) -> str:
        factor = self.vae.config.scaling_factor
        views = [self.views, self.flip, self.shift, list(self.scale), self.coloured]
        options = [self.emoji.sha256, self.domain, views, self.seed, self.items, factor]
        digest = hashlib.sha256(json.dumps(options).encode())
        for part in (self.vae.encoder, self.vae.quant_conv):  # the decoder changes no latent
            for tensor in part.state_dict().values() if part is not None else ():
                digest.update(tensor.detach().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def background(self, position: int, view: int) -> str:
        """The background's name: a function of the view alone, so that captions can say it."""
        rng = sample_rng(self.seed + 1, position * self.views + view)
        coloured = view > 0 and rng.random() < self.coloured
        return str(rng.choice([b for b in BACKGROUNDS if b != "white"])) if coloured else "white"

    def picture(self, position: int, view: int, rgba: np.ndarray) -> Tensor:
        """One view of a picture, (3, 64, 64) in [-1, 1]; view 0 is the picture itself, on white."""
        rng = sample_rng(self.seed + 2, position * self.views + view)
        concept = self.emoji.concepts[self.emoji.pictures[self.items[position]].concept]
        flip = concept.may_flip and view > 0 and rng.random() < self.flip
        dx, dy = rng.uniform(-1, 1, 2) * self.shift
        scale = rng.uniform(*self.scale)
        moved = place(rgba, scale, dx, dy, flip) if view > 0 else rgba
        return to_tensor(composite(moved, np.array(BACKGROUNDS[self.background(position, view)])))

    @torch.no_grad()
    def _encode(self) -> Tensor:
        vae, factor = self.vae.eval(), self.vae.config.scaling_factor
        rows = []
        for position, index in enumerate(tqdm(self.items, desc="encoding pictures")):
            rgba = self.emoji.rgba(index)
            pictures = torch.stack([self.picture(position, v, rgba) for v in range(self.views)])
            rows.append((vae.encode(pictures).latent_dist.mode() * factor).half())
        return torch.stack(rows)

    def sample(self, position: int, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        view = int(rng.integers(self.views))
        caption = ""
        if rng.random() >= self.unconditional:
            caption = random_caption(self.emoji, self.items[position], rng)
            background = self.background(position, view)
            if background != "white":
                caption += f", on a {background} background"
        tokens = self.tokenizer(caption, padding="max_length", truncation=True).input_ids
        return self.latents[position, view].float(), torch.tensor(tokens)
