"""Training of Clockwork's adaptor through whole runs, towards where many more steps would end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..losses.features import sample_distance
from ..reuse import reuse
from ..sampling.trajectories import TrajectoryStore
from .clockwork import ClockworkModule
from .teacher import Teacher


class SolutionModule(ClockworkModule):
    """Learns predictions with which a run of few steps ends where one of many does.

    `ClockworkModule` asks for the features that a full pass would have had, so that the best it can
    do is what the model does without reuse, in as few steps. Here nothing is asked of features: the
    run with reuse is followed from noise to its last latents, and the gradient of their distance to
    the teacher's after `solution` steps from the same noise goes back through all steps. That makes
    up for errors of reuse and of the sampler alike. The distance is the root mean square of each
    sample, averaged over samples: squares would be ruled by the few that came out otherwise.

    Memory holds the activations of a whole run. Logged as by `ClockworkModule`: `train/loss`, and
    `train/loss_relative`, the loss over that of the identity.

    Args:
        solution: steps of the teacher's run that is aimed at, more than its own.
        store: folder that keeps ends of runs, as of `ClockworkModule`.
        options: this and all others as of it; `trajectories` are always the student's.

    Raises:
        ValueError: `solution` not above the teacher's steps; a teacher that is not in float32.
    """

    def __init__(
        self,
        teacher: Teacher,
        *args: Any,
        solution: int = 32,
        store: str | None = None,
        **options: Any,
    ) -> None:
        if options.pop("trajectories", "unrolled") != "unrolled":
            raise ValueError("trajectories=plain: whole runs are the student's own: unrolled")
        super().__init__(teacher, *args, **options)
        self.store_folder = store
        steps = teacher.steps
        if isinstance(solution, bool) or not isinstance(solution, int) or solution <= steps:
            raise ValueError(f"module.solution={solution}: must be a number above {steps} steps")
        if teacher.unet.dtype != torch.float32:
            raise ValueError("teacher.dtype: must be float32, the gradient goes through it")
        self.solution = solution
        self._ends: dict[str, TrajectoryStore | None] = {}

    def open_stores(self) -> None:
        how = {"cut": str(self.cut), "passes": self.passes}
        self._ends = {
            "solution": self.open_store({"rows": "ends"}, self.solution),
            "identity": self.open_store({"rows": "ends with the identity", **how}),
        }

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        solution, identity = self._kept("solution", batch), self._kept("identity", batch)
        with reuse(self.teacher, self.cut, self.clock, self.adaptor):
            last = self._end(batch["prompt"], batch["seed"].tolist(), gradient=True)
        loss, size = sample_distance(last, solution), len(batch["prompt"])
        self.log("train/loss", loss, batch_size=size)
        plain = sample_distance(identity, solution)
        self.log("train/loss_relative", loss.detach() / plain, batch_size=size)
        return loss

    def _kept(self, name: str, batch: dict[str, Any]) -> Tensor:
        """Last latents (B, C, H, W) of the run of this name; made once if they are kept."""
        prompts, seeds = batch["prompt"], batch["seed"].tolist()

        def make(places: Iterable[int]) -> dict[str, Tensor]:
            asked = [prompts[place] for place in places], [seeds[place] for place in places]
            if name == "solution":
                return {"ends": self._end(*asked, self.solution)}
            with reuse(self.teacher, self.cut, self.clock):
                return {"ends": self._end(*asked)}

        store = self._ends.get(name)
        if store is None:
            return make(range(len(prompts)))["ends"]
        return store.get_or_make(batch["row"].tolist(), make)["ends"].to(self.device)

    def _end(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        steps: int | None = None,
        gradient: bool = False,
    ) -> Tensor:
        *_, last = self.teacher.run(prompts, seeds, steps, gradient)
        return last.following
