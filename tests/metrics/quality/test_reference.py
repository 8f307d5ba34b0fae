"""Reference metrics against scikit-image, torchmetrics' LPIPS and the packages themselves."""

import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor, nn

from edgegen.metrics.quality.lpips import AlexLPIPS
from edgegen.metrics.quality.reference import (
    FLIP,
    LPIPS,
    MAX_PSNR,
    PSNR,
    SSIM,
    VMAF,
    flip,
    psnr,
    ssim,
    vmaf,
)


def pair(count: int = 3, height: int = 40, width: int = 48) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, 8, 8, generator=generator)
    reference = nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    noise = torch.randn(reference.shape, generator=generator)
    strength = torch.tensor([0.02, 0.05, 0.2])[:count, None, None, None]
    return (reference + strength * noise).clamp(0, 1), reference


def array(picture: Tensor) -> np.ndarray:
    return picture.permute(1, 2, 0).double().numpy()


def test_psnr_and_ssim_agree_with_scikit_image() -> None:
    pictures, reference = pair()
    for place, (a, b) in enumerate(zip(pictures, reference, strict=True)):
        known = peak_signal_noise_ratio(array(b), array(a), data_range=1)
        assert psnr(pictures, reference)[place].item() == pytest.approx(known)
        known = structural_similarity(
            array(a),
            array(b),
            data_range=1,
            channel_axis=2,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
        assert ssim(pictures, reference)[place].item() == pytest.approx(known, abs=1e-9)


def test_equal_pictures() -> None:
    _, reference = pair()
    assert psnr(reference, reference).tolist() == [MAX_PSNR] * 3
    assert ssim(reference, reference).tolist() == pytest.approx([1] * 3)
    assert ssim(reference[:1], reference[:1]).shape == (1,)


def alexnet_features() -> nn.Sequential:
    """torchvision's AlexNet up to its last pooling, as published."""
    relu, pool = nn.ReLU, nn.MaxPool2d
    return nn.Sequential(
        nn.Conv2d(3, 64, kernel_size=11, stride=4, padding=2),
        relu(),
        pool(kernel_size=3, stride=2),
        nn.Conv2d(64, 192, kernel_size=5, padding=2),
        relu(),
        pool(kernel_size=3, stride=2),
        nn.Conv2d(192, 384, kernel_size=3, padding=1),
        relu(),
        nn.Conv2d(384, 256, kernel_size=3, padding=1),
        relu(),
        nn.Conv2d(256, 256, kernel_size=3, padding=1),
        relu(),
        pool(kernel_size=3, stride=2),
    )


@pytest.fixture(scope="module")
def alexnet_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    state = {f"features.{k}": v for k, v in alexnet_features().state_dict().items()}
    path = tmp_path_factory.mktemp("alexnet") / "alexnet.pth"
    torch.save({**state, "classifier.1.bias": torch.zeros(4)}, path)
    return path


def test_lpips_agrees_with_torchmetrics(
    alexnet_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torchmetrics.functional.image import lpips as theirs

    # torchmetrics takes the trunk from torchvision, which need not be there.
    monkeypatch.setattr(theirs, "_get_tv_model_features", lambda *_: alexnet_features())
    network = theirs._LPIPS(net="alex")
    state = torch.load(alexnet_file, weights_only=True)
    for name, slice_ in network.net.named_children():
        for place in dict(slice_.named_children()):
            if f"features.{place}.weight" in state:
                layer = getattr(network.net, name)[list(dict(slice_.named_children())).index(place)]
                layer.weight.data = state[f"features.{place}.weight"]
                layer.bias.data = state[f"features.{place}.bias"]
    pictures, reference = pair(height=64, width=70)
    known = network(pictures, reference, normalize=True).reshape(-1)
    found = AlexLPIPS(alexnet_file)(pictures, reference)
    assert found.shape == (3,)
    assert found[2] > 2 * found[0] > 0
    torch.testing.assert_close(found, known, rtol=1e-4, atol=0)


def test_lpips_refuses_other_files(tmp_path: Path, alexnet_file: Path) -> None:
    with pytest.raises(FileNotFoundError, match="torchvision's AlexNet"):
        LPIPS(tmp_path / "none.pth")
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"lacks features\.0\.weight"):
        LPIPS(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="31 pixels"):
        AlexLPIPS(alexnet_file)(*pair(height=30))


def test_flip_reads_pictures_as_its_own_tool_does(tmp_path: Path) -> None:
    evaluator = pytest.importorskip("flip_evaluator")
    from PIL import Image

    pictures, reference = ((side * 255).round() / 255 for side in pair())
    for place in range(3):
        paths = []
        for name, side in (("reference", reference), ("test", pictures)):
            paths.append(str(tmp_path / f"{name}{place}.png"))
            Image.fromarray((array(side[place]) * 255).round().astype(np.uint8)).save(paths[-1])
        _, known, _ = evaluator.evaluate(*paths, "LDR", applyMagma=False)
        assert flip(pictures, reference)[place].item() == pytest.approx(known, abs=1e-5)
    errors = flip(pictures, reference)
    assert errors[0] < errors[1] < errors[2]
    assert flip(reference, reference).tolist() == pytest.approx([0] * 3, abs=1e-6)


def test_vmaf_agrees_with_its_package_on_luma_and_is_clipped() -> None:
    package = pytest.importorskip("vmaf_torch")
    generator = torch.Generator().manual_seed(0)
    wide = nn.functional.interpolate(
        torch.rand(1, 3, 12, 12, generator=generator), (96, 96), mode="bicubic"
    ).clamp(0, 1)
    reference = torch.cat([wide.roll(2 * t, -1) for t in range(3)])
    noise = torch.randn(reference.shape, generator=generator)
    clip = (reference + 0.1 * noise).clamp(0, 1)
    red, green, blue = (reference[:, c : c + 1] for c in range(3))
    luma = 16 + 219 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)
    red, green, blue = (clip[:, c : c + 1] for c in range(3))
    noisy = 16 + 219 * (0.2126 * red + 0.7152 * green + 0.0722 * blue)
    raw = package.VMAF()
    assert vmaf(clip, reference).item() == pytest.approx(raw(luma, noisy).mean().item(), rel=1e-4)
    assert raw(luma, luma).max() > 100
    assert vmaf(reference, reference).item() <= 100
    metric = VMAF(resamples=10)
    metric.update(clip, reference, index=0)
    metric.update(reference, reference, index=1)
    known = (vmaf(clip, reference) + vmaf(reference, reference)) / 2
    assert metric.compute()["quality/vmaf"].item() == pytest.approx(known.item())


def test_metrics_are_means_with_intervals(alexnet_file: Path) -> None:
    pytest.importorskip("flip_evaluator")
    pictures, reference = pair()
    scores = {"psnr": psnr, "ssim": ssim, "flip": flip, "lpips": AlexLPIPS(alexnet_file)}
    metrics = [PSNR(), SSIM(), FLIP(), LPIPS(alexnet_file)]
    for (name, score), metric in zip(scores.items(), metrics, strict=True):
        for part in (slice(0, 2), slice(2, 3)):
            metric.update(pictures[part], reference[part])
        found = metric.compute()
        single = score(pictures, reference).double()
        assert set(found) == {f"quality/{name}{end}" for end in ("", "_lo", "_hi", "_sd", "_n")}
        assert found[f"quality/{name}"].item() == pytest.approx(single.mean().item(), rel=1e-5)
        assert found[f"quality/{name}_n"] == 3
        low, high = found[f"quality/{name}_lo"].item(), found[f"quality/{name}_hi"].item()
        assert single.min() - 1e-6 <= low <= single.mean() <= high <= single.max() + 1e-6


def test_rows_are_sorted_and_counted_once() -> None:
    pictures, reference = pair()
    metric = PSNR()
    metric.update(pictures[[2, 0]], reference[[2, 0]], torch.tensor([2, 0]))
    metric.update(pictures[[1, 0]], reference[[1, 0]], torch.tensor([1, 0]))
    rows, indices = metric.samples()
    assert indices.tolist() == [0, 1, 2]
    torch.testing.assert_close(rows[:, 0], psnr(pictures, reference))
    metric.reset()
    with pytest.raises(ValueError, match="no samples yet"):
        metric.samples()


def test_bad_input_says_what_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, reference = pair()
    with pytest.raises(ValueError, match="one shape"):
        PSNR().update(pictures, reference[:2])
    with pytest.raises(ValueError, match="floats"):
        PSNR().update((pictures * 255).byte(), (reference * 255).byte())
    with pytest.raises(ValueError, match="indices of shape"):
        PSNR().update(pictures, reference, torch.tensor([1, 2]))
    with pytest.raises(ValueError, match="11 pixels"):
        ssim(pictures[..., :10], reference[..., :10])
    with pytest.raises(ValueError, match="32 pixels"):
        vmaf(pictures[..., :20], reference[..., :20])
    monkeypatch.setitem(sys.modules, "flip_evaluator", None)
    with pytest.raises(ValueError, match=r"'flip-evaluator'.*edgegen\[metrics\]"):
        flip(pictures, reference)


def test_no_number_is_infinite_or_missing() -> None:
    _, reference = pair()
    metric = PSNR()
    metric.update(reference, reference)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(torch.isfinite(torch.as_tensor(v)) for v in metric.compute().values())
