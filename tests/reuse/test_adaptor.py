from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from reuse_models import LAYOUTS, TOKENS, WIDTH, draw, full_size, make_pipe, make_unet
from safetensors.torch import save_file

from edgegen import assets, load
from edgegen.reuse import (
    Branch,
    ResNetAdaptor,
    Stage,
    clockwork,
    load_adaptor,
    make_adaptor,
    observe,
    reuse,
    save_adaptor,
)
from edgegen.reuse.adaptor import INPUTS


def features(size: tuple[int, int] = (4, 4), r_in: tuple[int, int] | None = None) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    return {
        "r_in": normal(2, 6, *(r_in or size)),
        "r_out": normal(2, 10, *size),
        "time": normal(2, 12),
        "text": normal(2, TOKENS, 14),
    }


def make(inputs: Any = INPUTS, width: int = 8) -> ResNetAdaptor:
    """An adaptor that has left its start."""
    torch.manual_seed(0)
    adaptor = ResNetAdaptor(6, 10, 12, 14, width, inputs).eval()
    torch.nn.init.normal_(adaptor.conv_out.weight, std=0.1)
    return adaptor


def test_published_parameters() -> None:
    """14 M and 3 M on SD 1.5 (Clockwork Diffusion, table 5); 14 M are 1.6 % of its UNet."""
    unet = full_size("sd15")
    count = {
        kind: sum(p.numel() for p in make_adaptor(unet, Stage(), kind).parameters())
        for kind in ("resnet", "light")
    }
    assert count["resnet"] / 1e6 == pytest.approx(14, abs=0.5)
    assert count["light"] / 1e6 == pytest.approx(3, abs=0.5)
    share = count["resnet"] / sum(p.numel() for p in unet.parameters())
    assert share == pytest.approx(0.016, abs=0.0005)


@pytest.mark.parametrize("name", ["sdxl", "bk-sdm-tiny"])
@pytest.mark.parametrize("before", [True, False])
def test_fits_other_models(name: str, before: bool) -> None:
    unet = full_size(name)
    adaptor = make_adaptor(unet, Stage(1, before), "light")
    call: dict[str, Any] = {}
    if unet.config.addition_embed_type:
        call = {"text_embeds": torch.zeros(1, 1280, device="meta")}
        call = {"added_cond_kwargs": call | {"time_ids": torch.zeros(1, 6, device="meta")}}
    with observe(unet, Stage(1, before)) as seen, torch.no_grad():
        sample = torch.zeros(1, 4, 8, 8, device="meta")
        text = torch.zeros(1, 77, unet.config.cross_attention_dim, device="meta")
        unet(sample, torch.zeros((), device="meta"), text, **call)
        assert adaptor(seen.r_in, seen.r_out, seen.time, seen.text).shape == seen.r_out.shape


@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_untrained_is_the_identity(layout: str) -> None:
    pipe = make_pipe(layout)
    with clockwork(pipe, 2):
        expected = draw(pipe)
    for kind in ("resnet", "light"):
        with clockwork(pipe, 2, kind):
            assert torch.equal(draw(pipe), expected)


@pytest.mark.parametrize(
    "inputs",
    [["r_in"], ["r_out"], ["r_in", "r_out"], ["r_out", "text"], ["r_in", "time"], INPUTS],
    ids=str,
)
def test_looks_at_its_inputs_alone(inputs: list[str]) -> None:
    adaptor, given = make(inputs), features()
    before = adaptor(**given)
    for name, tensor in given.items():
        changed = adaptor(**{**given, name: tensor + torch.randn_like(tensor)})
        assert torch.equal(changed, before) == (name not in inputs), name


@pytest.mark.parametrize(("size", "r_in"), [((5, 7), None), ((8, 6), (4, 3)), ((1, 1), None)])
def test_sizes(size: tuple[int, int], r_in: tuple[int, int] | None) -> None:
    assert make()(**features(size, r_in)).shape == (2, 10, *size)


def test_text_is_pooled_by_its_mean() -> None:
    adaptor, given = make(), features()
    pooled = {**given, "text": given["text"].mean(1)}
    wrapped = {**given, "text": (given["text"], [])}
    torch.testing.assert_close(adaptor(**pooled), adaptor(**given))
    assert torch.equal(adaptor(**wrapped), adaptor(**given))


def test_learns_how_features_move() -> None:
    """On features of a UNet at two timesteps, training takes it well below the identity's error."""
    unet = make_unet(**LAYOUTS["embedded"])
    generator = torch.Generator().manual_seed(0)
    sample = torch.randn(8, 4, 8, 8, generator=generator)
    text = torch.randn(8, TOKENS, WIDTH, generator=generator)
    with observe(unet) as seen, torch.no_grad():
        unet(sample, 900, text)
        last = seen.r_out
        unet(0.5 * sample, 300, text)
        given, wanted = (seen.r_in, last, seen.time, seen.text), seen.r_out
    torch.manual_seed(0)
    adaptor = make_adaptor(unet, Stage(), width=16)
    optimizer = torch.optim.Adam(adaptor.parameters(), lr=1e-2)
    errors = []
    for _ in range(40):
        error = (adaptor(*given) - wanted).square().mean()
        optimizer.zero_grad()
        error.backward()
        optimizer.step()
        errors.append(error.item())
    assert errors[0] == pytest.approx(float((last - wanted).square().mean()))
    assert errors[-1] < 0.2 * errors[0]


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Any, ResNetAdaptor]:
    unet = make_unet(**LAYOUTS["embedded"])
    adaptor = make_adaptor(unet, Stage(2), inputs=["r_out", "time"], width=8).eval()
    torch.nn.init.normal_(adaptor.conv_out.weight)
    path = tmp_path / "adaptor.safetensors"
    save_adaptor(adaptor, path, unet, Stage(2))
    return path, unet, adaptor


def test_saved_and_loaded(saved: tuple[Path, Any, ResNetAdaptor]) -> None:
    path, unet, adaptor = saved
    loaded = load_adaptor(path, unet, Stage(2))
    assert loaded.inputs == {"r_out", "time"}
    assert not loaded.training
    for name, tensor in adaptor.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with clockwork(unet, 2, path, stage=2) as method:
        assert torch.equal(method.predictor.conv_in.weight, adaptor.conv_in.weight)


def test_another_clock_than_it_was_trained_for(saved: tuple[Path, Any, ResNetAdaptor]) -> None:
    path, unet, adaptor = saved
    adaptor.trained = {"steps": 6, "full": [1, 3, 5], "scheduler": "DDIMScheduler", "guidance": 3}
    save_adaptor(adaptor, path, unet, Stage(2))
    assert load_adaptor(path, unet, Stage(2)).trained == adaptor.trained
    for clock in (2, {"reuse": [2, 4, 6]}, {"full": [1, 3, 5, 7, 9]}, {"drift": 0.1}):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with reuse(unet, Stage(2), clock, path):
                pass
    for other in (3, {"span": 2}):
        said = r"full passes at steps \[1, 3, 5\] of 6"
        with pytest.warns(UserWarning, match=said) as told, reuse(unet, Stage(2), other, path):
            assert told[0].filename == __file__


def test_another_number_of_steps_than_it_was_trained_for(
    saved: tuple[Path, Any, ResNetAdaptor],
) -> None:
    _, unet, adaptor = saved
    adaptor.trained = {"steps": 6, "full": [1, 3, 5], "scheduler": "DDIMScheduler", "guidance": 3}
    with reuse(unet, Stage(2), 2, adaptor) as method:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            method.steps.reset(range(6))
            method.steps.tick()
            method.steps.reset(range(9))
        with pytest.warns(UserWarning, match="for runs of 6 evaluations: in one of 9"):
            method.steps.tick()
        with warnings.catch_warnings():  # once is enough
            warnings.simplefilter("error")
            method.steps.reset(range(9))
            method.steps.tick()


@pytest.mark.parametrize("width", [0, -8, 2.5, True])
def test_widths_that_are_none(width: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        make_adaptor(make_unet(**LAYOUTS["sd1"]), Stage(1), width=width)


def test_a_file_of_another_layout(saved: tuple[Path, Any, ResNetAdaptor]) -> None:
    path, unet, _ = saved
    for about in ("{}", '{"base": {}, "cut": {"level": 2}}', "[]", '{"trained": 3}'):
        save_file({"x": torch.zeros(1)}, path, metadata={"edgegen_adaptor": about})
        with pytest.raises(ValueError, match="no adaptor written by save_adaptor"):
            load_adaptor(path, unet, Stage(2))


def test_what_the_package_holds_fits_what_it_ships() -> None:
    with clockwork(load("emoji"), predictor="learned") as method:
        assert isinstance(method.predictor, ResNetAdaptor)


def test_the_package_holds_adaptors(
    saved: tuple[Path, Any, ResNetAdaptor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, unet, adaptor = saved
    monkeypatch.setattr(assets, "ROOT", tmp_path / "assets")
    missing = "predictor=learned: the package holds no adaptor for this model"
    with pytest.raises(ValueError, match=missing), clockwork(unet, 2, "learned", stage=2):
        pass
    folder = tmp_path / "assets" / "adaptors"
    folder.mkdir(parents=True)
    other = make_unet(**LAYOUTS["sd1"])
    save_adaptor(make_adaptor(other, Stage(1)), folder / "a.safetensors", other, Stage(1))
    (folder / "b.safetensors").write_bytes(path.read_bytes())
    assets.write_sums(folder)
    with clockwork(unet, 2, "learned", stage=2) as method:
        assert torch.equal(method.predictor.conv_in.weight, adaptor.conv_in.weight)
    with pytest.raises(ValueError, match=missing), clockwork(unet, 2, "learned", stage=1):
        pass
    with (folder / "b.safetensors").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match="sha256"), clockwork(unet, 2, "learned", stage=2):
        pass


def test_of_several_the_one_for_the_clock(
    saved: tuple[Path, Any, ResNetAdaptor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, unet, adaptor = saved
    monkeypatch.setattr(assets, "ROOT", tmp_path / "assets")
    folder = tmp_path / "assets" / "adaptors"
    folder.mkdir(parents=True)
    for name, full in (("a", [1, 3, 5, 7]), ("b", [1, 3, 6, 8])):
        adaptor.trained = {"steps": 8, "full": full, "scheduler": "DDIM", "guidance": 1.0}
        save_adaptor(adaptor, folder / f"{name}.safetensors", unet, Stage(2))
    assets.write_sums(folder)
    for clock, full in ((2, [1, 3, 5, 7]), ({"span": 2}, [1, 3, 6, 8])):
        with (
            warnings.catch_warnings(action="error"),
            clockwork(unet, clock, "learned", stage=2) as method,
        ):
            assert method.predictor.trained["full"] == full
    with (
        pytest.warns(UserWarning, match=r"\[1, 3, 5, 7\] of 8: under another clock"),
        clockwork(unet, 3, "learned", stage=2) as method,
    ):
        assert method.predictor.trained["full"] == [1, 3, 5, 7]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_same_base_in_another_precision(
    saved: tuple[Path, Any, ResNetAdaptor], dtype: torch.dtype
) -> None:
    path, unet, _ = saved
    assert next(load_adaptor(path, unet.to(dtype), Stage(2)).parameters()).dtype == dtype
    # Stored in half precision and read in full.
    load_adaptor(path, unet.to(torch.float32), Stage(2))


def test_another_base_is_refused(saved: tuple[Path, Any, ResNetAdaptor]) -> None:
    path, unet, _ = saved
    with pytest.raises(ValueError, match="another base model"):
        load_adaptor(path, make_unet(**LAYOUTS["embedded"], seed=1), Stage(2))
    with torch.no_grad():  # lightly fine-tuned
        unet.up_blocks[1].resnets[0].conv1.weight.mul_(1.01)
    with pytest.raises(ValueError, match="another base model"), clockwork(unet, 2, path, stage=2):
        pass
    meta = make_unet(**LAYOUTS["embedded"]).to("meta")  # nothing but the architecture to compare
    assert load_adaptor(path, meta, Stage(2)).conv_in.weight.is_meta
    with pytest.raises(ValueError, match="another base model"):
        load_adaptor(path, make_unet(**LAYOUTS["sd1"]).to("meta"), Stage(2))


def test_files_that_do_not_fit(saved: tuple[Path, Any, ResNetAdaptor], tmp_path: Path) -> None:
    path, unet, _ = saved
    with pytest.raises(ValueError, match="was trained for Stage"):
        load_adaptor(path, unet, Stage(2, before_upsampler=False))
    with pytest.raises(FileNotFoundError, match="no such adaptor file"):
        load_adaptor(tmp_path / "none.safetensors", unet, Stage(2))
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match="truncated"):
        load_adaptor(broken, unet, Stage(2))
    unet.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no adaptor"):
        load_adaptor(tmp_path / "diffusion_pytorch_model.safetensors", unet, Stage(2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "heavy"}, "adaptor 'heavy': allowed are resnet, light"),
        ({"cut": Branch(0)}, "need a stage"),
        ({"inputs": ["time"]}, "one of r_in"),
        ({"inputs": ["r_in", "noise"]}, "allowed are r_in, r_out, time, text"),
        ({"width": -1}, "width=-1"),
    ],
)
def test_settings_that_do_not_fit(settings: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_adaptor(make_unet(), **{"cut": Stage(), **settings})
