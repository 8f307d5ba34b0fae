from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import CLIPModel, CLIPTokenizer

from edgegen.assets import verify
from edgegen.training.contrastive import ContrastiveModule


class Trainer:
    class datamodule:
        validation_sets = ("cells", "concepts")


@pytest.fixture
def module(clip_folder: Path) -> ContrastiveModule:
    made = ContrastiveModule(CLIPModel.from_pretrained(clip_folder).eval(), {})
    made._trainer = Trainer()
    made.logged = {}
    made.log = made.logged.__setitem__
    return made


def batch(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pictures = torch.randn(count, 3, 64, 64, generator=generator)
    return pictures, torch.randint(1, 500, (count, 12), generator=generator), torch.arange(count)


@torch.no_grad()
def test_retrieval_is_within_each_split_over_all_batches(module: ContrastiveModule) -> None:
    module.on_validation_epoch_start()
    batches = {0: [batch(8, 1), batch(5, 2)], 1: [batch(6, 3)]}
    for number, parts in batches.items():
        for part in parts:
            module.validation_step(part, 0, number)
    module.on_validation_epoch_end()
    for number, name in enumerate(("cells", "concepts")):
        pictures, tokens = (torch.cat(x) for x in list(zip(*batches[number], strict=True))[:2])
        output = module.model(input_ids=tokens, pixel_values=pictures)
        order = output.logits_per_text.argsort(1, descending=True)
        for k in (1, 5):
            hits = [own in row[:k].tolist() for own, row in enumerate(order)]
            wanted = sum(hits) / len(hits)
            assert module.logged[f"val/{name}_top{k}"] == pytest.approx(wanted)


def test_training_loss_is_that_of_the_model(module: ContrastiveModule) -> None:
    pictures, tokens, groups = batch(6, 4)
    loss = module.training_step((pictures, tokens, groups), 0)
    wanted = module.model(input_ids=tokens, pixel_values=pictures, return_loss=True).loss
    torch.testing.assert_close(loss, wanted)


def test_temperature_is_bounded(module: ContrastiveModule) -> None:
    with torch.no_grad():
        module.model.logit_scale.fill_(9)
    pictures, tokens, groups = batch(6, 4)
    loss = module.training_step((pictures, tokens, groups), 0)
    with torch.no_grad():
        module.model.logit_scale.fill_(torch.tensor(100.0).log())
    wanted = module.model(input_ids=tokens, pixel_values=pictures, return_loss=True).loss
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_exported_model_reads_the_same_text(module: ContrastiveModule, tmp_path: Path) -> None:
    # The pooled token is the one of highest number, which must be the end token.
    folder = Path(module.model.config._name_or_path)
    data = type("Data", (), {"tokenizer": CLIPTokenizer.from_pretrained(folder)})()
    module.export(tmp_path, data)
    model = CLIPModel.from_pretrained(tmp_path).eval()
    tokenizer = CLIPTokenizer.from_pretrained(tmp_path)
    short = tokenizer(["thing 3"], return_tensors="pt").input_ids
    padded = tokenizer(["thing 3"], padding="max_length", return_tensors="pt").input_ids
    assert padded.shape[1] > short.shape[1]
    pooled = [model.get_text_features(input_ids=ids) for ids in (short, padded)]
    pooled = [getattr(x, "pooler_output", x) for x in pooled]
    torch.testing.assert_close(pooled[0], pooled[1])
    hidden = model.text_model(padded).last_hidden_state[:, short.shape[1] - 1]
    torch.testing.assert_close(model.text_projection(hidden), pooled[1])
    verify(tmp_path)
    for key, value in model.state_dict().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, module.model.state_dict()[key].half().float()), key
