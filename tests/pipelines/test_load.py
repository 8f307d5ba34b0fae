from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderTiny,
    DiffusionPipeline,
    LCMScheduler,
    UNet2DConditionModel,
)
from PIL import Image
from safetensors.torch import load_file, save_file

from edgegen import assets
from edgegen.pipelines.autoencoders import unscaled_encoder
from edgegen.pipelines.fingerprint import weight_checksums
from edgegen.pipelines.load import load
from edgegen.pipelines.save import save_embedded
from edgegen.pipelines.schedulers import make_scheduler, scheduler_names

FAMILIES = ("sd1", "sd2", "sdxl", "ip2p")
Folders = dict[str, Path]


def draw(pipe: DiffusionPipeline, steps: int = 2) -> np.ndarray:
    pipe.set_progress_bar_config(disable=True)
    size = {"height": 16, "width": 16}
    if type(pipe).__name__ == "StableDiffusionInstructPix2PixPipeline":
        size = {"image": Image.linear_gradient("L").convert("RGB").resize((16, 16))}
    return pipe(
        "a fox",
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
        **size,
    ).images


@pytest.fixture
def copied(folders: Folders, tmp_path: Path) -> Callable[[str], Path]:
    def copy(family: str) -> Path:
        return Path(shutil.copytree(folders[family], tmp_path / family))

    return copy


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# --- folders


@pytest.mark.parametrize("family", FAMILIES)
def test_folder_gives_the_pipeline_that_was_saved(
    family: str, folders: Folders, pipelines: dict[str, DiffusionPipeline]
) -> None:
    source, pipe = pipelines[family], load(folders[family])
    assert type(pipe) is type(source)
    for name, part in source.components.items():
        if isinstance(part, torch.nn.Module):
            assert same_weights(part, pipe.components[name])
            assert not pipe.components[name].training
    picture = draw(pipe)
    assert picture.shape == (1, 16, 16, 3)
    assert picture.std() > 0
    # Not `source` itself: mapped weights lie at other addresses, where kernels round differently.
    np.testing.assert_array_equal(picture, draw(type(source).from_pretrained(folders[family])))


def test_half_folder_is_read_as_float32_throughout(
    folders: Folders, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    load(folders["sd1"], dtype="float16").save_pretrained(tmp_path / "half")
    stored = load_file(tmp_path / "half" / "text_encoder" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}
    capfd.readouterr()
    pipe = load(tmp_path / "half")
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {torch.float32}
    assert "safety" not in capfd.readouterr().err
    assert pipe.safety_checker is None
    draw(pipe)


def test_latent_consistency_pipeline(copied: Callable[[str], Path]) -> None:
    folder = copied("sd1")
    index = folder / "model_index.json"
    edit(
        index, _class_name="LatentConsistencyModelPipeline", scheduler=["diffusers", "LCMScheduler"]
    )
    LCMScheduler().save_pretrained(folder / "scheduler")
    config = UNet2DConditionModel.load_config(folder / "unet")
    unet = UNet2DConditionModel.from_config({**config, "time_cond_proj_dim": 16})
    unet.save_pretrained(folder / "unet")
    assert draw(load(folder)).shape == (1, 16, 16, 3)


def test_variant(copied: Callable[[str], Path], folders: Folders) -> None:
    folder = copied("sd1")
    path = folder / "unet" / "diffusion_pytorch_model.safetensors"
    path.rename(path.with_suffix(".fp16.safetensors"))
    with pytest.raises(ValueError, match="not readable as UNet2DConditionModel"):
        load(folder)
    assert same_weights(load(folder, variant="fp16").unet, load(folders["sd1"]).unet)


def test_safety_checker_is_never_read(copied: Callable[[str], Path]) -> None:
    folder = copied("sd1")
    checker = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    edit(folder / "model_index.json", safety_checker=checker, requires_safety_checker=True)
    pipe = load(folder)
    assert pipe.safety_checker is None
    assert pipe.config.requires_safety_checker is False


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"_class_name": "FluxPipeline", "transformer": ["diffusers", "X"]}, "with a transformer"),
        ({"_class_name": "AudioLDMPipeline"}, "class AudioLDMPipeline is not supported: allowed"),
        ({"_class_name": ["my_pipeline", "MyPipeline"]}, "is not supported: allowed"),
        ({"unet": ["my_unet", "MyUNet"]}, "unet is my_unet.MyUNet: allowed is UNet2DCondition"),
        ({"unet": ["../../x", "UNet2DConditionModel"]}, "allowed is UNet2DConditionModel"),
        ({"scheduler": ["os", "system"]}, "allowed is any scheduler of diffusers"),
        ({"scheduler": ["diffusers", "UNet2DModel"]}, "allowed is any scheduler of diffusers"),
        ({"tokenizer": ["transformers", "T5Tokenizer"]}, "allowed is CLIPTokenizer"),
        ({"../evil": ["diffusers", "UNet2DConditionModel"]}, "unknown component '../evil'"),
        ({"unet": [None, None]}, "needs a unet, which is missing"),
        ({"unet": []}, "allowed is UNet2DConditionModel"),
    ],
)
def test_index_is_not_trusted(
    changes: dict[str, object], message: str, copied: Callable[[str], Path]
) -> None:
    folder = copied("sd1")
    edit(folder / "model_index.json", **changes)
    (folder / "my_pipeline.py").write_text("raise SystemExit('ran')")
    (folder / "unet" / "my_unet.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ValueError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


def test_damaged_folders(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("sd1")
    unet = folder / "unet" / "diffusion_pytorch_model.safetensors"
    whole = unet.read_bytes()

    unet.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=r"unet/diffusion_pytorch_model\.safetensors: truncated"):
        load(folder)
    weights = load_file(folder / "text_encoder" / "model.safetensors")
    unet.unlink()
    with pytest.raises(FileNotFoundError, match="unet: no weights"):
        load(folder)
    unet.write_bytes(whole)

    # diffusers and transformers only warn about these two, and go on with random weights.
    partial = {key: value for key, value in weights.items() if "final_layer_norm" not in key}
    save_file(partial, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"2 weights of CLIPTextModel are missing, first .*bias"):
        load(folder)
    save_file(weights, folder / "text_encoder" / "model.safetensors", metadata={"format": "pt"})
    kept = {key: value for key, value in load_file(unet).items() if key != "conv_out.bias"}
    save_file(kept, unet, metadata={"format": "pt"})
    with pytest.raises(ValueError, match="1 weights of UNet2DConditionModel are missing"):
        load(folder)

    unet.write_bytes(whole)
    edit(folder / "unet" / "config.json", cross_attention_dim=48)
    with pytest.raises(ValueError, match="unet: not readable as UNet2DConditionModel") as caught:
        load(folder)
    assert "\n" not in str(caught.value)
    (folder / "unet" / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: not valid JSON"):
        load(folder)
    shutil.rmtree(folder / "unet")
    with pytest.raises(FileNotFoundError, match=r"unet/config\.json: no such file"):
        load(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"empty: no model_index\.json"):
        load(tmp_path / "empty")


def test_parts_that_do_not_fit_each_other(copied: Callable[[str], Path], folders: Folders) -> None:
    folder = copied("sd1")
    shutil.rmtree(folder / "unet")
    shutil.copytree(folders["ip2p"] / "unet", folder / "unet")
    with pytest.raises(ValueError, match=r"UNet maps 8 to 4 channels, but .* needs 4 to 4"):
        load(folder)
    shutil.rmtree(folder / "unet")
    shutil.copytree(folders["sdxl"] / "unet", folder / "unet")
    with pytest.raises(ValueError, match="features of width 64, but the text encoder gives 32"):
        load(folder)


def test_pickled_folder_only_on_request(copied: Callable[[str], Path], folders: Folders) -> None:
    folder = copied("sd1")
    for name, old, new in (
        ("unet", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"),
        ("text_encoder", "model.safetensors", "pytorch_model.bin"),
    ):
        torch.save(load_file(folder / name / old), folder / name / new)
        (folder / name / old).unlink()
    with pytest.raises(ValueError, match=r"a pickle, which can run code .* allow_pickle=True"):
        load(folder)
    pipe, expected = load(folder, allow_pickle=True), load(folders["sd1"])
    assert same_weights(pipe.unet, expected.unet)
    assert same_weights(pipe.text_encoder, expected.text_encoder)


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        ("emojii", ValueError, "model 'emojii' is unknown: allowed are the embedded"),
        ("./nowhere", FileNotFoundError, "nowhere: no such file or folder"),
        ("/nowhere/at/all", FileNotFoundError, "no such file or folder"),
        ("a/b/c", FileNotFoundError, "a/b/c: no such file or folder"),
        ("", ValueError, "model '' is unknown"),
    ],
)
def test_sources_that_are_nothing(
    source: str,
    error: type[Exception],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        load(source)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is not allowed: allowed are float32, float16, bfloat16"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"scheduler": "Best"}, "scheduler 'Best' is unknown: allowed are DDIMParallelScheduler"),
        ({"prediction_type": "v"}, "prediction_type 'v' is unknown: allowed are epsilon"),
        ({"config": "x"}, "for single files"),
    ],
)
def test_wrong_settings(settings: dict[str, str], message: str, folders: Folders) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(folders["sd1"], **settings)
    assert "\n" not in str(caught.value)


# --- schedulers


@pytest.mark.parametrize("name", scheduler_names())
def test_every_scheduler_draws(
    name: str, folders: Folders, caplog: pytest.LogCaptureFixture
) -> None:
    if name == "DPMSolverSDEScheduler":
        pytest.importorskip("torchsde")
    pipe = load(folders["sd2"], scheduler=name.removesuffix("Scheduler"))
    assert type(pipe.scheduler) is getattr(diffusers, name)
    assert pipe.scheduler.config.prediction_type == "v_prediction"
    assert pipe.scheduler.config.beta_end == 0.012
    assert np.isfinite(draw(pipe, steps=4)).all()
    assert "are not expected" not in caplog.text


def test_pndm_begins_as_in_stable_diffusion() -> None:
    for current in (diffusers.DDIMScheduler(), diffusers.PNDMScheduler()):
        plain = make_scheduler("PNDM", current)
        plain.set_timesteps(8)
        assert len(plain.timesteps) == 9
    asked = make_scheduler("PNDM", diffusers.PNDMScheduler(skip_prk_steps=False))
    asked.set_timesteps(8)
    assert len(asked.timesteps) == 17


def test_scheduler_instance_and_prediction_type(folders: Folders) -> None:
    own = diffusers.EulerDiscreteScheduler(beta_end=0.02)
    assert load(folders["sd1"], scheduler=own).scheduler is own
    changed = make_scheduler(own, own, "v_prediction")
    assert changed.config.prediction_type == "v_prediction"
    assert changed.config.beta_end == 0.02
    assert own.config.prediction_type == "epsilon"


# --- autoencoders


def test_tiny_autoencoder_from_folder_and_module(
    folders: Folders, tiny_vae: AutoencoderTiny, tmp_path: Path
) -> None:
    tiny_vae.save_pretrained(tmp_path / "taesd")
    for family in ("sd1", "sdxl"):
        pipe = load(folders[family], vae=tmp_path / "taesd")
        assert isinstance(pipe.vae, AutoencoderTiny)
        assert same_weights(pipe.vae, tiny_vae)
        np.testing.assert_array_equal(draw(pipe), draw(load(folders[family], vae=tiny_vae)))
        assert pipe.vae_scale_factor == 2


def test_tiny_autoencoder_conditions_instruct_pix2pix_unscaled(
    folders: Folders, tiny_vae: AutoencoderTiny, tmp_path: Path
) -> None:
    before = {key: value.clone() for key, value in tiny_vae.state_dict().items()}
    pipe = load(folders["ip2p"], vae=tiny_vae)
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        scaled = tiny_vae.encode(picture).latents
        # What the pipeline feeds to the UNet beside the noisy latents, of guidance order
        # text, image, none.
        condition = pipe.prepare_image_latents(
            picture, 1, 1, torch.float32, torch.device("cpu"), do_classifier_free_guidance=True
        )
        torch.testing.assert_close(condition[:1] * 0.18215, scaled)
        torch.testing.assert_close(condition[1:2] * 0.18215, scaled)
        assert not condition[2].any()
        assert torch.equal(pipe.vae.decode(latents).sample, tiny_vae.decode(latents).sample)
    assert draw(pipe).shape == (1, 16, 16, 3)
    assert all(torch.equal(value, before[key]) for key, value in tiny_vae.state_dict().items())
    # Saved and read again it is not scaled a second time.
    pipe.save_pretrained(tmp_path / "saved")
    assert same_weights(load(tmp_path / "saved").vae, pipe.vae)


def test_unscaled_encoder_matches_the_convention_of_autoencoder_kl() -> None:
    # A KL autoencoder's latents are scaled after encoding: tiny ones come out scaled. A "trained"
    # tiny one is imitated by scaling the last convolution of another.
    torch.manual_seed(0)
    plain = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    scaled = unscaled_encoder(plain, 1 / 0.18215)
    picture = torch.rand(2, 3, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(
            unscaled_encoder(scaled, 0.18215).encode(picture).latents,
            plain.encode(picture).latents,
        )


def test_autoencoders_that_do_not_fit(folders: Folders, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="gives 16 latent channels, but the model needs 4"):
        load(folders["sd1"], vae=AutoencoderKL(latent_channels=16))
    with pytest.raises(ValueError, match="gives 8 times smaller latents, but the model needs 2"):
        load(folders["sd1"], vae=AutoencoderTiny())
    with pytest.raises(ValueError, match="vae is a Linear: allowed is AutoencoderKL or"):
        load(folders["sd1"], vae=torch.nn.Linear(1, 1))
    with pytest.raises(FileNotFoundError, match=r"vae './none': no folder with a config\.json"):
        load(folders["sd1"], vae="./none")
    with pytest.raises(ValueError, match="class UNet2DConditionModel: allowed is AutoencoderKL"):
        load(folders["sd1"], vae=folders["sd1"] / "unet")


# --- embedded models


@pytest.fixture
def embedded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pipelines: dict[str, DiffusionPipeline]
) -> Path:
    root = tmp_path / "assets"
    monkeypatch.setattr(assets, "ROOT", root)
    (root / "data").mkdir(parents=True)
    return save_embedded(pipelines["sd1"], root / "emoji")


def test_embedded_model(embedded: Path, pipelines: dict[str, DiffusionPipeline]) -> None:
    assert assets.model_names() == ["emoji"]
    pipe = load("emoji")
    assert pipe.unet.dtype == torch.float32
    expected = pipelines["sd1"].unet.conv_in.weight.half().float()
    assert torch.equal(pipe.unet.conv_in.weight, expected)
    assert draw(pipe).shape == (1, 16, 16, 3)


def test_embedded_model_that_was_changed(embedded: Path) -> None:
    weights = embedded / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ValueError, match=r"vae/.*safetensors: sha256 is .*, expected .*damaged"):
        load("emoji")
    with pytest.raises(ValueError, match="allowed are the embedded emoji, a diffusers folder"):
        load("emoji-edit")


def test_weight_checksums(folders: Folders) -> None:
    found = weight_checksums(folders["sd1"])
    assert sorted(found) == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    one = folders["sd1"] / "text_encoder" / "model.safetensors"
    assert weight_checksums(one) == {"model.safetensors": found["text_encoder/model.safetensors"]}


# --- hub


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cache(hub: Path, name: str, folder: Path) -> None:
    """Lay out a folder as the hub's cache does."""
    repository = hub / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("0" * 40)
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))


def test_hub_id_from_the_cache(
    hub_cache: Path, folders: Folders, tiny_vae: AutoencoderTiny, tmp_path: Path
) -> None:
    cache(hub_cache, "someone/model-v1.5", folders["sd1"])
    tiny_vae.save_pretrained(tmp_path / "taesd")
    cache(hub_cache, "madebyollin/taesd", tmp_path / "taesd")
    pipe = load("someone/model-v1.5", vae="taesd")
    assert isinstance(pipe.vae, AutoencoderTiny)
    np.testing.assert_array_equal(draw(pipe), draw(load(folders["sd1"], vae=tiny_vae)))


def test_hub_id_without_network(hub_cache: Path, folders: Folders) -> None:
    message = "hub model 'a/b' is not in the local cache and the hub cannot be reached"
    with pytest.raises(FileNotFoundError, match=message) as caught:
        load("a/b")
    assert "\n" not in str(caught.value)
    with pytest.raises(FileNotFoundError, match="'madebyollin/taesdxl' is not in the local cache"):
        load(folders["sdxl"], vae="taesd")


def test_unreachable_hub_is_noticed_at_once(
    hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(FileNotFoundError, match="the hub cannot be reached"):
        load("a/b")


def test_hub_transformer_is_refused_by_its_index_alone(hub_cache: Path, tmp_path: Path) -> None:
    (tmp_path / "flux").mkdir()
    index = {"_class_name": "FluxPipeline", "transformer": ["diffusers", "FluxTransformer2DModel"]}
    (tmp_path / "flux" / "model_index.json").write_text(json.dumps(index))
    cache(hub_cache, "a/flux", tmp_path / "flux")
    with pytest.raises(ValueError, match="FluxPipeline denoises with a transformer; edgegen works"):
        load("a/flux")
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "README.md").write_text("x")
    cache(hub_cache, "a/bare", tmp_path / "bare")
    with pytest.raises(ValueError, match="'a/bare' is no diffusers pipeline"):
        load("a/bare")
