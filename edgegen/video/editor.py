"""The video editor: one instruction, the same edit on every frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from ..media.clip_writing import check_output, holds_clip, write_clip
from ..media.clips import Clip, VideoFile, open_clip
from ..pipelines.schedulers import scheduler_config
from ..sampling.generate import default_size
from ..sampling.steps import bound_by, step_clock
from .anchors import Alone, Anchors, Scene, parse_anchors
from .attention import Probe, anchored_attention, bank_bytes
from .denoising import Edit, FrameDenoiser, check_editor
from .depends import fingerprint, plain, weights_checksum
from .frames import Canvas, Reader, make_canvas, scan
from .schedules import Job, frames_outside, steps_outside
from .sharding import shard
from .workspace import Workspace

SCHEDULES = ("auto", "frames", "steps")
_SHARE = 0.25  # of free memory that the bank of all steps may take


@dataclass(frozen=True)
class Edited:
    """What an edit made.

    Attributes:
        output: the file or folder.
        frames: how many it has; `height` and `width` of each, in pixels.
        anchors: their numbers, scene by scene.
        schedule: `frames` or `steps`: the loop outside.
        branches, evaluations: guidance branches, and evaluations of the UNet for each.
        processes: that shared the work.
    """

    output: Path
    frames: int
    height: int
    width: int
    anchors: tuple[tuple[int, ...], ...]
    schedule: str
    branches: int
    evaluations: int
    processes: int


class VideoEditor:
    """Edits videos by instruction, with anchor frames (FAIRY, arXiv 2312.13834).

        editor = VideoEditor(edgegen.load("emoji-edit"), anchors=3)
        editor.edit("in.mp4", "out.mp4", "turn it into a painting")

    The anchors are denoised together, attending to each other; every other frame attends to the
    anchors' keys and values beside its own. All frames begin with the same noise. Methods attached
    to the pipeline, such as feature reuse, stay at work.

    Args:
        pipe: an InstructPix2Pix pipeline, or a Stable Diffusion one, used for img2img.
        anchors: see `anchors.ALLOWED`; or a policy.
        own: whether frames attend to their own keys and values too.
        schedule: `frames` outside (the bank holds all steps), `steps` outside (it holds one; the
            frames' latents go to disk) or `auto`: frames where the bank takes up to a quarter of
            the free memory. Both give the same bits. Frames are taken in any case where feature
            reuse would otherwise keep features of every frame; and by `auto` where the scheduler
            keeps latents of earlier steps, since an edit that is resumed with steps outside begins
            the scene's denoising anew there. A resumed edit goes on by the one that it was begun
            with; name the other to change it.
        chunk: frames made at once; the result depends on it by rounding only.

    Raises ValueError for another pipeline and settings that are not allowed.
    """

    def __init__(
        self,
        pipe: Any,
        anchors: int | str | list[int] | Mapping[str, int] | Anchors = 3,
        *,
        own: bool = True,
        schedule: str = "auto",
        chunk: int = 4,
    ) -> None:
        check_editor(pipe)
        if schedule not in SCHEDULES:
            raise ValueError(f"schedule={schedule}: allowed are {', '.join(SCHEDULES)}")
        if chunk < 1:
            raise ValueError(f"chunk={chunk}: must be 1 or more")
        self.pipe = pipe
        self.anchors = parse_anchors(anchors)
        self.own = own
        self.schedule = schedule
        self.chunk = chunk

    def edit(
        self,
        source: str | Path | Clip,
        output: str | Path,
        instruction: str,
        *,
        resolution: int | None = None,
        limit: int | None = None,
        rate: float | None = None,
        audio: bool = True,
        codec: str | None = None,
        resume: bool = False,
        settings: Mapping[str, Any] | None = None,
        progress: Callable[[float, int], None] | None = None,
        probe: Probe | None = None,
        **edit: Any,
    ) -> Edited:
        """Edit a clip; `output` appears when it is complete.

        Started by torchrun or `accelerate launch`, the processes share the frames, and the first
        one writes the output; the frames are those that one process makes.

        Until then what is done is kept beside it, in `.NAME.edit`, and stays there when the work is
        stopped, to go on with `resume`.

        Args:
            source: a video file, an animated webp or gif, a folder of frames, or a `Clip`.
            output: what to write; see `media.clip_writing.write_clip`.
            instruction: what to do; see `Edit`, whose other fields may be given too.
            resolution: longest side of the edited frames in pixels; larger ones are reduced to it.
                Default: the size that the model was trained for.
            limit: edit the first so many frames only.
            rate: frames a second of a folder.
            audio: whether to copy the sound.
            codec: an encoder of FFmpeg; default by the ending of `output`.
            resume: go on where an edit with the same settings was stopped: the result is the same
                file. Without it, what it left is removed.
            settings: what else the result depends on, such as methods attached to the pipeline: on
                resuming they must be as they were.
            progress: called with the number of frames' worth of work newly done by this process,
                and of all frames that it is to make.
            probe: is shown the attention of every frame to the anchors; see `attention.Probe`.

        Raises:
            FileNotFoundError, ValueError: one line; nothing is written then.
            OSError: no space left, and the like; what is done stays beside the output.
        """
        what = Edit(instruction, **edit)
        self.check()
        path = Path(output).expanduser()
        if limit is not None and limit < 1:
            raise ValueError(f"limit={limit}: must be 1 frame or more")
        clip = open_clip(source, rate) if isinstance(source, str | Path) else source
        if isinstance(source, str | Path) and path.exists() and path.samefile(source):
            raise ValueError(f"{path}: is the source itself; give the output another name")
        found = scan(clip, limit)
        scenes = self.anchors.scenes(len(found), found.changes)
        sound = clip.path if audio and isinstance(clip, VideoFile) else None
        default = max(default_size(self.pipe))
        canvas = make_canvas(
            found.size, default if resolution is None else resolution, self.pipe.vae_scale_factor
        )
        asked = {"codec": codec, "sound": sound is not None}
        # Stopped after the output was complete, before the work beside it was removed.
        written = resume and (
            Workspace.written(path) == asked | {"bytes": _size(path)}
            if path.is_file()
            else Workspace.begun(path) and holds_clip(path, len(found))
        )
        if not written:
            check_output(path, (canvas.height, canvas.width), found.timing, sound, codec)

        with self._at_work(what) as denoiser, shard() as mine, torch.inference_mode():
            denoiser.bank.probe = probe
            before = Workspace.schedule(path) if resume else None
            schedule = mine.agreed(self._choose(denoiser, scenes, canvas, before))
            scheduler = denoiser.scheduler
            depends = {
                **asdict(what),
                "steps": denoiser.steps,
                "guidance": denoiser.guidance,
                "image_guidance": denoiser.image_guidance,
                "source": fingerprint(clip),
                "frames": len(found),
                "size": [canvas.height, canvas.width],
                "anchors": [scene.anchors for scene in scenes],
                "scenes": [scene.start for scene in scenes],
                "own": self.own,
                "chunk": self.chunk,
                "model": weights_checksum(self.pipe),
                "scheduler": [type(scheduler).__name__, scheduler_config(scheduler)],
                "settings": dict(settings or {}),
                "processes": mine.count if schedule == "steps" else 1,
            }
            if mine.rank > 0:
                mine.wait()  # the first one clears up what is not to be resumed
            again = resume or mine.rank > 0
            space = Workspace(path, plain(depends), again, schedule, mine.rank)
            if mine.rank == 0:
                mine.wait()

            def done(frames: float) -> None:
                if progress is not None:
                    progress(frames, total)

            readers = Reader(clip, canvas), Reader(clip, canvas)
            job = Job(denoiser, *readers, canvas, space, self.chunk, done, mine)
            total = sum(len(s.anchors) + sum(map(len, job.chunks(s))) for s in scenes)
            try:
                for place, scene in enumerate(() if written else scenes):
                    if schedule == "frames":
                        frames_outside(job, scene)
                    else:
                        steps_outside(job, scene, place)
            except ValueError:
                if space.untouched and mine.count == 1:
                    space.remove()
                raise
            mine.wait()
            if mine.rank == 0:
                if not written:
                    write_clip(
                        path,
                        space.frames(len(found)),
                        found.timing,
                        aspect=clip.aspect,
                        audio=sound,
                        audio_end=None if found.whole else found.timing.end,
                        codec=codec,
                    )
                space.remove(asked | {"bytes": _size(path)})
            mine.wait()
        return Edited(
            output=path,
            frames=len(found),
            height=canvas.height,
            width=canvas.width,
            anchors=tuple(scene.anchors for scene in scenes),
            schedule=schedule,
            branches=denoiser.branches,
            evaluations=len(denoiser.evaluations),
            processes=mine.count,
        )

    def check(self) -> None:
        """Raises ValueError where a method is at work that the editor cannot go with."""
        if reason := bound_by(self.pipe.unet, layers=not isinstance(self.anchors, Alone)):
            raise ValueError(f"{reason}: it cannot be used for video")

    @contextmanager
    def _at_work(self, what: Edit) -> Iterator[FrameDenoiser]:
        with (
            anchored_attention(self.pipe.unet, self.own) as bank,
            step_clock(self.pipe.scheduler) as clock,
            torch.inference_mode(),
        ):
            denoiser = FrameDenoiser(self.pipe, what, clock, bank)
            # What the pipeline's own call sets, for methods that ask how it is guided.
            before = self.pipe.__dict__.get("_guidance_scale")
            self.pipe._guidance_scale = denoiser.guidance
            try:
                yield denoiser
            finally:
                self.pipe._guidance_scale = before

    def _choose(
        self, denoiser: FrameDenoiser, scenes: list[Scene], canvas: Canvas, before: str | None
    ) -> str:
        """The schedule; `before`: by which the work was begun that is gone on with, if any."""
        if denoiser.clock.heard:
            return "frames"  # else features of every frame would be in memory at once
        if self.schedule != "auto":
            return self.schedule
        if before in SCHEDULES[1:]:
            return before
        if denoiser.states.history:
            return "frames"  # which a stopped edit goes on with in mid-scene
        height, width = (side // self.pipe.vae_scale_factor for side in canvas.padded)
        anchors = max(len(scene.anchors) for scene in scenes)
        bank = bank_bytes(self.pipe.unet, (height, width)) * anchors * denoiser.branches
        free = _free_memory(denoiser.device)
        return "frames" if bank * len(denoiser.evaluations) <= _SHARE * free else "steps"


def _size(path: Path) -> int | None:
    """Bytes of a file; None for a folder."""
    return path.stat().st_size if path.is_file() else None


def _free_memory(device: torch.device) -> float:
    """Bytes."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    return float(psutil.virtual_memory().available)
