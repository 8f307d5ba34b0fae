"""RAFT against torchvision's own, with random weights in files."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from test_pixels import moving

from edgegen.metrics.video.flow import RaftFlow
from edgegen.metrics.video.pixels import warp_error
from edgegen.metrics.video.scores import VideoScores


@pytest.fixture(scope="module")
def net() -> Any:
    models = pytest.importorskip("torchvision.models.optical_flow")
    torch.manual_seed(0)
    net = models.raft_small(weights=None).eval()
    with torch.no_grad():  # so small a flow that forth and back agree
        net.update_block.flow_head.conv2.weight.mul_(0.05)
        net.update_block.flow_head.conv2.bias.mul_(0.05)
    return net


@pytest.fixture(params=["raft.pth", "raft.safetensors"])
def weights(request: Any, net: Any, tmp_path: Path) -> Path:
    file = tmp_path / request.param
    write = torch.save if file.suffix == ".pth" else save_file
    write(net.state_dict(), file)  # type: ignore[arg-type]
    return file


@torch.no_grad()
def test_flow_is_torchvisions(net: Any, weights: Path) -> None:
    flow = RaftFlow(weights, "small", updates=3)
    clip = moving(2, 3, -2, size=128)
    theirs = net(clip[:1] * 2 - 1, clip[1:] * 2 - 1, num_flow_updates=3)[-1][0]
    torch.testing.assert_close(flow(clip[0], clip[1]), theirs, atol=1e-4, rtol=1e-4)
    assert theirs.abs().max() > 0.03


@torch.no_grad()
def test_other_sizes_are_continued_at_their_borders(net: Any, weights: Path) -> None:
    flow = RaftFlow(weights, "small", updates=2)
    clip = moving(2, 3, -2, size=128)[:, :, :117, :99]
    rows = torch.arange(128).sub(5).clamp(0, 116)
    columns = torch.arange(128).sub(14).clamp(0, 98)
    framed = clip[:, :, rows][:, :, :, columns] * 2 - 1
    theirs = net(framed[:1], framed[1:], num_flow_updates=2)[-1][0]
    found = flow(clip[0], clip[1])
    assert found.shape == (2, 117, 99)
    torch.testing.assert_close(found, theirs[:, 5:122, 14:113], atol=1e-4, rtol=1e-4)


def test_warp_errors_by_it(weights: Path) -> None:
    flow = RaftFlow(weights, "small", updates=1)
    source, edited = moving(3, 1, 0, size=64), moving(3, 1, 0, seed=1, size=64)
    scores = VideoScores(flow=flow)
    scores.update(edited, source)
    wanted = warp_error(source, edited, flow)
    assert float(scores.compute()["video/warp_error"]) == pytest.approx(wanted)


def test_weights_of_the_other_size(weights: Path) -> None:
    with pytest.raises(ValueError, match=r"not RAFT \(large\)") as said:
        RaftFlow(weights)
    assert "\n" not in str(said.value)


def test_mistakes(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        RaftFlow(tmp_path / "none.pth")
    with pytest.raises(ValueError, match="large or small"):
        RaftFlow(tmp_path / "none.pth", "huge")  # type: ignore[arg-type]
