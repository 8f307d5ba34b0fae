"""What a quantized UNet learns: to say what its teacher says along the teacher's trajectories."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from ..losses.features import feature_loss
from ..pipelines.save import replaced_folder
from ..quantization import Call, Spec, record_calls
from ..sampling.guidance import guidance_input, guide
from ..sampling.trajectories import TrajectoryStore
from .teacher import Teacher


class TrajectoryTask:
    """For `quantization.QuantizationModule`: distillation on trajectories from noise and prompts.

    Batches are those of `data.prompts.PromptData`. Of each sample's trajectory the student sees one
    evaluation, spread evenly over the batch; its output, guided as the teacher's is, is compared
    with the teacher's. Calibration looks at runs of the teacher with the spec's prompts and seed.

    Args:
        teacher: the model in full precision, and how it will be sampled from.
        store: folder that keeps the trajectories, so that each is made once; needs data of a fixed
            number of `distinct` samples. None makes them anew for every batch.
    """

    part = "unet"

    def __init__(self, teacher: Teacher, store: str | None = None) -> None:
        self.teacher, self.store_folder = teacher, store
        self.metrics: dict[str, Any] = {}
        self._store: TrajectoryStore | None = None

    def network(self) -> nn.Module:
        """A copy of the teacher's UNet, float32."""
        return copy.deepcopy(self.teacher.unet).float()

    def target(self, student: nn.Module) -> Any:
        return student

    def calls(self, spec: Spec) -> Iterator[Call]:
        prompts, seed = spec.calibration.prompts, spec.calibration.seed
        limit = len(prompts) * self.teacher.evaluations
        with record_calls(self.teacher.unet, bins=1, limit=limit) as recorder:
            for _ in self.teacher.run(prompts, range(seed, seed + len(prompts))):
                pass
        for call in recorder.calls:
            inputs = {name: _float(value) for name, value in call.kwargs.items()}
            yield Call([_float(each) for each in call.args], inputs, call.time)

    def start(self, module: lightning.LightningModule) -> None:
        self.teacher.to(module.device)
        if self.store_folder is not None:
            data = module.trainer.datamodule  # type: ignore[attr-defined]
            if data.distinct is None:
                raise ValueError("store: needs a number of different samples: give data.distinct=N")
            about = {
                "teacher": self.teacher.about(),
                "rows": "outputs",
                "prompts": data.digest,
                "precision": str(module.trainer.precision),
            }
            self._store = TrajectoryStore(self.store_folder, about, data.distinct)

    def losses(
        self, student: Any, batch: dict[str, Any], generator: torch.Generator
    ) -> dict[str, Tensor]:
        """`loss`, and `loss_relative`: as a share of the teacher's mean square."""
        teacher, rows, device = self.teacher, self._rows(batch), generator.device
        samples, outputs = (rows[name].to(device) for name in ("samples", "outputs"))
        count, evaluations = samples.shape[:2]
        offset = torch.randint(evaluations, (1,), generator=generator, device=device)
        places = (torch.arange(count, device=device) + offset) % evaluations
        each = torch.arange(count, device=device)
        text, negative = teacher.encode(batch["prompt"])
        guided = negative is not None
        condition = text if negative is None else torch.cat([negative, text])
        scale = guidance_input(teacher.unet, teacher.guidance, count)
        output = student(
            torch.cat([samples[each, places]] * (1 + guided)).float(),
            teacher.scheduler.timesteps.to(device)[places].repeat(1 + guided),
            encoder_hidden_states=condition.float(),
            return_dict=False,
            **{name: value.float() for name, value in scale.items()},
        )[0].float()
        if guided:
            without, given = output.chunk(2)
            output = guide(without, given, teacher.guidance)
        target = outputs[each, places]
        loss = feature_loss(output, target)
        return {"loss": loss, "loss_relative": loss.detach() / target.float().square().mean()}

    def predictions(self, student: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        raise NotImplementedError  # its data hold nothing out

    def save(self, student: nn.Module, folder: Path, data: Any) -> None:
        """A pipeline's folder, which `edgegen.load` reads; with random weights the UNet's alone."""
        pipe = self.teacher.pipe
        with replaced_folder(folder) as new:
            if pipe is None:
                student.save_pretrained(new / "unet")  # type: ignore[operator]
                return
            parts = {**pipe.components, "unet": student}
            type(pipe)(**parts, requires_safety_checker=False).save_pretrained(new)

    def _rows(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """`samples` that the UNet takes and guided `outputs`, both (B, evaluations, C, H, W)."""
        seeds = batch["seed"].tolist()
        if self._store is None:
            return self._made(batch["prompt"], seeds)
        return self._store.get_or_make(
            batch["row"].tolist(),
            lambda places: self._made(
                [batch["prompt"][place] for place in places], [seeds[place] for place in places]
            ),
        )

    def _made(self, prompts: Sequence[str], seeds: Sequence[int]) -> dict[str, Tensor]:
        samples: list[Tensor] = []

        def note(_: nn.Module, inputs: Any) -> None:
            samples.append(inputs[0][: len(prompts)])  # of the branches one: they take the same

        hook = self.teacher.unet.register_forward_pre_hook(note)
        try:
            outputs = [step.output for step in self.teacher.run(prompts, seeds)]
        finally:
            hook.remove()
        return {"samples": torch.stack(samples, 1), "outputs": torch.stack(outputs, 1)}


def _float(value: Any) -> Any:
    whole = not isinstance(value, Tensor) or not value.is_floating_point()
    return value if whole else value.float()
