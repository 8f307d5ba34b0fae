"""A tiny Llama: its training, and quantization-aware training of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
from torch import Tensor
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from edgegen.data.documentation import DocumentationData, text_tokenizer
from edgegen.data.modules import Views
from edgegen.data.stream import Stream
from edgegen.quantization import is_quantized, load_quantized
from edgegen.quantization.modules import Quantized
from edgegen.training.language import LanguageModule, LanguageTask, small_llama
from edgegen.training.quantization import QuantizationModule

SIZES = {"vocabulary": 300, "width": 16, "depth": 2, "heads": 2, "hidden": 24, "positions": 16}
SPEC: dict[str, Any] = {
    "parts": ["transformer"],
    "weights": {"bits": 3, "range": "mse"},
    "activations": {"bits": None},
    "include": ["transformer.model.layers.*"],
}
OPTIMIZER = {"lr": 0.03, "lr_scales": 3e-3, "schedule": "constant", "warmup": 0, "steps": 9}


class Counting(DocumentationData):
    """Windows that count up by ones from anywhere: easy to learn."""

    def setup(self, stage: str | None = None) -> None:
        self.tokenizer = text_tokenizer(["some text"], 300)
        self.train_set = Stream([0], lambda _, rng: self._window(int(rng.integers(280))), self.seed)
        self.validation_sets["text"] = Views([3, 80, 150, 201, 77], self._window)
        self.about = {"sha256": "none"}

    def _window(self, start: int) -> Tensor:
        return torch.arange(start, start + 17)


def trainer(folder: Path, steps: int, **options: Any) -> lightning.Trainer:
    return lightning.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        max_steps=steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        **{"enable_checkpointing": False, **options},
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned some counting."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    module = LanguageModule(
        small_llama(**SIZES), {"lr": 0.01, "schedule": "constant", "warmup": 0, "steps": 9}
    )
    data = Counting(8)
    trainer(folder, 60).fit(module, datamodule=data)
    module.export(folder / "model", data)
    return folder / "model"


def module(weights: Path, way: str = "lrqat", **options: Any) -> QuantizationModule:
    torch.manual_seed(0)
    settings = {"way": way, "rank": 4, **options}
    return QuantizationModule(LanguageTask(str(weights)), SPEC, settings, OPTIMIZER)


def validated(trained: Any, folder: Path) -> float:
    (found,) = trainer(folder, 1).validate(trained, datamodule=Counting(2), verbose=False)
    return found["val/perplexity"]


def by_hand(model: Any) -> float:
    data = Counting(2)
    data.setup()
    windows = torch.stack([data.validation_sets["text"][number] for number in range(5)])
    with torch.no_grad():
        chances = model(windows[:, :-1]).logits.double().softmax(-1)
    own = chances.gather(2, windows[:, 1:, None]).log()
    return math.exp(-float(own.mean()))


def test_perplexity_and_the_saved_model(base: Path, tmp_path: Path) -> None:
    """By hand over all tokens alike, though the last batch is smaller."""
    model = LlamaForCausalLM.from_pretrained(base).eval()
    trained = LanguageModule(model, {})
    assert validated(trained, tmp_path) == pytest.approx(by_hand(model), rel=1e-4)
    assert by_hand(model) < 0.5 * by_hand(small_llama(**SIZES))
    assert len(PreTrainedTokenizerFast.from_pretrained(base)) <= 300
    assert json.loads((base / "text.json").read_text()) == {"sha256": "none"}


def test_three_million_parameters() -> None:
    with torch.device("meta"):
        model = small_llama()
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3e6, rel=0.05)


@pytest.mark.parametrize("way", ["lsq", "lrqat", "peqa"])
def test_training_repairs_what_rounding_broke(way: str, base: Path, tmp_path: Path) -> None:
    trained = module(base, way, base="float32")
    twins = {name for name, each in trained.student.named_modules() if isinstance(each, Quantized)}
    assert len(twins) == 2 * 7  # neither the head nor the embedding
    nearest = validated(trained, tmp_path)
    data = Counting(8)
    trainer(tmp_path, 40).fit(trained, datamodule=data)
    after = validated(trained, tmp_path)
    assert after < nearest
    trained.export(tmp_path / "model", data)
    assert is_quantized(tmp_path / "model")
    loaded = load_quantized(LlamaForCausalLM, tmp_path / "model")
    loaded.set_attn_implementation("eager")
    assert by_hand(loaded) == pytest.approx(after, rel=1e-4)
    windows = torch.stack([data.train_set[number] for number in range(4)])
    with torch.no_grad():
        expected = trained.student(windows).logits
        assert torch.equal(loaded(windows).logits, expected)
    # Exporting leaves the training as it is.
    assert torch.equal(trained.student(windows).logits, expected)


def test_the_memory_is_told(base: Path, tmp_path: Path) -> None:
    found = {}
    for way in ("lsq", "lrqat", "peqa"):
        trained = module(base, way)
        fitting = trainer(tmp_path, 2)
        fitting.fit(trained, datamodule=Counting(2))
        found[way] = {k: int(v) for k, v in fitting.callback_metrics.items() if "_" in k}
    full = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(base).parameters())
    told = found["lsq"]
    scales = told["train/params_trained"] - full
    assert scales == 2 * (4 * 16 + 2 * 24 + 16)  # a scale for each output channel
    assert told["train/bytes_gradients"] == 4 * (full + scales)
    counters = told["train/bytes_optimizer"] - 8 * (full + scales)  # Adam's number of steps
    assert 0 < counters <= 4 * 200
    for name in ("lsq", "lrqat", "peqa"):
        parts = [found[name][f"train/bytes_{k}"] for k in ("weights", "gradients", "optimizer")]
        assert found[name]["train/bytes_all"] == sum(parts)
        assert found[name]["train/bytes_peak"] > 10**7
    assert found["peqa"]["train/params_trained"] == scales
    ranks = 4 * sum(4 * 2 * 16 + 2 * (16 + 24) + 24 + 16 for _ in range(2))
    assert found["lrqat"]["train/params_trained"] == scales + ranks


def test_no_training_is_rounding_to_nearest(base: Path, tmp_path: Path) -> None:
    trained = module(base, "peqa", base="float32")
    trainer(tmp_path, 0).fit(trained, datamodule=Counting(2))
    trained.export(tmp_path / "model", _ready())
    loaded = load_quantized(LlamaForCausalLM, tmp_path / "model")
    plain = LlamaForCausalLM.from_pretrained(base)
    layer, own = plain.model.layers[0].mlp.up_proj, loaded.model.layers[0].mlp.up_proj
    ratio = layer.weight / own.stored.scale
    inside = (ratio > -4.5) & (ratio < 3.5)
    assert inside.float().mean() > 0.9
    error = (ratio - own.stored.integers)[inside]
    assert error.abs().max() <= 0.5 + 1e-5


def _ready() -> Counting:
    data = Counting(2)
    data.setup()
    return data


def test_mistakes(base: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no model there"):
        LanguageTask(str(tmp_path))
    with pytest.raises(ValueError, match=r"spec\.parts=\['unet'\]: must be \[transformer\] here"):
        QuantizationModule(LanguageTask(str(base)), {}, {}, OPTIMIZER)
    spec = {**SPEC, "activations": {"bits": 8}}
    with pytest.raises(ValueError, match=r"give activations\.bits=null"):
        QuantizationModule(LanguageTask(str(base)), spec, {}, OPTIMIZER)
    untold = QuantizationModule(LanguageTask(), SPEC, {}, OPTIMIZER)
    with pytest.raises(ValueError, match="weights=null: name the folder"):
        trainer(tmp_path, 1).fit(untold, datamodule=Counting(2))
