from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny, StableDiffusionInstructPix2PixPipeline
from PIL import Image

import edgegen
from edgegen.commands import _edited
from edgegen.commands.edit_accuracy import main
from edgegen.data.edit_pairs import EmojiSources
from edgegen.data.emoji import EmojiSet
from edgegen.data.held_out_pairs import held_out_pairs
from edgegen.metrics.quality.efflite0 import EffLite0
from edgegen.pipelines.save import save_embedded
from edgegen.pipelines.variants import editor_unet
from edgegen.runs import looks


@pytest.fixture(scope="module")
def editor_folder(tmp_path_factory: pytest.TempPathFactory, tiny_pipeline_folder: Path) -> Path:
    """The tiny pipeline made an editor; its latents are 16 to a side, a quarter of a drawing's."""
    pipe = edgegen.load(tiny_pipeline_folder)
    torch.manual_seed(1)
    parts = {name: getattr(pipe, name) for name in ("vae", "text_encoder", "tokenizer")}
    editor = StableDiffusionInstructPix2PixPipeline(
        **parts, unet=editor_unet(tiny_pipeline_folder, 16), scheduler=pipe.scheduler,
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    return save_embedded(editor, tmp_path_factory.mktemp("editor") / "model")


class Blocks(torch.nn.Module):
    """Features that cost nothing: the mean colours of 8 × 8 blocks."""

    num_features = 192
    weights_file = staticmethod(EffLite0.weights_file)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(pictures, 8).flatten(1)


def run(editor_folder: Path, emoji_file: Path, *more: str) -> dict[str, float]:
    options = ["n=2", "n_ambiguous=1", "steps=1", "resamples=50", "shown=3", "batch_size=2"]
    main([f"model={editor_folder}", f"domain.file={emoji_file}", "output_dir=run", *options, *more])
    return json.loads(Path("run/metrics.json").read_text())


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_edits_are_made_judged_and_kept(
    editor_folder: Path, emoji_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgegen.commands.edit_accuracy.EffLite0", Blocks)
    monkeypatch.setattr("edgegen.commands.edit_accuracy.LOOKS", Path("test_looks.csv").absolute())
    found = run(editor_folder, emoji_file, "split=test")
    files = sorted(Path("run/images/emoji").iterdir())
    assert [file.name for file in files] == [f"{n:06d}.png" for n in range(2)]
    edit = np.asarray(Image.open(files[0]).convert("RGB"))
    assert edit.shape == (32, 32, 3)
    assert Path("run/results_emoji.png").is_file()
    # PSNR of the first pair, computed from the files and the pair itself.
    sources = EmojiSources(EmojiSet(emoji_file), "concepts", 32)
    pairs = held_out_pairs(sources, "test", 2)
    decibels = []
    for pair, file in zip(pairs, files, strict=True):
        target = sources.source(pair.index).target(pair.instruction) / 255
        error = np.square(np.asarray(Image.open(file).convert("RGB")) / 255 - target).mean()
        decibels.append(-10 * np.log10(error))
    assert found["quality/psnr_edit_emoji"] == pytest.approx(np.mean(decibels), abs=1e-4)
    assert found["quality/pairs_emoji"] == 2
    assert "quality/followed_emoji_ambiguous" in found
    with Path("test_looks_edits.csv").open() as file:
        rows = list(csv.DictReader(file))
    if rows:  # where the code is a git checkout
        assert [row["group"] for row in rows] == ["emoji", "emoji_ambiguous"]
    # Run again, nothing is made anew and the figures are the same.
    before = [file.stat().st_mtime_ns for file in files]
    assert run(editor_folder, emoji_file, "split=test", "log_looks=false") == found
    assert [file.stat().st_mtime_ns for file in files] == before
    assert looks.LOOKS.name == "test_looks.csv"


def test_perfect_and_idle_editors(editor_folder: Path, emoji_file: Path) -> None:
    """The autoencoder's rendering of the truth closes the whole gap, the source itself nothing."""
    pipe, judge = edgegen.load(editor_folder), Blocks()
    sources = EmojiSources(EmojiSet(emoji_file), "train", 32)
    asks = _edited.asks_of(sources, held_out_pairs(sources, "dev", 4))
    sources_shown = [ask.source.picture for ask in asks]
    targets = [ask.source.target(ask.pair.instruction) for ask in asks]
    for edits, share in ((_edited.rendered(pipe.vae, targets), 1.0), (sources_shown, 0.0)):
        found, names = _edited.score(pipe.vae, judge, asks, edits, "judging")
        assert names == [ask.pair.instruction for ask in asks]
        done = found.psnr["edit"] - found.psnr["source"]
        gap = found.psnr["autoencoder"] - found.psnr["source"]
        np.testing.assert_allclose(done, share * gap, atol=1e-6)
        if share == 1.0:
            assert np.array_equal(found.followed, found.followed_truth)
            np.testing.assert_allclose(
                found.features["edit"], found.features["autoencoder"], atol=1e-5
            )
    # A target that no autoencoder has touched points to itself, for a lossless autoencoder.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_edited, "rendered", lambda vae, pictures: list(pictures))
        found, _ = _edited.score(pipe.vae, judge, asks, targets, "judging")
        assert found.followed.all()
        assert found.followed_truth.all()
        assert (found.psnr["edit"] == 100).all()
        assert (found.features["edit"] == 0).all()
        wrong, _ = _edited.score(pipe.vae, judge, asks, targets[::-1], "judging")
        assert not wrong.followed.all()


def test_a_light_autoencoder_is_judged_through_the_renderer(
    editor_folder: Path, emoji_file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The gap and the yardstick of two models are the same, whatever autoencoder edits."""
    monkeypatch.setattr("edgegen.commands.edit_accuracy.EffLite0", Blocks)
    torch.manual_seed(0)
    vae = edgegen.load(editor_folder).vae
    widths = list(vae.config.block_out_channels)
    AutoencoderTiny(
        latent_channels=vae.config.latent_channels,
        encoder_block_out_channels=widths, decoder_block_out_channels=widths,
        num_encoder_blocks=[1] * len(widths), num_decoder_blocks=[1] * len(widths),
    ).save_pretrained("light")  # fmt: skip
    own = run(editor_folder, emoji_file)
    with pytest.raises(SystemExit):
        run(editor_folder, emoji_file, "model.vae=light")
    assert "renderer: the model has an AutoencoderTiny" in capsys.readouterr().err
    light = run(editor_folder, emoji_file, "model.vae=light", f"renderer={editor_folder}")
    for name in ("psnr_autoencoder_emoji", "psnr_source_emoji", "followed_emoji_truth"):
        assert light[f"quality/{name}"] == own[f"quality/{name}"]
    # Made anew, since the autoencoder is another, though the folder is the same.
    assert light["quality/psnr_edit_emoji"] != own["quality/psnr_edit_emoji"]


def test_the_nearest_right_answer_counts(emoji_file: Path, editor_folder: Path) -> None:
    sources = EmojiSources(EmojiSet(emoji_file), "train", 32)
    pairs = held_out_pairs(sources, "dev", 2, ambiguous=True)
    asks = _edited.asks_of(sources, pairs)
    chosen = [ask.answers[-1] for ask in asks]
    edits = [ask.source.target(name) for ask, name in zip(asks, chosen, strict=True)]
    found, names = _edited.score(edgegen.load(editor_folder).vae, Blocks(), asks, edits, "judging")
    assert names == chosen
    assert (found.chance > 2 / 30).all()


def test_baselines() -> None:
    source = np.random.default_rng(0).integers(60, 200, (48, 48, 3)).astype(np.uint8)
    target = np.clip(source.astype(int) + np.array([40, -30, 5]), 0, 255).astype(np.uint8)
    found = _edited.baselines(source, target)
    assert np.array_equal(found["matched_colour"], target)  # a shift is all there was
    assert np.ptp(found["mean_colour"].reshape(-1, 3), 0).max() == 0
    assert np.abs(found["mean_colour"][0, 0] - target.mean((0, 1))).max() <= 0.5
    assert found["blur"].std() < 0.5 * source.std()


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        (["model=emoji"], "is no instruction editor"),
        (["split=train"], "split=train: allowed are dev, test"),
        (["crops=nowhere"], "nowhere: no crops there"),
        (["image_guidance=-1"], "image_guidance=-1: must be a number, 0 or more"),
        (["renderer=nowhere"], "renderer=nowhere: nowhere: no AutoencoderKL there"),
        (["n=0"], "n=0: must be a whole number, 1 or more"),
        (["domain.groups=[moon]"], "unknown group 'moon'"),
    ],
)
def test_mistakes_take_one_line(
    typed: list[str], message: str, editor_folder: Path, tiny_pipeline_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if typed == ["model=emoji"]:
        typed = [f"model={tiny_pipeline_folder}"]
    with pytest.raises(SystemExit) as stopped:
        main([f"model={editor_folder}", "output_dir=run", *typed])
    assert stopped.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert not Path("run").exists()
