"""Two gloo processes, each with half of the samples, give what one gives: to the bit."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torchmetrics import Metric

from edgegen.metrics.quality.distribution import Distribution
from edgegen.metrics.quality.paired import PairedError
from edgegen.metrics.quality.reference import PSNR, SSIM
from edgegen.metrics.video.scores import VideoScores
from processes import fork

COUNT = 31  # the second process repeats a sample to fill up, as samplers do


class Patches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 4, 6, stride=6).requires_grad_(False)

    def forward(self, pictures: Tensor) -> Tensor:
        return self.conv(pictures).flatten(1)


def scores(indices: list[int]) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    pictures, truth = (torch.rand(COUNT, 3, 12, 12, generator=generator) for _ in range(2))
    backbone = Patches()
    paired, psnr, ssim = PairedError(backbone, batch=4), PSNR(), SSIM()
    distribution = Distribution(backbone, resamples=5, all_features=True, batch=4)
    video = VideoScores(subject=backbone, batch=4)
    for start in range(0, len(indices), 4):
        part = torch.tensor(indices[start : start + 4])
        for metric in (paired, psnr, ssim):
            metric.update(pictures[part], truth[part], part)
        distribution.update(pictures[part], real=False, indices=part)
        distribution.update(truth[part], real=True, indices=part)
        for place in part.tolist():
            video.update(
                pictures[place : place + 3] if place < COUNT - 3 else truth[:3], index=place
            )
    metrics: tuple[Metric, ...] = (paired, psnr, ssim, distribution, video)
    found = {name: value.item() for metric in metrics for name, value in metric.compute().items()}
    rows, kept = paired.samples()
    return found | {"rows": rows.tolist(), "kept": kept.tolist()}


def main(rank: int, store: str, output: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    indices = [*range(rank, COUNT, 2), *([0] if rank else [])]
    torch.save(scores(indices), f"{output}{rank}")
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:left out")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    output = str(tmp_path / "scores")
    processes = [fork(main, rank, str(tmp_path / "store"), output) for rank in (0, 1)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = scores(list(range(COUNT)))
    finally:
        torch.set_num_threads(threads)
        for process in processes:
            process.join(timeout=120)
    assert [process.exitcode for process in processes] == [0, 0]
    assert alone["kept"] == list(range(COUNT))
    assert alone["quality/psnr_n"] == COUNT
    for rank in (0, 1):
        assert torch.load(f"{output}{rank}", weights_only=True) == alone
