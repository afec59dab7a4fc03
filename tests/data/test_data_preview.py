"""What the model sees is shown as it is: every token, label and mask of the batch that training would make."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from tests.kit.labelled import CLS, PAD, SEP, bert_like_tokenizer, ids_of
from utils.data import prepare_examples, preview_batch
from utils.errors import DataTypeError
from utils.training.task_spec import TaskSpec
from utils.views.samples import samples_html, samples_text


def prepared(records, task, **options):
    return prepare_examples(records, task, bert_like_tokenizer(), **{"val_split": 0, **options})


def columns(tokens, *names) -> list[tuple]:
    return [tuple(getattr(token, name) for name in names) for token in tokens]


def test_a_classified_text_is_shown_with_its_class_and_padding():
    first, second = preview_batch(prepared((["the cats ran", "good"], ["no", "yes"]), "text_classification"), 5)
    assert (first.number, first.label, first.text) == (0, "no (0)", "[CLS] the cats ran [SEP]")
    assert (second.number, second.label) == (1, "yes (1)")
    shown = columns(second.tokens, "token", "id", "attended")
    assert shown == [
        ("[CLS]", CLS, True), ("good", *ids_of("good"), True), ("[SEP]", SEP, True), *[("[PAD]", PAD, False)] * 3
    ]  # fmt: skip


def test_pairs_are_told_apart():
    (sample,) = preview_batch(prepared([(("a cat", "a dog"), 0), (("on", "mat"), 1)], "text_classification"), 1)
    assert [token.token_type for token in sample.tokens] == [0, 0, 0, 0, 1, 1, 1]


def test_several_classes_are_named():
    samples = preview_batch(prepared((["a", "cat", "dog"], [["x", "y"], [], ["y"]]), "text_classification"))
    assert [sample.label for sample in samples] == ["x (0), y (1)", "none", "y (1)"]


def test_each_word_has_its_tag():
    (sample,) = preview_batch(prepared([{"tokens": ["playing", "cat"], "tags": ["V", "N"]}], "token_classification"))
    assert columns(sample.tokens, "token", "label") == [
        ("[CLS]", None), ("play", "V (1)"), ("##ing", None), ("cat", "N (0)"), ("[SEP]", None)
    ]  # fmt: skip
    assert sample.label is None


def test_inputs_and_targets_are_shown_apart():
    (sample, _) = preview_batch(prepared((["the cat", "a"], ["dog", "the cat ran"]), "seq2seq"))
    assert [token.token for token in sample.tokens] == ["[CLS]", "the", "cat", "[SEP]"]
    assert [token.token for token in sample.target] == ["[CLS]", "dog", "[SEP]"]


def test_numbers_are_shown_as_numbers():
    samples = preview_batch(prepared((["a", "cat"], [[0.5, 2], [1, 0]]), "regression"))
    assert [sample.label for sample in samples] == ["0.5, 2", "1, 0"]


def test_hidden_tokens_show_what_is_to_be_found():
    data = prepared(["the cat sat on the mat " * 20], "masked_lm", max_length=20)
    (sample,) = preview_batch(data, 1)
    original = data.train.take([0])["input_ids"][0]
    hidden = [place for place, token in enumerate(sample.tokens) if token.label is not None]
    assert len(hidden) == 3  # 15 % of 20
    tokenizer = data.tokenizer
    assert [sample.tokens[place].label for place in hidden] == [tokenizer.decode([original[place]]) for place in hidden]


def test_each_position_of_a_language_model_shows_the_next_token():
    data = prepared(["the cat sat on the mat " * 20], "causal_lm", max_length=4)
    (sample,) = preview_batch(data, 1)
    assert columns(sample.tokens, "token", "label") == [("the", "cat"), ("cat", "sat"), ("sat", "on"), ("on", None)]


def test_images_are_described():
    images = TensorDataset(torch.stack([torch.zeros(1, 2, 3), torch.ones(1, 2, 3)]), torch.tensor([1, 0]))
    spec = TaskSpec("image_classification", "vision", preprocessing_config={"class_names": ["no", "yes"]})
    samples = preview_batch(SimpleNamespace(train=images, tokenizer=None, task_spec=spec))
    assert samples[0].text == "1 × 2 × 3 numbers from 0 to 0, mean 0"
    assert [sample.label for sample in samples] == ["yes (1)", "no (0)"]
    assert "label yes (1); 1 × 2 × 3 numbers" in samples_text(samples)
    assert "label yes (1); 1 × 2 × 3 numbers" in samples_html(samples)


def test_spaces_and_line_ends_are_seen():
    data = prepare_examples((["a  b\nc", "x"], [0, 1]), "text_classification", val_split=0)
    (sample,) = preview_batch(data, 1)
    assert [token.token for token in sample.tokens] == ["<s>", "a", "␣", "␣", "b", "⏎", "c", "</s>"]


def test_without_a_tokenizer_ids_are_shown():
    data = SimpleNamespace(
        train=[{"input_ids": [5, 6], "label": 1}], tokenizer=None, task_spec=TaskSpec("classification")
    )
    (sample,) = preview_batch(data)
    assert columns(sample.tokens, "token", "id") == [("<5>", 5), ("<6>", 6)]


def test_a_stream_has_no_samples_by_number():
    class Rows(IterableDataset):
        def __iter__(self):
            yield torch.ones(3, dtype=torch.long)

    stream = SimpleNamespace(train=DataLoader(Rows()), tokenizer=None, task_spec=TaskSpec("classification"))
    with pytest.raises(DataTypeError, match="no samples by number"):
        preview_batch(stream)


def test_padding_is_marked_where_there_is_some():
    samples = preview_batch(prepared((["the cats ran", "good"], ["no", "yes"]), "text_classification"))
    first, second = (samples_text([sample]) for sample in samples)
    assert [line.split() for line in first.splitlines()][1] == ["token", "id"]
    assert ["[PAD]", "0", "0"] in [line.split() for line in second.splitlines()]
    assert ["[SEP]", "3", "1"] in [line.split() for line in second.splitlines()]
    assert [sample.count(">mask</th>") for sample in (samples_html(samples[:1]), samples_html(samples[1:]))] == [0, 1]


def test_nothing_in_the_data_becomes_markup():
    data = prepare_examples(
        (["<script>alert(1)</script> & \"'", "x"], ["<b>bold</b>", "<i>"]), "text_classification", val_split=0
    )
    markup = samples_html(preview_batch(data))
    for harmful in ("<script", "<b>", "<i>", "alert(1)</script"):
        assert harmful not in markup
    assert "label &lt;b&gt;bold&lt;/b&gt; (0)" in markup
    assert "color:inherit" in markup
    assert "#" not in markup.replace("&#x27;", "")  # no colour of its own


def test_long_samples_are_shown_in_part():
    data = prepared((["a " * 100, "cat"], [0, 1]), "text_classification")
    (sample,) = preview_batch(data, 1)
    assert len(sample.tokens) == 102
    for shown in (samples_html([sample]), samples_text([sample])):
        assert "… 54 more" in shown
    assert samples_html([sample]).count('<th scope="col"') == 1 + 48 + 1


def test_prepared_data_show_their_samples(capsys):
    prepared((["the cats ran", "good"], ["no", "yes"]), "text_classification").show_samples(1)
    shown = capsys.readouterr().out
    assert "Sample 0: label no (0); [CLS] the cats ran [SEP]" in shown
    assert "Sample 1" not in shown
    assert "##s" in shown
