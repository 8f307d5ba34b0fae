"""Latents of pictures before and after edits, with instructions: what an editor is trained on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from ..pipelines.layout import channels_last
from .edit_pairs import (
    FAMILIES,
    CropSources,
    EmojiSources,
    Source,
    Sources,
    drawn_edits,
)
from .emoji import EmojiSet
from .held_out_pairs import held_out_pairs
from .instructions import EDITS, ambiguous_form, wording
from .modules import StreamDataModule, to_tensor
from .moving_stills import moved_alike
from .painting import PaintedCrops
from .shards import Rows, shards
from .stream import Stream, sample_rng

SHARD = 256


class EditData(StreamDataModule):
    """(source latent, target latent, token ids) of edits, for training InstructPix2Pix.

    `sources` pictures are drawn, each with `edits` of the edits that change it, and encoded once.
    What is drawn is a function of the seed alone; the latents are kept in `cache` under a hash of
    everything that went into them. The source's latent is the autoencoder's mode as it is, the
    target's is scaled, as StableDiffusionInstructPix2PixPipeline has them.

    Args:
        vae: the trained autoencoder.
        tokenizer: pads and cuts instructions to its `model_max_length`.
        emoji: a file written by `write_emoji_file`; None for the embedded one.
        groups, limit: the domain, see `EmojiSet`.
        crops: folder made by `scripts/build_edits.py`; None trains on emoji alone.
        natural: share of crops among the sources.
        size: side of the pictures in pixels; crops must have it.
        sources, edits: how many, see above.
        families: how often each family of edits is drawn, see `edit_pairs.FAMILIES`.
        ambiguous: share of open instructions, such as "turn it into a painting", where there are
            any.
        affine: share of sources that are moved together with all their edits, by
            `moving_stills.moved_alike`: an editor trained on them treats what moves alike
            (equivariant fine-tuning). Not with the family `flip`, whose edits do not move along.
        drop_text, drop_image, drop_both: shares of samples without instruction, with zeros for the
            source, and without either, for the two guidance scales.
        cache: folder of the encoded latents; None encodes anew.
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
        limit: int | None = None,
        crops: str | Path | None = None,
        natural: float = 0.5,
        size: int = 96,
        sources: int = 16000,
        edits: int = 5,
        families: Mapping[str, float] = FAMILIES,
        ambiguous: float = 0.25,
        affine: float = 0.0,
        drop_text: float = 0.05,
        drop_image: float = 0.05,
        drop_both: float = 0.05,
        cache: str | Path | None = None,
    ) -> None:
        super().__init__(batch_size, seed, workers)
        self.vae, self.tokenizer = vae, tokenizer
        self.size, self.count, self.edits = size, sources, edits
        self.families, self.ambiguous = dict(families), ambiguous
        self.drops = (drop_text, drop_image, drop_both)
        shares = {"drop_text": drop_text, "drop_image": drop_image, "drop_both": drop_both}
        self.affine = affine
        more = {"natural": natural, "ambiguous": ambiguous, "affine": affine}
        for name, share in {**shares, **more}.items():
            if not 0 <= share <= 1:
                raise ValueError(f"data.{name}={share}: must be a share, from 0 to 1")
        if sum(shares.values()) > 1:
            raise ValueError(f"data: {', '.join(shares)} together exceed 1")
        if affine and self.families.get("flip", 0) > 0:
            raise ValueError(
                "data.families.flip: must be 0 with data.affine: what mirrors a moved picture is "
                "not what moves a mirrored one"
            )
        if size < 32 or size % 8:
            raise ValueError(f"data.size={size}: must be a multiple of 8, 32 or more")
        self.emoji = EmojiSet(emoji, groups=groups, limit=limit)
        self.crops_folder, self.cache = crops, cache
        self.kinds: list[Sources] = [EmojiSources(self.emoji, "train", size)]
        self.natural = natural if crops is not None else 0.0
        painted = None if crops is None else PaintedCrops(crops, "train")
        if painted is not None:
            if painted.size != size:
                raise ValueError(
                    f"data.size={size}: {crops} holds crops of {painted.size} pixels; "
                    "choose that size or build others"
                )
            self.kinds.append(CropSources(painted))
        domain = {"groups": groups, "limit": limit, "emoji": self.emoji.sha256}
        self._made_of = {
            "domain": domain,
            "crops": None if painted is None else painted.sha256,
            "natural": self.natural,
            "size": size,
            "edits": [edits, list(EDITS), self.families],
            "seed": seed,
            "layout": "channels_last",  # of the encoder, which changes last bits
        }
        if affine:
            self._made_of["affine"] = affine

    def setup(self, stage: str | None = None) -> None:
        if self.train_set is not None:
            return
        channels_last(self.vae.eval())
        folder = None if self.cache is None else Path(self.cache) / f"edits-{self._key()}"
        self._shards = shards(folder, self.count, SHARD, self._row, "encoding pairs")
        names = torch.cat([shard["names"] for shard in self._shards])
        self.names = names.numpy()
        items = [int(item) for item in np.flatnonzero(self.names.ravel() >= 0)]
        self.train_set = Stream(items, self.sample, self.seed)

    def _key(self) -> str:
        digest = hashlib.sha256(json.dumps(self._made_of, sort_keys=True).encode())
        for part in (self.vae.encoder, self.vae.quant_conv):  # the decoder changes no latent
            for tensor in part.state_dict().values() if part is not None else ():
                digest.update(tensor.detach().float().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]

    def drawn(self, number: int) -> tuple[Source, list[str]]:
        """Source number `number` of the stream and the edits drawn of it."""
        rng = sample_rng(self.seed + 1, number)
        kind = self.kinds[int(rng.random() < self.natural)]
        source = kind.source(int(rng.integers(len(kind))), rng)
        return source, drawn_edits(source, self.edits, rng, self.families)

    @torch.no_grad()
    def _row(self, number: int) -> Rows:
        source, names = self.drawn(number)
        pictures = [source.picture, *map(source.target, names)]
        rng = sample_rng(self.seed + 2, number)
        if rng.random() < self.affine:
            pictures = moved_alike(pictures, rng)
        # Always the same shape: the bits of a latent depend on the batch's.
        pictures += [pictures[0]] * (1 + self.edits - len(pictures))
        batch = torch.stack([to_tensor(p) for p in pictures])
        batch = batch.contiguous(memory_format=torch.channels_last)
        latents = self.vae.encode(batch).latent_dist.mode()
        row = torch.full((self.edits,), -1, dtype=torch.int16)
        row[: len(names)] = torch.tensor([EDITS.index(name) for name in names], dtype=torch.int16)
        return {"latents": latents.half().contiguous(), "names": row}

    def instruction(self, item: int, rng: np.random.Generator) -> str:
        """The name of what is asked for: the edit itself, or at times its ambiguous form."""
        name = EDITS[self.names[item // self.edits, item % self.edits]]
        open_form = ambiguous_form(name)
        return open_form if open_form and rng.random() < self.ambiguous else name

    def sample(self, item: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """(source (C, h, w), target (C, h, w), tokens (L,)) of edit `item % edits` of a source."""
        number, edit = divmod(item, self.edits)
        latents = self._shards[number // SHARD]["latents"][number % SHARD].float()
        source, target = latents[0], latents[1 + edit] * self.vae.config.scaling_factor
        text = wording(self.instruction(item, rng), rng)
        place = rng.random()
        no_text, no_image, neither = np.cumsum(self.drops)
        if place < no_text or no_image <= place < neither:
            text = ""
        if no_text <= place < neither:
            source = torch.zeros_like(source)
        tokens = self.tokenizer(text, padding="max_length", truncation=True).input_ids
        return source, target, torch.tensor(tokens)

    def examples(self, count: int) -> list[tuple[np.ndarray, str, np.ndarray]]:
        """(source, instruction, target) of `count` pairs never trained on, of each kind in turn.

        Pictures are (S, S, 3) uint8. They are of the half to choose by; fewer where it holds fewer.
        """
        kinds: list[Sources] = [EmojiSources(self.emoji, "concepts", self.size)]
        if self.crops_folder is not None:
            kinds.append(CropSources(PaintedCrops(self.crops_folder, "held_out")))
        found = []
        for number, kind in enumerate(kinds):
            share = (count + number) // len(kinds)
            for pair in held_out_pairs(kind, "dev", share, moved=True):
                source = kind.source(pair.index, None)
                found.append((source.picture, pair.text, source.target(pair.instruction)))
        return found
