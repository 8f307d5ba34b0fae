"""A small Llama: its training in full precision, and what quantization learns it on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.text import Perplexity
from transformers import LlamaConfig, LlamaForCausalLM

from ..pipelines.save import replaced_folder
from ..quantization import Call, Spec
from .optimization import optimizer_and_schedule


def small_llama(
    vocabulary: int = 1024,
    width: int = 192,
    depth: int = 6,
    heads: int = 6,
    hidden: int = 512,
    positions: int = 128,
) -> LlamaForCausalLM:
    """A Llama with random weights, by default of 3 million parameters."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=hidden,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=0,
        use_cache=False,
        # On CPUs, the fused kernel's backward pass is slower at these sizes.
        attn_implementation="eager",
    )
    return LlamaForCausalLM(config)


def predictions(model: nn.Module, windows: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, T, V) in float32 and the tokens (B, T) they are of, from windows (B, T + 1)."""
    logits = model(input_ids=windows[:, :-1]).logits
    return logits.float(), windows[:, 1:]


def language_loss(logits: Tensor, tokens: Tensor) -> Tensor:
    """Mean of −ln p(token), scalar."""
    return F.cross_entropy(logits.flatten(0, 1), tokens.flatten())


class LanguageModule(lightning.LightningModule):
    """Predicts the next token. Batches are windows of `data.documentation.DocumentationData`.

    Logged: `train/loss`; `val/perplexity` of the held-out text, by token.

    Args:
        model: what is trained.
        optimizer: keyword arguments of `optimization.optimizer_and_schedule`.
    """

    def __init__(self, model: LlamaForCausalLM, optimizer: dict[str, Any]) -> None:
        super().__init__()
        self.model: Any = model
        self.optimizer_options = optimizer
        self.perplexity = Perplexity()

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss = language_loss(*predictions(self.model, batch))
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        with torch.autocast(self.device.type, enabled=False):
            self.perplexity.update(*predictions(self.model, batch))
        self.log("val/perplexity", self.perplexity, on_epoch=True, batch_size=len(batch))

    def export(self, folder: Path, data: Any) -> None:
        """Save model and tokenizer as transformers has them, and what the text was."""
        save_language_model(self.model.float().eval(), folder, data)

    def configure_optimizers(self) -> Any:
        return optimizer_and_schedule(self.model.parameters(), **self.optimizer_options)


class LanguageTask:
    """For `quantization.QuantizationModule`: next tokens, on a model of `LanguageModule`'s.

    Args:
        weights: folder of the model in full precision.
        random_weights: a random one of 3 million parameters instead, to try out memory and speed.

    Raises:
        FileNotFoundError: no model there.
    """

    part = "transformer"

    def __init__(self, weights: str | None = None, random_weights: bool = False) -> None:
        self.metrics = {"perplexity": Perplexity()}
        self._ready = weights is not None or random_weights
        self._weights = weights
        if weights is not None and not (Path(weights).expanduser() / "config.json").is_file():
            raise FileNotFoundError(f"weights={weights}: no model there (no config.json)")

    def network(self) -> nn.Module:
        if self._weights is None:
            return small_llama()
        folder = Path(self._weights).expanduser()
        return LlamaForCausalLM.from_pretrained(
            folder, local_files_only=True, use_safetensors=True, attn_implementation="eager"
        ).float()

    def target(self, student: nn.Module) -> Any:
        return SimpleNamespace(transformer=student)

    def calls(self, spec: Spec) -> Iterator[Call]:
        """Raises where the first one is asked for."""
        raise ValueError(
            "activations: a language model's have no calibration here; give activations.bits=null "
            "or activations.dynamic=true"
        )
        yield

    def start(self, module: lightning.LightningModule) -> None:
        if not self._ready:
            raise ValueError(
                "weights=null: name the folder of a trained model, or give random_weights=true to "
                "try it out"
            )

    def losses(
        self, student: nn.Module, batch: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return {"loss": language_loss(*predictions(student, batch))}

    def predictions(self, student: nn.Module, batch: Tensor) -> tuple[Tensor, Tensor]:
        return predictions(student, batch)

    def save(self, student: nn.Module, folder: Path, data: Any) -> None:
        save_language_model(student, folder, data)


def save_language_model(model: Any, folder: Path, data: Any) -> None:
    """Model, tokenizer and `text.json`: the packages of the text, their licences, its hash."""
    with replaced_folder(folder) as new:
        model.save_pretrained(new)
        data.tokenizer.save_pretrained(new)
        text = json.dumps(data.about, indent=2) + "\n"
        (new / "text.json").write_text(text, encoding="utf-8")
