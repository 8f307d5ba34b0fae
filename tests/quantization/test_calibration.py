"""What is recorded, and what calibration makes of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from quantization_models import draw, make_editor, make_pipe, make_text_pipe, make_unet

from edgegen.quantization import Call, parse_spec, plan, quantize_, quantized, record_calls
from edgegen.quantization.calibration import Recorder, draw_calls
from edgegen.quantization.grids import Grid, fake_quantize
from edgegen.quantization.observers import Observer
from edgegen.quantization.plan import make_plan
from edgegen.quantization.ranges import find_range, min_max
from edgegen.quantization.skips import skip_splits
from edgegen.quantization.time_embedding import finite_layers


def test_records_a_run(pipe: Any) -> None:
    with record_calls(pipe, ["unet", "vae"]) as recorder:
        draw(pipe, 5, output_type="pt")
    calls = recorder.calls
    assert Counter(call.path for call in calls) == {
        "unet": 5,
        "vae.decoder": 1,
        "vae.post_quant_conv": 1,
    }
    times = [call.time for call in calls if call.path == "unet"]
    assert times == [float(t) for t in pipe.scheduler.timesteps]
    before = calls[0].args[0].clone()
    draw(pipe, 5)
    assert torch.equal(calls[0].args[0], before)
    assert len(recorder.calls) == len(calls)
    assert not pipe.unet._forward_pre_hooks


def test_recorder_is_stratified_and_fair() -> None:
    recorder = Recorder(bins=4, limit=8)
    for number in range(4000):
        recorder.add("unet", (number,), {}, (number * 7) % 1000)
    kept = recorder.calls
    assert Counter(int((call.time or 0) / 250) for call in kept) == dict.fromkeys(range(4), 8)
    first_half = sum(call.args[0] < 2000 for call in kept)
    assert 8 < first_half < 24  # reservoir sampling: of 32, half is to be expected


@pytest.mark.parametrize("method", ["minmax", "percentile", "mse"])
def test_observer_by_group_and_part(method: str) -> None:
    spec = parse_spec(activations={"range": method, "percentile": 100.0}).activations
    observer = Observer(spec, axis=1, split=2, groups=2)
    grid = Grid(8, symmetric=False)
    seen: dict[tuple[int, int], list[torch.Tensor]] = {}
    for number in range(6):
        generator = torch.Generator().manual_seed(number)
        x = (number + 1) * torch.randn(2, 5, 3, 3, generator=generator)
        x[:, 2:] *= 10
        observer.see(x, number % 2)
        for part, values in enumerate((x[:, :2], x[:, 2:])):
            seen.setdefault((number % 2, part), []).append(values.flatten())
    scale, point = observer.scales(grid)
    assert scale.shape == (2, 2)
    assert point is not None
    for (group, part), values in seen.items():
        expected, expected_point = min_max(torch.cat(values)[None], grid)
        assert expected_point is not None
        if method == "mse":
            assert 0.3 * expected.item() < scale[group, part].item() <= expected.item()
        else:
            torch.testing.assert_close(scale[group, part], expected[0, 0])
            assert point[group, part] == expected_point[0, 0]


@pytest.mark.parametrize("settings", [{"range": "mse"}, {"range": "percentile"}])
def test_many_values_are_sampled_without_favour(settings: dict[str, Any]) -> None:
    """Ten calls of 100,000 values of a Laplace distribution: the range that all of them ask for."""
    observer = Observer(parse_spec(activations=settings).activations)
    grid = Grid(4, symmetric=False)
    torch.manual_seed(0)
    calls = [torch.distributions.Laplace(0.0, 1.0).sample((100_000,)) for _ in range(10)]
    for call in calls:
        observer.see(call)
    every = torch.cat(calls)
    found, expected = observer.scales(grid), find_range(every[None], grid, settings["range"])
    assert found[0].item() == pytest.approx(expected[0].item(), rel=0.15)
    assert expected[0].item() < 0.8 * min_max(every[None], grid)[0].item()
    if settings["range"] == "mse":
        errors = [
            (every - fake_quantize(every, scale, point, grid)).square().mean().item()
            for scale, point in (found, expected)
        ]
        assert errors[0] < 1.05 * errors[1]


def test_ranges_are_those_of_the_full_precision_model(pipe: Any, calls: Any) -> None:
    """Inputs of a layer in the middle, by hooks of our own, a group of timesteps each."""
    name = "mid_block.resnets.0.conv2"
    seen: dict[bool, list[torch.Tensor]] = {False: [], True: []}
    late = False
    handle = pipe.unet.get_submodule(name).register_forward_pre_hook(
        lambda _, args: seen[late].append(args[0].flatten())
    )
    for call in calls:
        late = call.time >= 500
        with torch.no_grad():
            pipe.unet(*call.args, **call.kwargs)
    handle.remove()
    plan = make_plan(pipe, parse_spec("w8a8", time_groups=2), calls)
    inputs = plan.twins[f"unet.{name}"][1].inputs
    for group, values in enumerate((seen[False], seen[True])):
        scale, point = min_max(torch.cat(values)[None], Grid(8, symmetric=False))
        torch.testing.assert_close(inputs.scale[group], scale[0])
        torch.testing.assert_close(inputs.zero_point[group], point[0])  # type: ignore[index]


@pytest.mark.parametrize("deep", [False, True])
def test_splits_where_skips_are_joined(deep: bool) -> None:
    """The channels that each convolution takes from the path below, by watching torch.cat."""
    changes: dict[str, Any] = {"layers_per_block": 2, "block_out_channels": (8, 16, 24)}
    changes["down_block_types"] = ("DownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    changes["up_block_types"] = ("UpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D")
    unet = make_unet(**(changes if deep else {}))
    joined: list[int] = []
    plain = torch.cat

    def cat(tensors: Any, dim: int = 0) -> torch.Tensor:
        if len(tensors) == 2 and tensors[0].dim() == 4:
            joined.append(tensors[0].shape[1])
        return plain(tensors, dim=dim)

    torch.cat = cat  # type: ignore[assignment]
    try:
        unet(torch.randn(1, 4, 8, 8), 3, torch.randn(1, 5, 16))
    finally:
        torch.cat = plain  # type: ignore[assignment]
    found = [count for path, count in skip_splits(unet).items() if path.endswith("conv1")]
    assert found == joined
    assert len(found) == (9 if deep else 4)


def test_finite_time_embedding() -> None:
    """Whatever timestep comes, the inputs stay within the range, which is reached."""
    pipe = make_pipe()
    plan = make_plan(pipe.unet, parse_spec("w8a8", include=["*time_emb*"]))  # no calls asked for
    assert set(plan.twins) == {f"unet.{name}" for name in finite_layers(pipe.unet)}
    twin = plan.twins["unet.mid_block.resnets.1.time_emb_proj"][1]
    unet = pipe.unet
    with torch.no_grad():
        embedded = unet.time_embedding(unet.time_proj(torch.arange(1000)))
        inputs = F.silu(embedded)
    scale, point = min_max(inputs.flatten()[None], Grid(8, symmetric=False))
    torch.testing.assert_close(twin.inputs.scale, scale)
    assert point is not None
    torch.testing.assert_close(twin.inputs.zero_point, point)


def test_rounding_leaves_finite_ranges_alone(pipe: Any, calls: Any) -> None:
    """GPTQ looks at the calls' inputs of these layers; their ranges come of all timesteps."""
    spec = {"include": ["*time_emb*"], "activations": {"range": "mse"}}
    plans = [
        make_plan(pipe, parse_spec("w4a8", weights={"rounding": rounding}, **spec), calls)
        for rounding in ("nearest", "gptq")
    ]
    names = list(plans[0].twins)
    assert names == list(plans[1].twins)
    for name in names:
        first, second = (plan.twins[name][1] for plan in plans)
        assert torch.equal(first.inputs.scale, second.inputs.scale)
    assert any(
        not torch.equal(plans[0].twins[name][1].stored(), plans[1].twins[name][1].stored())
        for name in names
    )


def test_bias_correction_takes_the_mean_error_off(pipe: Any, calls: Any) -> None:
    """For layers fed in full precision: the mean of each channel is then that of the plain one."""
    name = "conv_in"
    plan = make_plan(pipe, parse_spec("w4a4", first_last="same", bias_correction=True), calls)
    layer, twin = plan.twins[f"unet.{name}"]
    with torch.no_grad():
        inputs = torch.cat([call.args[0] for call in calls])
        corrected = (twin(inputs) - layer(inputs)).mean((0, 2, 3))
        twin.correction = None
        plain = (twin(inputs) - layer(inputs)).mean((0, 2, 3))
    assert plain.abs().max() > 1e-4
    torch.testing.assert_close(corrected, torch.zeros_like(corrected), rtol=0, atol=1e-6)


def test_values_that_are_not_finite(pipe: Any, calls: Any) -> None:
    sample, *rest = calls[0].args
    bad = [Call((sample * float("inf"), *rest), calls[0].kwargs, calls[0].time)]
    for calls, text in (
        (bad, r"unet\.conv_in: calibration met values"),
        ([Call((), path="text_encoder")], "a calibration call of text_encoder, which is not there"),
    ):
        with pytest.raises(ValueError, match=text), quantized(pipe, "w8a8", calls=calls):
            pass


@pytest.mark.parametrize("method", ["w4a8", "vq1d"])
def test_hessians_a_few_at_a_time(
    pipe: Any, calls: Any, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As all at once, whatever memory there is; the calls are made again for each few."""
    spec = parse_spec(method, weights={"rounding": "gptq"}, include=["*mid_block*", "unet.conv_*"])
    made: list[int] = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: made.append(1))
    whole = make_plan(pipe, spec, calls)
    assert len(made) == len(calls)
    monkeypatch.setattr(plan, "HESSIAN_BYTES", 4 * 144**2)  # one of a 3 × 3 convolution of 16
    parts = make_plan(pipe, spec, calls)
    handle.remove()
    assert len(made) > 4 * len(calls)
    assert list(parts.twins) == list(whole.twins)
    assert parts.nearest == whole.nearest == []
    for name, (_, twin) in whole.twins.items():
        assert torch.equal(parts.twins[name][1].stored(), twin.stored())


class TestStore:
    def settings(self, folder: Path) -> dict[str, Any]:
        return {"prompts": ["ab", "c"], "steps": 3, "guidance": 3.0, "store": str(folder / "kept")}

    def test_is_made_once(self, tmp_path: Path) -> None:
        pipe = make_text_pipe(tmp_path)
        settings = parse_spec(calibration=self.settings(tmp_path)).calibration
        parts = ("unet", "vae", "text_encoder")
        made: list[int] = []
        handle = pipe.unet.register_forward_pre_hook(lambda *_: made.append(1))
        first, second = (draw_calls(pipe, parts, settings) for _ in range(2))
        assert len(made) == 3
        assert [(call.path, call.time) for call in first] == [
            (call.path, call.time) for call in second
        ]
        for a, b in zip(first, second, strict=True):
            torch.testing.assert_close(
                [list(a.args), dict(a.kwargs)], [list(b.args), dict(b.kwargs)], rtol=0, atol=0
            )
        (file,) = (tmp_path / "kept").iterdir()
        assert file.stat().st_size < 30_000  # text features are the same at all steps
        before = pipe.unet.conv_in.weight.data.clone()
        pipe.unet.conv_in.weight.data += 1
        draw_calls(pipe, parts, settings)
        handle.remove()
        assert len(made) == 6
        pipe.unet.conv_in.weight.data = before
        for damaged in (file.read_bytes()[:-40], b""):
            file.write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{file}: no calibration calls, or damaged"):
                draw_calls(pipe, parts, settings)

    def test_is_in_no_saved_model(self, tmp_path: Path) -> None:
        pipe = make_text_pipe(tmp_path)
        quantize_(pipe, "w8a8", calibration=self.settings(tmp_path))
        pipe.unet.save_pretrained(tmp_path / "unet")
        assert (tmp_path / "kept").is_dir()
        assert str(tmp_path) not in (tmp_path / "unet" / "config.json").read_text()


class TestEditors:
    @pytest.fixture
    def pictures(self, tmp_path: Path) -> list[str]:
        for number, colour in enumerate(("red", "blue")):
            Image.new("RGB", (20, 30), colour).save(tmp_path / f"{number}.png")
        return [str(tmp_path / f"{number}.png") for number in range(2)]

    def test_calibrates_on_pictures(self, tmp_path: Path, pictures: list[str]) -> None:
        """What the UNet is called with is what the pipeline itself calls it with."""
        pipe = make_editor(tmp_path)
        given = {"prompts": ["a", "b", "c"], "steps": 2, "images": pictures}
        settings = parse_spec(
            calibration={**given, "guidance": 3.0, "image_guidance": 1.2}
        ).calibration
        calls = draw_calls(pipe, ("unet",), settings)
        opened = [Image.open(each).convert("RGB").resize((16, 16)) for each in pictures]
        with record_calls(pipe, limit=99) as recorder, torch.no_grad():
            pipe(
                ["a", "b", "c"],
                [opened[0], opened[1], opened[0]],
                num_inference_steps=2,
                guidance_scale=3.0,
                image_guidance_scale=1.2,
                generator=[torch.Generator().manual_seed(seed) for seed in range(3)],
                output_type="latent",
            )
        assert len(calls) == len(recorder.calls) == 2
        for ours, own in zip(calls, recorder.calls, strict=True):
            assert ours.args[0].shape == (9, 8, 8, 8)  # three branches of three pictures
            torch.testing.assert_close(ours.args[0], own.args[0], rtol=1e-4, atol=1e-4)
        with quantized(pipe, "w8a8", calibration=given) as report:
            assert "calibration" not in report.table()

    def test_says_what_is_wrong(self, tmp_path: Path, pictures: list[str]) -> None:
        (tmp_path / "text.png").write_text("no picture")
        for make, given, error, text in (
            (make_editor, {}, ValueError, "edits pictures: give calibration.images"),
            (make_text_pipe, {"images": pictures}, ValueError, "edits no pictures"),
            (make_editor, {"images": ["no.png"]}, FileNotFoundError, "images: no.png: no such"),
            (make_editor, {"images": [str(tmp_path / "text.png")]}, ValueError, "damaged, or no"),
            (make_text_pipe, {"images": 3}, ValueError, "images=3: must be a list of texts"),
        ):
            with (
                pytest.raises(error, match=text),
                quantized(make(tmp_path), "w8a8", calibration=given),
            ):
                pass
