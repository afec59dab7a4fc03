"""The task adapters: the losses that the models themselves have, predictions, attention maps, and what is refused."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.kit.toys import LENGTH, VOCAB_SIZE, plain_lm, tiny_gpt, token_rows
from utils.adapters import (
    DecoderOnlyLMAdapter,
    EncoderDecoderSeq2SeqAdapter,
    EncoderOnlyClassificationAdapter,
    VisionClassificationAdapter,
)
from utils.errors import ConfigError, DataError, ModelError
from utils.training.task_spec import TaskSpec


def made(make):
    """A model with fixed weights, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make().eval()


def bert(kind="BertForSequenceClassification", **settings):
    import transformers

    config = transformers.BertConfig(
        vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=LENGTH, num_labels=3, **settings,
    )  # fmt: skip
    return made(lambda: getattr(transformers, kind)(config))


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    config = T5Config(
        vocab_size=VOCAB_SIZE, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0, pad_token_id=0,
        eos_token_id=1,
    )  # fmt: skip
    return made(lambda: T5ForConditionalGeneration(config))


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=8, patch_size=4,
        num_channels=1, num_labels=4,
    )  # fmt: skip
    return made(lambda: ViTForImageClassification(config))


def images(count=3):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


TEXTS = {"input_ids": token_rows(3), "attention_mask": torch.ones(3, LENGTH, dtype=torch.int64)}
# Adapter, model, batch, and the shapes of logits and predictions.
CASES = {
    "gpt": (DecoderOnlyLMAdapter, lambda: made(lambda: tiny_gpt(dropout=0.0)), {**TEXTS, "labels": token_rows(3)},
            (3, LENGTH, VOCAB_SIZE), (3, LENGTH)),
    "bert": (EncoderOnlyClassificationAdapter, bert, {**TEXTS, "labels": torch.tensor([0, 2, 1])}, (3, 3), (3,)),
    "bert for tokens": (
        lambda model: EncoderOnlyClassificationAdapter(model, TaskSpec(task_type="token_classification")),
        lambda: bert("BertForTokenClassification"), {**TEXTS, "labels": token_rows(3) % 3}, (3, LENGTH, 3), (3, LENGTH)),
    "t5": (EncoderDecoderSeq2SeqAdapter, t5, {**TEXTS, "labels": token_rows(3, length=5)}, (3, 5, VOCAB_SIZE), None),
    "vit": (VisionClassificationAdapter, vit, {"pixel_values": images(), "labels": torch.tensor([0, 3, 1])}, (3, 4), (3,)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_loss_is_the_models_own_and_can_be_learned_from(case, rng_untouched):
    make_adapter, make_model, batch, _, _ = CASES[case]
    model = make_model()
    loss = make_adapter(model).forward_for_loss(batch)
    torch.testing.assert_close(loss, model(**batch).loss)
    loss.backward()
    assert any(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@pytest.mark.parametrize("case", CASES)
def test_logits_and_predictions_have_the_tasks_shapes(case):
    make_adapter, make_model, batch, logits_shape, prediction_shape = CASES[case]
    model = make_model()
    adapter = make_adapter(model)
    logits = adapter.get_logits(batch)
    assert logits.shape == logits_shape
    torch.testing.assert_close(logits, model(**batch).logits)
    if prediction_shape is not None:
        found = adapter.predict(batch)
        assert found.shape == prediction_shape
        assert torch.equal(found, logits.argmax(-1))


@pytest.mark.parametrize("case", CASES)
def test_labels_are_not_needed_to_predict(case):
    make_adapter, make_model, batch, _, _ = CASES[case]
    adapter = make_adapter(make_model())
    without = {name: tensor for name, tensor in batch.items() if name != "labels"}
    assert torch.equal(adapter.predict(without), adapter.predict(batch))


@pytest.mark.parametrize("case", CASES)
def test_a_prediction_is_made_without_dropout_and_leaves_the_mode(case):
    make_adapter, make_model, batch, _, _ = CASES[case]
    model = make_model()
    expected = make_adapter(model).predict(batch)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9
    assert torch.equal(make_adapter(model).predict(batch), expected)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("case", CASES)
def test_attention_maps_are_shares_and_the_models_attention_is_put_back(case):
    make_adapter, make_model, batch, _, _ = CASES[case]
    model = make_model()
    before = model.config._attn_implementation
    maps = make_adapter(model).get_attention_maps(batch)
    assert set(maps) == (
        {"encoder_attentions", "decoder_attentions", "cross_attentions"} if case == "t5" else {"attentions"}
    )
    for layers in maps.values():
        assert len(layers) == 2
        for layer in layers:
            assert layer.shape[:2] == (3, 2)
            torch.testing.assert_close(layer.sum(-1), torch.ones(layer.shape[:-1]))
    assert model.config._attn_implementation == before
    torch.testing.assert_close(make_adapter(model).get_logits(batch), model(**batch).logits)


def test_a_causal_model_does_not_look_ahead():
    adapter = DecoderOnlyLMAdapter(made(lambda: tiny_gpt(dropout=0.0)))
    for layer in adapter.get_attention_maps(token_rows(2))["attentions"]:
        assert layer.triu(1).abs().max() == 0


@pytest.mark.parametrize("make", [plain_lm, lambda: nn.Sequential(nn.Embedding(VOCAB_SIZE, VOCAB_SIZE))])
def test_a_model_without_attention_maps_says_so(make):
    with pytest.raises(ModelError, match="gives no attention maps: its forward has no output_attentions"):
        DecoderOnlyLMAdapter(make()).get_attention_maps(token_rows(2))


def test_a_model_that_takes_the_switch_and_returns_nothing_says_so():
    class Silent(nn.Module):
        def forward(self, input_ids, output_attentions=False):
            return torch.zeros(*input_ids.shape, VOCAB_SIZE)

    with pytest.raises(ModelError, match="it returned none"):
        DecoderOnlyLMAdapter(Silent()).get_attention_maps(token_rows(2))


# ---- each task's own ----


def test_a_language_models_padding_is_not_scored():
    model, ids = made(lambda: tiny_gpt(dropout=0.0)), token_rows(2)
    adapter = DecoderOnlyLMAdapter(model, tokenizer=SimpleNamespace(pad_token_id=31, eos_token_id=0))
    padded = ids.clone()
    padded[:, -4:] = 31
    torch.testing.assert_close(adapter.forward_for_loss(padded), adapter.forward_for_loss(ids[:, :-4]))
    mask = torch.ones_like(ids)
    mask[:, -4:] = 0
    masked = adapter.forward_for_loss({"input_ids": ids, "attention_mask": mask, "labels": ids})
    torch.testing.assert_close(masked, adapter.forward_for_loss(ids[:, :-4]))


def test_several_classes_a_text_are_a_yes_or_no_each():
    adapter = EncoderOnlyClassificationAdapter(bert(), TaskSpec.classification(num_classes=3, multi_label=True))
    batch = {**TEXTS, "labels": torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, 1.0]])}
    found = adapter.predict(batch)
    assert found.dtype == torch.bool
    assert torch.equal(found, adapter.get_logits(batch) > 0)
    expected = nn.functional.binary_cross_entropy_with_logits(adapter.get_logits(batch), batch["labels"])
    torch.testing.assert_close(adapter.forward_for_loss(batch), expected)


def test_what_is_written_is_what_the_model_generates():
    model = t5()
    adapter = EncoderDecoderSeq2SeqAdapter(model)
    expected = model.generate(
        TEXTS["input_ids"], max_new_tokens=7, min_new_tokens=7, do_sample=False, eos_token_id=None
    )
    model.config.eos_token_id = None
    assert torch.equal(adapter.predict(TEXTS, max_length=7), expected[:, 1:])


def test_a_text_that_has_ended_stays_so():
    model = t5()
    first = EncoderDecoderSeq2SeqAdapter(model).predict(TEXTS, max_length=1)[0, 0].item()
    model.config.eos_token_id = first
    written = EncoderDecoderSeq2SeqAdapter(model).predict({"input_ids": TEXTS["input_ids"][:1]}, max_length=9)
    assert written.tolist() == [[first]]


def test_images_may_come_with_their_labels_as_a_pair():
    adapter = VisionClassificationAdapter(vit())
    labels = torch.tensor([0, 3, 1])
    together = adapter.forward_for_loss({"pixel_values": images(), "labels": labels})
    assert torch.equal(adapter.forward_for_loss((images(), labels)), together)
    assert adapter.predict(images()).shape == (3,)


# ---- what is refused ----


def test_another_task_is_refused_with_those_that_fit():
    with pytest.raises(
        ConfigError, match="is for text_classification and token_classification; got task_type='seq2seq'"
    ):
        EncoderOnlyClassificationAdapter(bert(), TaskSpec.seq2seq())


def test_what_is_no_model_is_refused():
    with pytest.raises(ModelError, match="DecoderOnlyLMAdapter takes an nn.Module as model; got a str"):
        DecoderOnlyLMAdapter("gpt2")


def test_a_loss_needs_labels():
    with pytest.raises(DataError, match="needs labels"):
        EncoderOnlyClassificationAdapter(bert()).forward_for_loss(TEXTS)


def test_a_wrong_number_of_classes_is_an_error():
    with pytest.raises(ModelError, match="scores 3 classes, but the task has num_classes=5"):
        EncoderOnlyClassificationAdapter(bert(), TaskSpec.classification(num_classes=5)).forward_for_loss(
            {**TEXTS, "labels": torch.tensor([0, 2, 1])}
        )
