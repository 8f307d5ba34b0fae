"""Denoising trajectories: made step by step, and kept on disk for all who learn from them."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .guidance import guidance_input, guide


@dataclass(frozen=True)
class Step:
    """One evaluation of a denoising run.

    Attributes:
        index: its number, from 0.
        time: its timestep, a tensor of no dimensions.
        latents: what is denoised, x_t, before the scheduler's scaling (B, C, H, W).
        output: what the UNet predicts, guided (B, C, H, W).
        following: the latents after the step, x_{t−1}.
    """

    index: int
    time: Tensor
    latents: Tensor
    output: Tensor
    following: Tensor


def denoise(
    unet: Any,
    scheduler: Any,
    noise: Tensor,
    text: Tensor,
    negative: Tensor | None = None,
    *,
    steps: int,
    guidance: float = 1.0,
    generators: Sequence[torch.Generator] | None = None,
    call: Mapping[str, Any] | None = None,
    gradient: bool = False,
) -> Iterator[Step]:
    """The steps of a run from noise, as diffusers' pipelines make them.

    In the same precision the latents are those of `StableDiffusionPipeline` to the bit. What a
    method hooks into the UNet or the scheduler takes part.

    Args:
        unet: a UNet2DConditionModel.
        scheduler: any diffusers scheduler; second-order ones make two evaluations of a step.
        noise: standard normal, (B, C, H, W).
        text: features that the UNet attends to, (B, T, D).
        negative: the same of the negative prompts; with it, and above guidance 1, both branches
            of classifier-free guidance are evaluated as one batch, the negative one first. A
            UNet that takes the guidance scale as an input gets it, and one branch is evaluated.
        generators: of further noise, one a sample, for samplers that draw some.
        call: more keyword arguments of the UNet, for both branches.
        gradient: whether to keep what a gradient through the whole run needs.
    """
    scheduler.set_timesteps(steps, device=noise.device)
    latents = noise * scheduler.init_noise_sigma
    own = guidance_input(unet, guidance, len(noise))
    guided = negative is not None and guidance > 1 and not own
    condition = torch.cat([negative, text]) if guided and negative is not None else text
    taken = inspect.signature(scheduler.step).parameters
    draws = {"generator": list(generators)} if generators and "generator" in taken else {}
    for index, time in enumerate(scheduler.timesteps):
        with torch.set_grad_enabled(gradient):
            sample = scheduler.scale_model_input(torch.cat([latents] * (1 + guided)), time)
            output = unet(
                sample.to(unet.dtype),
                time,
                encoder_hidden_states=condition,
                return_dict=False,
                **own,
                **(call or {}),
            )[0].to(noise.dtype)
            if guided:
                without, given = output.chunk(2)
                output = guide(without, given, guidance)
            following = scheduler.step(output, time, latents, **draws, return_dict=False)[0]
        yield Step(index, time, latents, output, following)
        latents = following


class TrajectoryStore:
    """Tensors of trajectories, one row a sample, in memory-mapped files: each row made once.

    A row holds whatever its maker puts in: latents and outputs of all steps, features of a teacher.
    The first `put` settles names and shapes. Rows are rounded to `dtype`; reading gives float32.
    Several processes may share a store if each writes rows of its own.

    Args:
        folder: of all stores; this one lies under a hash of `settings`.
        settings: all that the rows depend on, as JSON can hold it.
        rows: how many there are.
        dtype: float16 or float32.

    Raises:
        ValueError: another dtype, or no rows.
    """

    def __init__(
        self, folder: str | Path, settings: Mapping[str, Any], rows: int, dtype: str = "float16"
    ) -> None:
        if dtype not in ("float16", "float32"):
            raise ValueError(f"trajectories in {dtype}: allowed are float16, float32")
        if rows < 1:
            raise ValueError(f"{rows} trajectories: must be 1 or more")
        about = {"settings": dict(settings), "rows": rows, "dtype": dtype}
        text = json.dumps(about, sort_keys=True, default=str)
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder, self.rows, self.dtype = Path(folder).expanduser() / key, rows, np.dtype(dtype)
        self._about = text
        self._files: dict[str, np.ndarray] = {}
        self._filled: np.ndarray | None = None

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Those of `rows` that nothing was put in yet, in their order."""
        filled = self._open_filled()
        return [row for row in rows if filled is None or not filled[row]]

    def put(self, rows: Sequence[int], values: Mapping[str, Tensor]) -> None:
        """Keep rows: each value is (len(rows), …).

        Raises ValueError for a value that the dtype cannot hold, or other names and shapes than
        those of the first rows.
        """
        arrays = {}
        for name, value in values.items():
            with np.errstate(over="ignore"):
                array = value.detach().float().cpu().numpy().astype(self.dtype)
            if not np.isfinite(array).all():
                raise ValueError(f"trajectories: {name} does not fit {self.dtype}: use float32")
            arrays[name] = array
        self._make({name: array.shape[1:] for name, array in arrays.items()})
        places = np.asarray(rows)
        for name, array in arrays.items():
            file = self._file(name)
            file[places] = array
            file.flush()  # type: ignore[attr-defined]
        filled = self._open_filled()
        assert filled is not None
        filled[places] = 1  # last: a row counts only when all of it is there
        filled.flush()  # type: ignore[attr-defined]

    def get(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Rows as name → (len(rows), …) float32. Raises KeyError where one is missing."""
        if lacking := self.missing(rows):
            raise KeyError(f"trajectory {lacking[0]} was not made yet")
        names = sorted(path.stem for path in self.folder.glob("*.npy") if path.stem != "filled")
        places = np.asarray(rows)
        return {
            name: torch.from_numpy(np.asarray(self._file(name)[places], np.float32))
            for name in names
        }

    def get_or_make(
        self, rows: Sequence[int], make: Callable[[list[int]], Mapping[str, Tensor]]
    ) -> dict[str, Tensor]:
        """As `get`; `make` gives what is missing, of the places in `rows` that it is told."""
        if missing := self.missing(rows):
            places = [rows.index(row) for row in missing]
            self.put(missing, make(places))
        return self.get(rows)

    def _make(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        if self._open_filled() is None:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "settings.json").write_text(self._about, encoding="utf-8")
            for name, shape in shapes.items():
                _allocate(self.folder / f"{name}.npy", self.dtype, (self.rows, *shape))
            _allocate(self.folder / "filled.npy", np.dtype(np.uint8), (self.rows,))
        known = {path.stem for path in self.folder.glob("*.npy")} - {"filled"}
        found = {name: self._file(name).shape[1:] for name in known}
        if found != dict(shapes):
            raise ValueError(f"trajectories in {self.folder} hold {found}, not {dict(shapes)}")

    def _file(self, name: str) -> np.ndarray:
        if name not in self._files:
            self._files[name] = np.load(self.folder / f"{name}.npy", mmap_mode="r+")
        return self._files[name]

    def _open_filled(self) -> np.ndarray | None:
        if self._filled is None and (self.folder / "filled.npy").is_file():
            self._filled = np.load(self.folder / "filled.npy", mmap_mode="r+")
        return self._filled


def _allocate(path: Path, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    """A file of zeros that takes its name at once; another process may have made it already."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    np.lib.format.open_memmap(temporary, mode="w+", dtype=dtype, shape=shape).flush()  # type: ignore[no-untyped-call]
    try:
        os.link(temporary, path)
    except FileExistsError:
        pass
    finally:
        temporary.unlink()
