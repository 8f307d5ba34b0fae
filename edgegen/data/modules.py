"""LightningDataModules over the endless stream: pictures, captioned pictures, latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import lightning
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from . import photos
from .emoji import STYLES, EmojiSet
from .stream import Stream, StreamSampler
from .views import BACKGROUNDS, composite, place, random_background, random_caption


def to_tensor(picture: np.ndarray) -> Tensor:
    """(H, W, 3) uint8 → (3, H, W) float in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1).float() / 127.5 - 1


class StreamDataModule(lightning.LightningDataModule):
    """What all share: the loader over the stream, and its position in checkpoints.

    Args:
        batch_size: samples of one optimisation step on one device.
        seed: of the stream.
        workers: loader processes; the stream does not depend on their number.
    """

    def __init__(self, batch_size: int, seed: int = 0, workers: int = 0) -> None:
        super().__init__()
        self.batch_size, self.seed, self.workers = batch_size, seed, workers
        self.samples_seen = 0
        self._step: int | None = None  # the optimisation step at which `samples_seen` holds
        self.train_set: Dataset[Any] | None = None
        self.validation_sets: dict[str, Dataset[Any]] = {}

    def _world(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def train_dataloader(self) -> DataLoader:
        rank, world = self._world()
        assert self.train_set is not None
        self.samples_seen = self.state_dict()["samples_seen"]
        self._step = None if self.trainer is None else self.trainer.global_step
        sampler = StreamSampler(self.samples_seen, rank, world)
        return DataLoader(
            self.train_set,
            self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            drop_last=True,
        )

    def val_dataloader(self) -> list[DataLoader]:
        return [DataLoader(d, self.batch_size) for d in self.validation_sets.values()]

    def state_dict(self) -> dict[str, int]:
        if self.trainer is None or self._step is None:
            return {"samples_seen": self.samples_seen}
        # Counted from where this run took over: an earlier one may have had other batches.
        _, world = self._world()
        per_step = self.batch_size * world * self.trainer.accumulate_grad_batches
        steps = self.trainer.global_step - self._step
        return {"samples_seen": self.samples_seen + steps * per_step}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        self.samples_seen, self._step = state_dict["samples_seen"], None


class Views(Dataset):
    """Fixed items seen through a function: for validation."""

    def __init__(self, items: Sequence[Any], view: Callable[[Any], Any]) -> None:
        self.items, self.view = items, view

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: int) -> Any:
        return self.view(self.items[i])


class PictureData(StreamDataModule):
    """(3, size, size) pictures in [-1, 1] for the autoencoder: emoji on any background, and crops.

    Args:
        emoji: path of the dataset file; None for the embedded one.
        photo_folders: more folders of pictures and videos, beside the packaged photographs.
        exclude: glob patterns of file names to leave out.
        photo_fraction: share of crops in the stream.
        size: side of the pictures in pixels; drawings have 64 and are resized.

    Validation sets: ``emoji`` (held-out concepts, white background) and ``photos`` (crops of
    held-out photographs and clips).
    """

    def __init__(
        self,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        emoji: str | None = None,
        photo_folders: Sequence[str] = (),
        exclude: Sequence[str] = (),
        photo_fraction: float = 0.5,
        validation_samples: int = 256,
        size: int = 64,
    ) -> None:
        super().__init__(batch_size, seed, workers)
        self.emoji, self.photo_fraction, self.size = EmojiSet(emoji), photo_fraction, size
        self.files = photos.packaged_photos() + photos.find_media(photo_folders, exclude)
        self.validation_samples = validation_samples

    def setup(self, stage: str | None = None) -> None:
        if self.train_set is not None:
            return
        emoji, files = self.emoji, self.files
        self.rgba = {i: self._enlarged(emoji.rgba(i)) for i in range(len(emoji))}
        held = [photos.is_held_out(path) for path in files]
        self.frames = [
            f for p, h in zip(files, held, strict=True) if not h for f in photos.read_frames(p)
        ]
        test = [
            f for p, h in zip(files, held, strict=True) if h for f in photos.read_frames(p, most=6)
        ]
        self.train_set = Stream(emoji.indices("train"), self.view, self.seed)
        concepts = emoji.indices("concepts")[
            :: max(1, len(emoji.indices("concepts")) // self.validation_samples)
        ]
        white = np.array(BACKGROUNDS["white"])
        self.validation_sets["emoji"] = Views(
            concepts, lambda i: to_tensor(composite(self.rgba[i], white))
        )
        if test:
            rng = np.random.default_rng(0)
            crops = [
                photos.random_crop(test[i % len(test)], self.size, rng)
                for i in range(self.validation_samples)
            ]
            self.validation_sets["photos"] = Views(crops, to_tensor)

    def _crop(self, rng: np.random.Generator) -> np.ndarray:
        frame = self.frames[rng.integers(len(self.frames))]
        return photos.random_crop(frame, self.size, rng)

    def _enlarged(self, rgba: np.ndarray) -> np.ndarray:
        if self.size == len(rgba):
            return rgba
        size = self.size, self.size
        return np.asarray(Image.fromarray(rgba).resize(size, Image.Resampling.BICUBIC))

    def view(self, index: int, rng: np.random.Generator) -> Tensor:
        if self.frames and rng.random() < self.photo_fraction:
            return to_tensor(self._crop(rng))
        dx, dy = rng.uniform(-8, 8, 2) * (self.size / 64)
        moved = place(self.rgba[index], rng.uniform(0.6, 1.1), dx, dy, rng.random() < 0.5)
        kind = rng.random()
        if kind < 0.4:
            background = np.array(BACKGROUNDS["white"])
        elif kind < 0.8 or not self.frames:
            background = random_background(rng, self.size)
        else:
            background = photos.random_crop(
                self.frames[rng.integers(len(self.frames))], self.size, rng
            )
        return to_tensor(composite(moved, background))


class CaptionData(StreamDataModule):
    """(picture, token ids, caption group) for contrastive training.

    Args:
        emoji: path of the dataset file; None for the embedded one.
        tokenizer: a transformers tokenizer.

    Validation sets ``cells`` and ``concepts``: every base picture of the held-out split.
    """

    def __init__(
        self,
        tokenizer: Any,
        batch_size: int,
        seed: int = 0,
        workers: int = 0,
        emoji: str | None = None,
    ) -> None:
        super().__init__(batch_size, seed, workers)
        self.emoji, self.tokenizer = EmojiSet(emoji), tokenizer

    def setup(self, stage: str | None = None) -> None:
        if self.train_set is not None:
            return
        self.rgba = [self.emoji.rgba(i) for i in range(len(self.emoji))]
        self.train_set = Stream(self.emoji.indices("train"), self.view, self.seed)
        for split in ("cells", "concepts"):
            items = [i for i in self.emoji.indices(split) if self.emoji.pictures[i].tone == 0]
            self.validation_sets[split] = Views(items, self.plain_view)

    def tokens(self, caption: str) -> Tensor:
        ids = self.tokenizer(caption, padding="max_length", truncation=True).input_ids
        return torch.tensor(ids)

    def group(self, index: int) -> int:
        """Pictures with one caption share a group."""
        p = self.emoji.pictures[index]
        return (p.concept * 8 + p.tone) * 8 + STYLES.index(p.style)

    def plain_view(self, index: int) -> tuple[Tensor, Tensor, int]:
        picture = to_tensor(composite(self.rgba[index], np.array(BACKGROUNDS["white"])))
        return (
            picture,
            self.tokens(self.emoji.caption(self.emoji.pictures[index])),
            self.group(index),
        )

    def view(self, index: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, int]:
        picture = self.emoji.pictures[index]
        flip = self.emoji.concepts[picture.concept].may_flip and rng.random() < 0.5
        scale = rng.uniform(0.75, 1.1)
        dx, dy = rng.uniform(-6, 6, 2)
        moved = place(self.rgba[index], scale, dx, dy, flip)
        white = np.array(BACKGROUNDS["white"])
        background = white if rng.random() < 0.5 else random_background(rng, 64)
        caption = random_caption(self.emoji, index, rng)
        return to_tensor(composite(moved, background)), self.tokens(caption), self.group(index)
