"""Peak memory, measured in a process of its own that does nothing else.

python -m edgegen.runs.memory      # what `peak_memory` starts
"""

from __future__ import annotations

import json
import os
import pickle
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Memory:
    """Bytes held at the most while working, and held just before.

    On CUDA those of tensors on the device, else those of the whole process, libraries included.
    """

    peak: int
    before: int

    @property
    def rise(self) -> int:
        """What the work itself needed on top."""
        return max(0, self.peak - self.before)


def peak_memory(
    prepare: Callable[..., Callable[[], object]],
    *arguments: Any,
    device: str = "cpu",
    threads: int | None = None,
) -> Memory:
    """The memory that `prepare(*arguments)()` needs, measured in a new process.

    Only the call of what `prepare` gives is measured: a model is loaded in `prepare`.

    Args:
        prepare: a function at the top of a module; it and its arguments are pickled.
        device: where the work is done, as torch names it; `cuda…` is asked for its own counter.
        threads: of torch; None leaves its default.

    Raises RuntimeError where the process fails, with its last line, or the signal that ended it.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    # -P: whatever lies in the working directory must not stand in for a module.
    done = subprocess.run(
        [sys.executable, "-P", "-m", f"{__package__}.memory"],
        input=pickle.dumps((device, threads, prepare, arguments)),
        capture_output=True,
        env=environment,
    )
    if done.returncode < 0:
        raise RuntimeError(f"the process was ended by signal {-done.returncode}")
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise RuntimeError(lines[-1])
    return Memory(**json.loads(done.stdout))


def generation(
    load: Mapping[str, Any],
    methods: Mapping[str, Any],
    prompts: Sequence[str],
    seeds: Sequence[tuple[int, int]],
    settings: Mapping[str, Any],
) -> Callable[[], object]:
    """For `peak_memory`: loads a pipeline and gives the making of one batch of pictures.

    What a method holds counts to the work.

    Args:
        load: arguments of `api.load`.
        methods: as `api.apply` takes them.
        prompts, seeds, settings: arguments of `sampling.generate.sample`.
    """
    from .. import api
    from ..pipelines.layout import channels_last
    from ..sampling.generate import sample

    pipe = api.load(**load)
    for net in (pipe.unet, pipe.vae):
        channels_last(net)  # as commands time it
    pipe.set_progress_bar_config(disable=True)

    def work() -> None:
        with api.apply(pipe, methods):
            sample(pipe, prompts, seeds, **settings)

    return work


def network_call(load: Mapping[str, Any], part: str, batch: int, size: int) -> Callable[[], object]:
    """For `peak_memory`: loads a pipeline and gives one call of a network of it, on random input.

    Args:
        load: arguments of `api.load`.
        part: `unet`, `vae_encoder` or `vae_decoder`.
        batch: of the call; for the UNet the guidance branches count.
        size: side of the pictures in pixels.
    """
    import torch

    from .. import api
    from ..pipelines.layout import channels_last

    pipe = api.load(**load)
    unet, vae = channels_last(pipe.unet), channels_last(pipe.vae)
    for weight in (*unet.parameters(), *vae.parameters()):
        weight.data = weight.data.clone()  # a mapped file counts when read: within the call
    side, of = size // pipe.vae_scale_factor, {"device": pipe.device, "dtype": pipe.dtype}
    if part == "vae_encoder":
        pictures = torch.zeros(batch, 3, size, size, **of)
        return torch.inference_mode()(lambda: vae.encode(pictures))
    if part == "vae_decoder":
        latents = torch.zeros(batch, vae.config.latent_channels, side, side, **of)
        return torch.inference_mode()(lambda: vae.decode(latents))
    latents = torch.zeros(batch, unet.config.in_channels, side, side, **of)
    length = pipe.tokenizer.model_max_length
    text = torch.zeros(batch, length, unet.config.cross_attention_dim, **of)
    width = unet.config.time_cond_proj_dim
    scales = None if width is None else torch.zeros(batch, width, **of)
    return torch.inference_mode()(
        lambda: unet(latents, 1, encoder_hidden_states=text, timestep_cond=scales)
    )


def _measured(work: Callable[[], object], device: str) -> Memory:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        return Memory(torch.cuda.max_memory_allocated(device), before)
    restart_peak()  # past that of loading
    before = process_memory("VmRSS")
    work()
    return Memory(process_memory("VmHWM"), before)


def restart_peak() -> None:
    """Let the peak of this process start again from here, where the system can do that."""
    with suppress(OSError):  # other systems, and containers that forbid it
        _CLEAR.write_text("5")


def process_memory(name: str) -> int:
    """Bytes that this process holds (`VmRSS`) or has held at the most (`VmHWM`).

    Not `ru_maxrss` where there is another way: on Linux it starts with the peak of the process
    that started this one.
    """
    try:
        found = re.search(rf"^{name}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    except OSError:
        found = None
    if found:
        return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Read what to do from standard input, do it, and write the figures to standard output."""
    device, threads, prepare, arguments = pickle.load(sys.stdin.buffer)
    answer = os.dup(1)
    os.dup2(2, 1)  # what the work prints must not mix with the answer
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    memory = _measured(prepare(*arguments), device)
    os.write(answer, json.dumps(asdict(memory)).encode())


if __name__ == "__main__":
    main()
