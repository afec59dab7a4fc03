"""The playground: generated text is streamed, stoppable and reproducible; classes, numbers, masks; runs, exports, what has none."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2ForTokenClassification,
    GPT2LMHeadModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from tests.kit.toys import plain_lm, train_set
from utils.adapters import generate
from utils.errors import ConfigError
from utils.tokenization.character import build_character_tokenizer
from utils.training import TaskSpec, Trainer, TrainingConfig
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.engine.checkpointing.weights import weights_to_use
from utils.training.playground import Playground
from utils.training.playground_sources import open_playground
from utils.training.seen_tokens import never_seen_ids

CONTEXT = 16


@pytest.fixture(scope="module")
def tokenizer():
    return build_character_tokenizer(["abcdefgh ijkl\n"])


def sizes(tokenizer):
    return {"vocab_size": len(tokenizer), "n_positions": CONTEXT, "n_embd": 16, "n_layer": 1, "n_head": 2}


@pytest.fixture(scope="module")
def writer(tokenizer):
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(**sizes(tokenizer)))


@pytest.fixture(scope="module")
def classifier(tokenizer):
    torch.manual_seed(0)
    labels = {0: "sad", 1: "glad", 2: "mad"}
    return GPT2ForSequenceClassification(GPT2Config(**sizes(tokenizer), id2label=labels, pad_token_id=0))


def test_streamed_tokens_are_those_of_the_call_without_streaming(writer):
    prompts = torch.tensor([[1, 2], [3, 4]])
    streamed = []
    ids = generate(writer, prompts, 8, seed=3, on_token=lambda next_B: streamed.append(next_B.clone()))
    assert torch.equal(torch.stack(streamed, dim=1), ids[:, 2:])
    assert torch.equal(ids, generate(writer, prompts, 8, seed=3))


def test_an_exception_of_the_callback_ends_the_generation_and_restores_mode_and_random_state(writer):
    class EnoughError(Exception):
        pass

    seen = []

    def stop(next_B):
        seen.append(next_B)
        if len(seen) == 2:
            raise EnoughError

    writer.train()
    state = torch.get_rng_state()
    with pytest.raises(EnoughError):
        generate(writer, torch.tensor([[1]]), 8, on_token=stop)
    assert len(seen) == 2
    assert writer.training
    assert torch.equal(torch.get_rng_state(), state)


def test_a_prompt_is_continued_and_the_text_grows(writer, tokenizer):
    told = []
    play = Playground(writer, tokenizer)
    written = play.generate("abc", max_new_tokens=6, seed=1, on_text=told.append)
    assert play.kind == "text"
    assert written.text
    assert all(written.text.startswith(text) for text in told)
    assert written == play.generate("abc", max_new_tokens=6, seed=1)


@pytest.mark.parametrize("kind", ["text", "classes"])
def test_what_does_not_fit_is_cut_and_counted(kind, writer, classifier, tokenizer):
    long = "abcd" * CONTEXT
    extra = len(tokenizer.encode(long)) - CONTEXT
    if kind == "text":
        assert Playground(writer, tokenizer).generate(long, max_new_tokens=1, seed=0).cut == extra
    else:
        assert Playground(classifier, tokenizer, "classification").classify(long)[1] == extra


def test_class_probabilities_are_sorted_named_and_sum_to_one(classifier, tokenizer):
    classifier.train()
    found, cut = Playground(classifier, tokenizer, "classification").classify("abc")
    assert classifier.training
    assert cut == 0
    assert {name for name, _ in found} == {"sad", "glad", "mad"}
    values = [value for _, value in found]
    assert values == sorted(values, reverse=True)
    assert sum(values) == pytest.approx(1)


@pytest.mark.parametrize("prompt", ["", "  "])
@pytest.mark.parametrize("kind", ["text", "classes"])
def test_an_empty_prompt_is_refused_in_words(kind, prompt, writer, classifier, tokenizer):
    ask = Playground(writer, tokenizer).generate
    if kind == "classes":
        ask = Playground(classifier, tokenizer, "classification").classify
    with pytest.raises(ConfigError, match="empty"):
        ask(prompt)


@pytest.mark.parametrize(
    ("has_tokenizer", "task", "named"), [(False, None, "tokenizer"), (True, "span_extraction", "span_extraction")]
)
def test_a_model_without_a_playground_is_refused_with_the_reason(has_tokenizer, task, named, writer, tokenizer):
    with pytest.raises(ConfigError, match=named):
        Playground(writer, tokenizer if has_tokenizer else None, task)


@pytest.fixture(scope="module")
def fast_tokenizer():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: place for place, word in enumerate(["<end>", "<user>", "<bot>", "a", "b", "c", "?"])}
    made = Tokenizer(models.WordLevel(words, unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="?", eos_token="<end>", pad_token="<end>")


@pytest.mark.parametrize("made", [GPT2LMHeadModel, GPT2ForSequenceClassification])
def test_an_exported_folder_opens_as_what_it_is(made, fast_tokenizer, tmp_path):
    made(GPT2Config(**sizes(fast_tokenizer), pad_token_id=0)).save_pretrained(tmp_path)
    fast_tokenizer.save_pretrained(tmp_path)
    opened = open_playground(tmp_path)
    assert opened.kind == ("text" if made is GPT2LMHeadModel else "classes")
    assert opened.generate("a b", max_new_tokens=2) if opened.kind == "text" else opened.classify("a b")


@pytest.mark.parametrize(("settings", "total"), [({}, 1.0), ({"problem_type": "multi_label_classification"}, None)])
def test_several_classes_at_once_have_a_probability_each(settings, total, fast_tokenizer, tmp_path):
    model = GPT2ForSequenceClassification(GPT2Config(**sizes(fast_tokenizer), pad_token_id=0, num_labels=3, **settings))
    model.save_pretrained(tmp_path)
    fast_tokenizer.save_pretrained(tmp_path)
    found = dict(open_playground(tmp_path).classify("a b")[0])
    logits = model.eval()(torch.tensor([fast_tokenizer.encode("a b")])).logits[0]
    expected = logits.softmax(-1) if total else logits.sigmoid()
    assert [found[f"LABEL_{place}"] for place in range(3)] == pytest.approx(expected.tolist(), abs=1e-6)


def bert(made, vocab_size):
    torch.manual_seed(0)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    return made(BertConfig(vocab_size=vocab_size, max_position_embeddings=CONTEXT, **small))


def test_an_export_of_another_kind_is_refused_by_name(fast_tokenizer, tmp_path):
    bert(BertForQuestionAnswering, len(fast_tokenizer)).save_pretrained(tmp_path)
    fast_tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="BertForQuestionAnswering; the playground takes language models, encoder-decoders"):
        open_playground(tmp_path)


@pytest.fixture(scope="module")
def translator(tokenizer):
    torch.manual_seed(0)
    size = {"d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
    ids = {"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": tokenizer.eos_token_id}
    return T5ForConditionalGeneration(T5Config(vocab_size=len(tokenizer), **size, **ids))


@pytest.mark.parametrize("exported", [False, True])
def test_an_encoder_decoder_writes_a_text_for_another(exported, translator, tokenizer, tmp_path):
    play = Playground(translator, tokenizer, "seq2seq")
    if exported:
        translator.save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        play = open_playground(tmp_path)
    told = []
    written = play.rewrite("abc", max_new_tokens=6, on_text=told.append)
    ids = torch.tensor([tokenizer.encode("abc")])
    expected = translator.eval().generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6)
    new = [token for token in expected[0, 1:].tolist() if token != tokenizer.eos_token_id]
    assert play.kind == "rewriting"
    assert written.text == tokenizer.decode(new)
    assert len(told) == len(new)
    assert written == play.rewrite("abc", max_new_tokens=6)
    with pytest.raises(ConfigError, match="empty"):
        play.rewrite(" ")


@pytest.mark.parametrize("outputs", [1, 2])
@pytest.mark.parametrize("exported", [False, True])
def test_a_regression_estimates_its_numbers(outputs, exported, fast_tokenizer, tmp_path):
    torch.manual_seed(0)
    settings = {"pad_token_id": 0, "num_labels": outputs, "problem_type": "regression"}
    model = GPT2ForSequenceClassification(GPT2Config(**sizes(fast_tokenizer), **settings))
    play = Playground(model, fast_tokenizer, "regression")
    if exported:
        model.save_pretrained(tmp_path)
        fast_tokenizer.save_pretrained(tmp_path)
        play = open_playground(tmp_path)
    found, cut = play.estimate("a b c")
    with torch.no_grad():
        expected = model.eval()(torch.tensor([fast_tokenizer.encode("a b c")])).logits[0].tolist()
    assert (play.kind, cut) == ("numbers", 0)
    assert [name for name, _ in found] == (["number"] if outputs == 1 else ["number 1", "number 2"])
    assert [value for _, value in found] == pytest.approx(expected, abs=1e-6)
    explained = play.attribute("a b c")
    assert explained.target == found[expected.index(max(expected))][0]
    assert explained.error < 0.05


@pytest.fixture(scope="module")
def masking_tokenizer(fast_tokenizer):
    import copy

    with_mask = copy.deepcopy(fast_tokenizer)
    with_mask.add_special_tokens({"mask_token": "[MASK]"})
    return with_mask


@pytest.mark.parametrize("exported", [False, True])
def test_masked_tokens_are_filled_in(exported, masking_tokenizer, tmp_path):
    model = bert(BertForMaskedLM, len(masking_tokenizer) + 3)  # more tokens than the tokenizer knows
    play = Playground(model, masking_tokenizer, "masked_lm")
    if exported:
        model.save_pretrained(tmp_path)
        masking_tokenizer.save_pretrained(tmp_path)
        play = open_playground(tmp_path)
    filled = play.fill("a [MASK] c [MASK]", most=3)
    ids = masking_tokenizer.encode("a [MASK] c [MASK]")
    with torch.no_grad():
        shares = model.eval()(torch.tensor([ids])).logits[0, :, : len(masking_tokenizer)].softmax(-1)
    assert play.kind == "masks"
    for place, candidates in zip((1, 3), filled.candidates, strict=True):
        scores, tokens = shares[place].topk(3)
        assert [token for token, _ in candidates] == [masking_tokenizer.decode([token]) for token in tokens.tolist()]
        assert [score for _, score in candidates] == pytest.approx(scores.tolist(), abs=1e-6)
        ids[place] = int(tokens[0])
    assert filled.text == masking_tokenizer.decode(ids)


@pytest.mark.parametrize(("masked", "said"), [(True, r"type \[MASK\] in place of"), (False, "has no mask token")])
def test_a_text_without_a_masked_token_is_refused(masked, said, masking_tokenizer, fast_tokenizer):
    tokenizer = masking_tokenizer if masked else fast_tokenizer
    play = Playground(bert(BertForMaskedLM, len(masking_tokenizer)), tokenizer, "masked_lm")
    with pytest.raises(ConfigError, match=said):
        play.fill("a b")


def test_a_folder_that_is_neither_run_nor_export_is_named(tmp_path):
    with pytest.raises(ConfigError, match="neither"):
        open_playground(tmp_path)


def test_a_conversation_is_answered_up_to_the_end_of_the_turn(fast_tokenizer):
    class Scripted(torch.nn.Module):
        """Answers `c`, then ends its turn; the most likely token is nearly certain."""

        def __init__(self):
            super().__init__()
            self.anchor = torch.nn.Parameter(torch.zeros(1))

        def forward(self, input_ids):
            after = torch.where(input_ids == 5, 0, 5)
            return 50.0 * torch.nn.functional.one_hot(after, 7).float() + self.anchor

    template = (
        "{% for m in messages %}{{ '<user> ' if m.role == 'user' else '<bot> ' }}{{ m.content }} "
        "{% if m.role == 'assistant' %}<end> {% endif %}{% endfor %}{% if add_generation_prompt %}<bot> {% endif %}"
    )
    import copy

    chatting = copy.deepcopy(fast_tokenizer)
    chatting.chat_template = template
    play = Playground(Scripted(), chatting)
    assert play.kind == "chat"
    assert play.answer([{"role": "user", "content": "a b"}], max_new_tokens=9, temperature=0).text == "c"
    with pytest.raises(ConfigError, match="empty"):
        play.answer([{"role": "user", "content": " "}])


def test_the_contributions_of_tokens_add_up_to_the_change_of_the_logit(classifier, tokenizer):
    classifier.train()
    play = Playground(classifier, tokenizer, "classification")
    found = play.attribute("abcda", n_steps=40)
    best = play.classify("abcda")[0][0][0]
    assert found.target == best
    assert [token for token, _ in found.tokens] == list("abcda")
    assert found.error < 0.02
    assert classifier.training
    assert all(parameter.grad is None for parameter in classifier.parameters())
    classifier.eval()
    ids = torch.tensor([tokenizer.encode("abcda")])
    table = classifier.get_input_embeddings()
    with torch.no_grad():
        logits = [
            classifier(inputs_embeds=table(row), attention_mask=torch.ones_like(row)).logits[0]
            for row in (ids, 0 * ids)
        ]
    change = (logits[0] - logits[1])[{"sad": 0, "glad": 1, "mad": 2}[best]]
    assert sum(score for _, score in found.tokens) == pytest.approx(float(change), rel=0.05, abs=1e-3)


def test_tokens_are_tagged(tokenizer):
    torch.manual_seed(0)
    tagger = GPT2ForTokenClassification(GPT2Config(**sizes(tokenizer), id2label={0: "O", 1: "B-PER"}))
    found, cut = Playground(tagger, tokenizer, "token_classification").tag("ab cd" * 10)
    assert [row.token for row in found] == list(("ab cd" * 10)[:CONTEXT])
    assert cut == 50 - CONTEXT
    with torch.no_grad():
        logits = tagger.eval()(input_ids=torch.tensor([tokenizer.encode("ab cd" * 10)[:CONTEXT]])).logits[0]
    assert [row.tag for row in found] == [["O", "B-PER"][place] for place in logits.argmax(-1).tolist()]


@pytest.mark.parametrize("given", ["array", "bytes", "file"])
def test_an_image_is_classified(given, tmp_path):
    torch.manual_seed(0)
    sizes = {"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 1,
             "num_attention_heads": 2, "intermediate_size": 16}  # fmt: skip
    model = ViTForImageClassification(ViTConfig(**sizes, id2label={0: "cat", 1: "dog"}))
    spec = TaskSpec.image_classification(num_classes=2, preprocessing_config={"mean": 0.5, "std": 0.25})
    play = open_playground(SimpleNamespace(model=model, tokenizer=None, task_spec=spec, best_model_path=None))
    pixels = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    image = {"array": pixels, "bytes": (tmp_path / "image.png").read_bytes(), "file": tmp_path / "image.png"}[given]
    found = play.classify_image(image)
    expected = (torch.tensor(pixels).float()[None, None] / 255 - 0.5) / 0.25
    with torch.no_grad():
        probabilities = model.eval()(pixel_values=expected).logits.softmax(-1)[0]
    assert dict(found) == pytest.approx({"cat": float(probabilities[0]), "dog": float(probabilities[1])}, abs=1e-5)
    with pytest.raises(ConfigError, match="no image that can be read"):
        play.classify_image(b"no image")


def test_results_are_played_with_the_weights_of_the_best_checkpoint(tokenizer, tmp_path):
    """What is learned does not fit the validation data, so that the first validation is the best."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**sizes(tokenizer)))
    config = TrainingConfig(epochs=2, batch_size=4, learning_rate=1e-2, output_dir=str(tmp_path), run_name="r")
    learned, held_out = ([{"input_ids": torch.arange(CONTEXT) % 4 + first}] * 8 for first in (4, 8))
    results = Trainer(model, training_config=config, tokenizer=tokenizer).train(learned, held_out)
    opened = open_playground(results)
    best = weights_to_use(read_checkpoint(results.best_model_path))
    assert results.state.best.step < results.steps
    assert torch.equal(opened.model.lm_head.weight, best["lm_head.weight"])
    assert not torch.equal(opened.model.lm_head.weight, results.model.lm_head.weight)
    assert f"best checkpoint, step {results.state.best.step} (val/loss" in opened.weights
    results.weights = "best"  # as after Stop and keep best: the model has them already
    assert (open_playground(results).model, open_playground(results).weights) == (results.model, "")


@pytest.mark.parametrize(("settings", "known"), [({}, True), ({"optimizer": "muon"}, True), ({"optimizer": "sgd"}, False)])
def test_tokens_that_no_training_text_had_are_named_where_the_optimizer_tells(settings, known, tokenizer, tmp_path):
    torch.manual_seed(0)
    model = GPT2ForSequenceClassification(GPT2Config(**sizes(tokenizer), pad_token_id=0))
    rows = [{"input_ids": torch.tensor(tokenizer.encode("abc a")), "labels": torch.tensor(place % 2)} for place in range(8)]
    config = TrainingConfig(epochs=1, batch_size=4, output_dir=str(tmp_path), run_name="r", **settings)
    results = Trainer(model, training_config=config, tokenizer=tokenizer).train(rows)
    opened = open_playground(results)
    assert opened.unknown_tokens("cab") == ([], 3)
    assert opened.unknown_tokens("cage") == (["g", "e"] if known else [], 4)


def test_a_pretrained_model_and_a_language_model_know_more_than_the_training_texts(tokenizer, tmp_path):
    config = TrainingConfig(epochs=1, batch_size=4, output_dir=str(tmp_path), run_name="r")
    results = Trainer(plain_lm(), training_config=config).train(train_set())
    checkpoint = read_checkpoint(results.checkpoint_path)
    assert never_seen_ids(checkpoint, results.model) is None, "the output layer has the embedding's shape"
    GPT2ForSequenceClassification(GPT2Config(**sizes(tokenizer), pad_token_id=0)).save_pretrained(tmp_path / "model")
    model = GPT2ForSequenceClassification.from_pretrained(tmp_path / "model")
    assert never_seen_ids(checkpoint, model) is None
