"""Special ids of a model are those of its tokenizer before training begins, or both numbers are in the error."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from utils.adapters.facts import model_facts
from utils.adapters.special_ids import set_special_ids
from utils.data import prepare_examples
from utils.errors import ModelError
from utils.training import TaskSpec, Trainer, TrainingConfig

VOCAB = 60
TOKENIZER = SimpleNamespace(pad_token_id=3, bos_token_id=4, eos_token_id=5)
ROWS = [{"input_ids": list(range(6, 8 + n % 5)), "labels": n % 2} for n in range(12)]


def classifier(kind: str, **ids: Any) -> nn.Module:
    """A small classifier of a family, with the library's own special ids unless others are given."""
    import transformers

    sizes: dict[str, dict[str, Any]] = {
        "GPT2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 34},
        "Llama": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "num_key_value_heads": 2},
        "Bert": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2},
        "Roberta": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
                    "max_position_embeddings": 34},
        "Bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                 "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
    }  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(vocab_size=VOCAB, num_labels=2, **{**sizes[kind], **ids})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return getattr(transformers, f"{kind}ForSequenceClassification")(config)


def generator(kind: str) -> nn.Module:
    import transformers

    if kind == "T5":
        config = transformers.T5Config(
            vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0
        )
        return transformers.T5ForConditionalGeneration(config)
    config = transformers.BartConfig(
        vocab_size=VOCAB, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
    )  # fmt: skip
    return transformers.BartForConditionalGeneration(config)


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
        return self.model(input_ids, attention_mask=attention_mask).logits


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapped], ids=["plain", "wrapped"])
@pytest.mark.parametrize("ids", [{"pad_token_id": 59}, {"pad_token_id": None}], ids=["other", "unset"])
@pytest.mark.parametrize("kind", ["GPT2", "Llama", "Bert", "Roberta"])
def test_a_classifier_gives_the_same_loss_alone_and_in_a_padded_batch(kind, ids, wrap, tmp_path):
    losses = []
    for batch_size in (1, 12):
        model = wrap(classifier(kind, **(ids if kind != "Roberta" else {})))
        config = TrainingConfig(
            epochs=1, batch_size=batch_size, learning_rate=1e-9, precision="32", output_dir=str(tmp_path / str(batch_size))
        )
        spec = TaskSpec("text_classification", num_classes=2)
        results = Trainer(model, training_config=config, task_spec=spec, tokenizer=TOKENIZER).train(ROWS, ROWS)
        losses.append(results.final_metrics["val/loss"])
        assert any("pad_token_id 3" in notice for notice in results.notices)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


@pytest.mark.parametrize(("kind", "start"), [("T5", 3), ("Bart", 5)])
def test_the_start_of_the_decoder_moves_with_the_id_that_it_was(kind, start):
    model = generator(kind)
    notice = set_special_ids(model, TOKENIZER)
    for config in (model.config, model.generation_config):
        assert (config.pad_token_id, config.eos_token_id, config.decoder_start_token_id) == (3, 5, start)
    assert notice is not None
    assert "eos_token_id 5" in notice
    assert set_special_ids(model, TOKENIZER) is None


def test_a_decoder_without_a_start_begins_with_the_beginning_of_text():
    model = generator("T5")
    model.config.decoder_start_token_id = model.generation_config.decoder_start_token_id = None
    set_special_ids(model, TOKENIZER)
    assert model.config.decoder_start_token_id == model.generation_config.decoder_start_token_id == 4


def test_one_of_several_ends_is_no_difference():
    model = classifier("Llama", eos_token_id=[9, 5], pad_token_id=3, bos_token_id=4)
    assert set_special_ids(model, TOKENIZER) is None
    assert model.config.eos_token_id == [9, 5]


@pytest.mark.parametrize("role", ["pad_token", "bos_token", "eos_token"])
def test_an_id_outside_of_the_vocabulary_is_refused_with_both_numbers_and_changes_nothing(role):
    model = classifier("GPT2", pad_token_id=1, bos_token_id=1, eos_token_id=1)
    tokenizer = SimpleNamespace(**{**vars(TOKENIZER), f"{role}_id": VOCAB + 7})
    with pytest.raises(ModelError, match=rf"{role} has the id {VOCAB + 7}.*{VOCAB} embeddings.*{role}_id is 1"):
        set_special_ids(model, tokenizer)
    config = model.config
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1, 1, 1)


def test_prepared_examples_set_the_ids_and_report_it():
    model = classifier("GPT2", pad_token_id=None)
    records = [("a b" if n % 2 else "b a", n % 2) for n in range(12)]
    data = prepare_examples(records, "text_classification", model=model, vocab_size=VOCAB, val_split=0)
    assert model.config.pad_token_id == data.tokenizer.pad_token_id
    assert any("pad_token_id 0 (not set before)" in note for note in data.report.notes)


# ---- positions ----


@pytest.mark.parametrize(
    ("kind", "changes", "longest"),
    [
        ("Roberta", {}, 32), ("XLMRoberta", {}, 32), ("Camembert", {}, 32), ("Longformer", {"attention_window": 4}, 32),
        ("MPNet", {}, 32), ("Roberta", {"pad_token_id": 0}, 33), ("Bert", {}, 34),
    ],
)  # fmt: skip
def test_positions_that_begin_after_the_padding_id_shorten_the_longest_input(kind, changes, longest):
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = getattr(transformers, f"{kind}Config")(vocab_size=VOCAB, max_position_embeddings=34, **sizes, **changes)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    assert model_facts(model).max_length == longest
    assert model(torch.full((1, longest), 7)).last_hidden_state.shape[1] == longest
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, longest + 1), 7))


@pytest.mark.parametrize("kind", ["OPT", "Bart"])
def test_positions_with_extra_rows_lose_nothing(kind):
    import transformers

    sizes = {
        "OPT": {"hidden_size": 16, "ffn_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "word_embed_proj_dim": 16},
        "Bart": {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
                 "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16},
    }[kind]  # fmt: skip
    config = getattr(transformers, f"{kind}Config")(vocab_size=VOCAB, max_position_embeddings=34, **sizes)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    assert model_facts(model).max_length == 34
    assert model(torch.full((1, 34), 7)).last_hidden_state.shape[1] == 34
