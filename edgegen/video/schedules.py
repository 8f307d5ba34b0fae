"""Two orders of the same work: frames outside and steps inside, or the other way round.

Both take the same batches of frames through the same evaluations, so they give the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing

import torch

from .anchors import Scene
from .attention import Mode
from .denoising import FrameDenoiser
from .frames import Canvas, Reader
from .sharding import Shard
from .workspace import Workspace


class Job:
    """A clip under work.

    Args:
        denoiser: of the frames.
        ahead, behind: two readers of the clip: for the anchors of a scene, and for its frames.
        canvas: the size of edited frames.
        workspace: keeps what is done.
        chunk: frames in a batch; the last batch is filled up.
        done: is told how many frames' worth of work was done.
        shard: which share of the frames falls to this process.
    """

    def __init__(
        self,
        denoiser: FrameDenoiser,
        ahead: Reader,
        behind: Reader,
        canvas: Canvas,
        workspace: Workspace,
        chunk: int,
        done: Callable[[float], None],
        shard: Shard,
    ) -> None:
        self.denoiser = denoiser
        self.ahead = ahead
        self.behind = behind
        self.workspace = workspace
        self.chunk = chunk
        self.done = done
        self.shard = shard
        self._canvas = canvas

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Of one frame: (C, h, w)."""
        pipe = self.denoiser.pipe
        height, width = (side // pipe.vae_scale_factor for side in self._canvas.padded)
        return pipe.vae.config.latent_channels, height, width

    def chunks(self, scene: Scene) -> list[list[int]]:
        """The numbers of the scene's other frames that fall to this process, chunk by chunk."""
        others = list(scene.others())
        return self.shard.own(
            [others[i : i + self.chunk] for i in range(0, len(others), self.chunk)]
        )

    def filled(self, numbers: Sequence[int]) -> list[int]:
        """The numbers of a chunk with the last one repeated until it is full."""
        return [*numbers, *[numbers[-1]] * (self.chunk - len(numbers))]

    def full(self, batch: torch.Tensor) -> torch.Tensor:
        """The batch with its last entry repeated until the chunk is full."""
        missing = self.chunk - len(batch)
        if not missing:
            return batch
        return torch.cat([batch, batch[-1:].repeat(missing, 1, 1, 1)])

    def finish(self, numbers: Sequence[int], latents: torch.Tensor) -> None:
        """Decode latents (all of the batch's shape) and keep the frames of these numbers."""
        pictures = self.denoiser.decode(latents)
        for number, picture in zip(numbers, pictures, strict=False):
            self.workspace.keep(number, self._canvas.cut(picture))


def frames_outside(job: Job, scene: Scene) -> None:
    """The anchors through all steps, then chunk after chunk; the bank holds every step."""
    denoiser, space = job.denoiser, job.workspace
    chunks = [chunk for chunk in job.chunks(scene) if not space.has(chunk)]
    if not chunks and space.has(scene.anchors):
        return

    def run(mode: Mode, numbers: Sequence[int], pixels: torch.Tensor) -> torch.Tensor:
        source = denoiser.encode(pixels)
        latents = denoiser.begin(source, numbers)
        denoiser.start()
        for evaluation in denoiser.evaluations:
            latents = denoiser.advance(mode, evaluation, mode, latents, source, numbers)
            denoiser.clock.tick()
            job.done(len(set(numbers)) / len(denoiser.evaluations))
        return latents

    if scene.anchors:
        latents = run("record", scene.anchors, job.ahead.take(scene.anchors))
        if job.shard.rank == 0:
            job.finish(scene.anchors, latents)
    mode: Mode = "attend" if scene.anchors else "plain"
    for chunk in chunks:
        job.finish(chunk, run(mode, job.filled(chunk), job.full(job.behind.take(chunk))))
    denoiser.bank.forget()


def steps_outside(job: Job, scene: Scene, place: int) -> None:
    """All frames through one step, then the next; the bank holds one step, latents are on disk.

    Args:
        place: number of the scene in the clip.
    """
    denoiser, space = job.denoiser, job.workspace
    first, last = denoiser.first, denoiser.last
    noted = space.progress()
    if noted.get("scene", 0) > place:
        return
    evaluation, ready = first, 0
    resumed = noted.get("scene") == place
    if resumed and (noted["evaluation"] == last or not denoiser.states.history):
        evaluation, ready = noted["evaluation"], noted["chunks"]
    batches: list[tuple[Sequence[int], bool]] = [(chunk, True) for chunk in job.chunks(scene)]
    if scene.anchors:
        batches.insert(0, (scene.anchors, False))
    with ExitStack() as stack:
        even, odd, sources = (
            stack.enter_context(closing(space.rows(name, job.latent_shape, denoiser.dtype)))
            for name in ("even", "odd", "source")
        )
        if denoiser.states.history:
            history = space.rows("history", job.latent_shape, torch.float32)
            stack.enter_context(closing(history))
            stack.enter_context(denoiser.states.in_file(history))
        denoiser.skip_to(evaluation)
        while evaluation < last:
            before, after = (even, odd) if evaluation % 2 == 0 else (odd, even)
            for batch, (numbers, filled) in enumerate(batches):
                if batch < ready and filled:  # the anchors fill the bank anew
                    continue
                rows = [number - scene.start for number in numbers]
                everyone = job.filled(numbers) if filled else numbers
                if evaluation == first:
                    pixels = (job.behind if filled else job.ahead).take(numbers)
                    source = denoiser.encode(job.full(pixels) if filled else pixels)
                    latents = denoiser.begin(source, everyone)
                    sources.write(rows, source[: len(rows)])
                else:
                    source, latents = (
                        (job.full(kept) if filled else kept).to(denoiser.device)
                        for kept in (sources.read(rows), before.read(rows))
                    )
                mode: Mode = "record" if not filled else "attend" if scene.anchors else "plain"
                latents = denoiser.advance(mode, evaluation, batch, latents, source, everyone)
                after.write(rows, latents[: len(rows)])
                if batch >= ready:
                    job.done(len(rows) / (last - first))
                    space.note(scene=place, evaluation=evaluation, chunks=batch + 1)
            denoiser.bank.forget()
            denoiser.clock.tick()
            evaluation, ready = evaluation + 1, 0
            space.note(scene=place, evaluation=evaluation, chunks=0)
        final = even if last % 2 == 0 else odd
        for numbers, filled in batches:
            if not space.has(numbers) and (filled or job.shard.rank == 0):
                kept = final.read([number - scene.start for number in numbers])
                job.finish(numbers, (job.full(kept) if filled else kept).to(denoiser.device))
    space.note(scene=place + 1, evaluation=first, chunks=0)
    space.drop_rows()
