"""Records of every task become examples: columns and classes are found and told, nothing is lost without being counted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.kit.labelled import CLS, SEP, bert_like_tokenizer, ids_of
from tests.kit.toys import tiny_gpt
from utils.data import TokenBlocks, prepare_examples
from utils.data.encoded import EncodedExamples, Ragged
from utils.data.labelled.suggestion import suggest_task
from utils.data.module import UniversalDataModule
from utils.data.text.splitting import split_examples
from utils.errors import ConfigError, DataError, DataTypeError
from utils.training.task_spec import TaskSpec

TEXTS = [
    f"the {animal} {verb} {speed}"
    for animal in ("cat", "dog")
    for verb in ("sat", "ran", "play")
    for speed in ("fast", "slow")
]
MOODS = ["good" if "fast" in text else "bad" for text in TEXTS]
RECORDS = [{"id": i, "text": text, "label": mood} for i, (text, mood) in enumerate(zip(TEXTS, MOODS, strict=True))]


def prepared(records=None, task="text_classification", tokenizer=None, **options):
    return prepare_examples(
        RECORDS if records is None else records, task, tokenizer or bert_like_tokenizer(), **{"val_split": 0, **options}
    )


def example(data, index=0) -> dict:
    return {name: value.tolist() for name, value in data.train[index].items()}


# ---- records and columns ----


def given_as(kind: str):
    if kind == "dicts":
        return RECORDS
    if kind == "columns":
        return {"text": TEXTS, "label": MOODS}
    if kind == "texts and labels":
        return TEXTS, MOODS
    if kind == "pairs":
        return list(zip(TEXTS, MOODS, strict=True))
    if kind == "frame":
        import pandas

        return pandas.DataFrame(RECORDS)
    from datasets import Dataset

    return Dataset.from_list(RECORDS)


@pytest.mark.parametrize("kind", ["dicts", "columns", "texts and labels", "pairs", "frame", "dataset"])
def test_records_of_every_kind_give_the_same_examples(kind, rng_untouched):
    data = prepared(given_as(kind))
    assert data.train.digest() == prepared().train.digest()
    assert example(data) == {
        "input_ids": [CLS, *ids_of("the", "cat", "sat", "fast"), SEP],
        "token_type_ids": [0] * 6,
        "labels": 1,
    }
    assert data.task_spec.preprocessing_config["class_names"] == ["bad", "good"]
    assert data.task_spec.num_classes == 2


@pytest.mark.parametrize(
    ("row", "task", "said"),
    [
        ({"Review": "a", "Sentiment": "x", "id": 1}, "text_classification", 'text from "Review", label from "Sentiment"; not used: id'),
        ({"premise": "a", "hypothesis": "b", "label": 1}, "text_classification", 'text from "premise" and "hypothesis", label from "label"'),
        ({"sentence1": "a", "sentence2": "b", "score": 1}, "regression", 'text from "sentence1" and "sentence2", label from "score"'),
        ({"what": "a", "kind": 1}, "text_classification", 'text from "what", label from "kind"'),
        ({"tokens": ["a"], "ner_tags": [0]}, "token_classification", 'text from "tokens", label from "ner_tags"'),
        ({"question": "a", "answer": "b", "idx": 3}, "seq2seq", 'text from "question", label from "answer"; not used: idx'),
        ({"article": "a", "highlights": "b"}, "seq2seq", 'text from "article", label from "highlights"'),
    ],
)  # fmt: skip
def test_columns_are_found_by_common_names_and_told(row, task, said):
    flipped = {name: 1 - value if isinstance(value, int) else value for name, value in row.items()}
    other = {**flipped, **({"Sentiment": "y"} if "Sentiment" in row else {})}
    assert prepared([row, other], task).report.columns == said


@pytest.mark.parametrize(
    ("row", "task", "message"),
    [
        ({"text": "a", "review": "b", "label": 0}, "text_classification", 'text, review, label; it could be text or review. Say it: text_column="..."'),
        ({"text": "a", "label": 0, "class": 1}, "text_classification", 'could be label or class. Say it: label_column="..."'),
        ({"text": "a"}, "text_classification", "which column holds the labels"),
        ({"tokens": ["a"], "ner_tags": [0], "pos_tags": [1]}, "token_classification", "ner_tags or pos_tags"),
        ({"source": "a", "target": "b", "question": "c", "answer": "d"}, "seq2seq", "source with target or question with answer"),
        ({"number": 1, "label": 0}, "text_classification", "it could be none of them"),
    ],
)  # fmt: skip
def test_columns_that_are_not_clear_are_listed(row, task, message):
    with pytest.raises(DataError) as caught:
        prepared([row], task)
    assert message in str(caught.value)


def test_columns_may_be_named():
    rows = [{"title": "bad", "body": text, "label": 0, "kind": mood} for text, mood in zip(TEXTS, MOODS, strict=True)]
    data = prepared(rows, text_column="title", pair_column="body", label_column="kind")
    assert example(data)["token_type_ids"] == [0, 0, 0, 1, 1, 1, 1, 1]
    with pytest.raises(
        ConfigError, match="no column 'titel'; the columns are title, body, label, kind; did you mean 'title'"
    ):
        prepared(rows, text_column="titel")


@pytest.mark.parametrize(
    ("records", "error", "message"),
    [
        (7, DataTypeError, "Expected records to be a Hugging Face Dataset"),
        ([], DataError, "records holds no rows"),
        ([{"text": "a"}, "b"], DataTypeError, "row 1 is a str"),
        ({"text": ["a"], "label": [1, 2]}, DataError, "text 1, label 2"),
        ({"text": "a"}, DataTypeError, "'text' is no list"),
    ],
)
def test_what_is_no_table_is_said(records, error, message):
    with pytest.raises(error, match=message):
        prepared(records)


def test_parts_of_a_data_set_are_given_one_by_one():
    from datasets import Dataset, DatasetDict

    with pytest.raises(DataTypeError, match="has the parts train, test"):
        prepared(DatasetDict({"train": Dataset.from_list(RECORDS), "test": Dataset.from_list(RECORDS)}))


def test_a_stream_is_refused():
    from datasets import Dataset

    with pytest.raises(DataTypeError, match="is a stream"):
        prepared(Dataset.from_list(RECORDS).to_iterable_dataset())


# ---- rows that cannot be used ----

BAD = [
    *RECORDS,
    {"text": " ", "label": "good"},
    {"text": "a cat", "label": None},
    {"text": 3, "label": "bad"},
    {"label": "bad"},
]


def test_rows_that_cannot_be_used_are_named():
    with pytest.raises(DataError) as caught:
        prepared(BAD)
    message = str(caught.value)
    assert "4 of the 16 rows of records cannot be used" in message
    assert "2 with no text (rows 12, 15); 1 with no label (row 13); 1 with a int for a text (row 14)" in message
    assert 'on_bad_row="skip"' in message


def test_rows_that_cannot_be_used_may_be_passed_over_and_are_counted():
    data = prepared(BAD, on_bad_row="skip")
    assert len(data.train) == 12
    assert data.train.digest() == prepared().train.digest()
    assert data.report.skipped_rows == 4
    assert "2 with no text (rows 12, 15)" in data.report.notes[0]
    with pytest.raises(DataError, match="none of the 1 rows"):
        prepared([{"text": "", "label": 1}], on_bad_row="skip")


def test_missing_values_of_a_frame_are_missing():
    import pandas

    frame = pandas.DataFrame({"text": ["a cat", None, "a dog", "on"], "label": [1.0, 0.0, float("nan"), 0.0]})
    with pytest.raises(DataError, match=r"1 with no text \(row 1\); 1 with no label \(row 2\)"):
        prepared(frame)
    assert prepared(frame, on_bad_row="skip").train.columns["labels"].tolist() == [1, 0]


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "N/A", "null", "None"])
def test_labels_that_are_words_for_a_missing_value_are_classes_and_counted(word):
    records = [*RECORDS, {"text": "a cat", "label": word}, {"text": "a dog", "label": word}, {"text": "a", "label": ""}]
    data = prepared(records, on_bad_row="skip")
    assert word in data.report.labels
    assert data.report.notes[:2] == [
        "Passed over: 1 with no label (row 14). Rows count from 0.",
        f"2 labels are '{word}' (rows 12, 13, counted from 0), which often stands for a missing value: here it is a class of its "
        "own. Where the label is missing, empty the cell: rows without a label are left out.",
    ]
    assert not [note for note in prepared().report.notes if "missing value" in note]


@pytest.mark.parametrize(
    ("row", "task", "problem"),
    [
        ({"tokens": ["a", "cat"], "tags": [1]}, "token_classification", "another number of tags than of words"),
        ({"tokens": "a cat", "tags": [1]}, "token_classification", "a text that is no list of words"),
        ({"tokens": [], "tags": []}, "token_classification", "no words"),
        ({"source": "a", "target": ""}, "seq2seq", "no label"),
        ({"text": "a", "label": "much"}, "regression", "a label that is no number"),
        ({"text": "a", "label": float("inf")}, "regression", "a label that is no number"),
        ({"text": "a \ud800", "label": 1}, "regression", "lone surrogate"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_row_is_said(row, task, problem):
    names = {"text": "tokens", "label": "tags"} if task == "token_classification" else {}
    good = {"text": "a", "label": 0.5, "tokens": ["a"], "tags": [0], "source": "a", "target": "b"}
    rows = [{name: good[name] for name in row}, row]
    with pytest.raises(DataError, match=problem):
        prepared(rows, task, text_column=names.get("text"), label_column=names.get("label"))


# ---- labels ----


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["b", "a", "b"], ["a", "b"], [1, 0, 1]),
        ([0, 2, 1], ["0", "1", "2"], [0, 2, 1]),
        ([5, 1, 3], ["1", "3", "5"], [2, 0, 1]),
        ([-1, 1, -1], ["-1", "1"], [0, 1, 0]),
        ([True, False, True], ["False", "True"], [1, 0, 1]),
        ([1.0, 0.0, 1.0], ["0", "1"], [1, 0, 1]),
        ([np.int64(1), np.int64(0), np.int64(1)], ["0", "1"], [1, 0, 1]),
    ],
)
def test_classes_are_numbered_in_their_own_order(labels, names, numbers):
    data = prepared((["a", "cat", "dog"], labels))
    assert data.task_spec.preprocessing_config["class_names"] == names
    assert data.train.columns["labels"].tolist() == numbers


def test_a_known_number_of_classes_keeps_the_numbers():
    spec = TaskSpec.classification(num_classes=6)
    data = prepared((["a", "cat", "dog"], [5, 1, 3]), spec)
    assert (data.train.columns["labels"].tolist(), data.task_spec.num_classes) == ([5, 1, 3], 6)
    with pytest.raises(DataError, match="3 different ones, but num_classes=2"):
        prepared((["a", "cat", "dog"], ["x", "y", "z"]), TaskSpec.classification(num_classes=2))


def test_given_names_decide_the_order():
    data = prepared(class_names=["good", "bad", "worse"])
    assert data.train.columns["labels"].tolist() == [0 if mood == "good" else 1 for mood in MOODS]
    assert data.task_spec.num_classes == 3
    with pytest.raises(DataError, match="'bad' is not one of the 1 classes: good"):
        prepared(class_names=["good"])


def test_names_that_a_data_set_knows_are_kept():
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["worst", "best", "other"])})
    data = prepared(Dataset.from_dict({"text": ["a", "cat"], "label": [1, 0]}, features=features))
    assert data.task_spec.preprocessing_config["class_names"] == ["worst", "best", "other"]
    assert data.train.columns["labels"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "a", "a"], "every label is a: there is nothing to tell apart"),
        (["a", 1, "a"], "some labels are names and some are numbers"),
        ([0.5, 1, 2], "0.5 is no class"),
        ([["a"], "b", ["a"]], "some labels are lists and some are not"),
        (["a", ["b"], "a"], "some labels are lists and some are not"),
    ],
)
def test_labels_that_are_no_classes_are_said(labels, message):
    with pytest.raises(DataError, match=message):
        prepared((["a", "cat", "dog"], labels))


@pytest.mark.parametrize(
    ("labels", "names", "vectors"),
    [
        ([["b", "a"], [], ["b"]], ["a", "b"], [[1, 1], [0, 0], [0, 1]]),
        ([[0, 2], [1], [2]], ["0", "1", "2"], [[1, 0, 1], [0, 1, 0], [0, 0, 1]]),
        ([[1, 0, 1], [0, 0, 0], [0, 1, 0]], ["0", "1", "2"], [[1, 0, 1], [0, 0, 0], [0, 1, 0]]),
    ],
)
def test_lists_of_labels_mean_several_classes(labels, names, vectors):
    data = prepared((["a", "cat", "dog"], labels))
    batch = data.train.take([0, 1, 2])
    assert (batch["labels"].tolist(), batch["labels"].dtype) == (vectors, torch.float32)
    assert data.task_spec.preprocessing_config["class_names"] == names
    assert data.task_spec.preprocessing_config["problem_type"] == "multi_label_classification"
    assert "an example may have several" in data.report.notes[0]


def test_the_models_config_learns_the_names():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {
        "vocab_size": 64,
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "intermediate_size": 8,
        "max_position_embeddings": 9,
    }
    model = BertForSequenceClassification(BertConfig(**sizes, num_labels=2))
    data = prepared(model=model)
    assert model.config.id2label == {0: "bad", 1: "good"}
    assert model.config.label2id == {"bad": 0, "good": 1}
    assert (data.task_spec.vocab_size, data.task_spec.max_seq_len) == (64, 9)
    with pytest.raises(ConfigError, match="have 2 classes, but the model .* has 3"):
        prepared(model=BertForSequenceClassification(BertConfig(**sizes, num_labels=3)))
    with pytest.raises(ConfigError, match="got 10, but the model takes at most 9 tokens"):
        prepared(model=model, max_length=10)


# ---- ids ----


def test_words_and_tags_are_aligned():
    data = prepared(
        [{"tokens": ["cats", "playing"], "tags": ["N", "V"]}, {"tokens": ["a"], "tags": ["D"]}], "token_classification"
    )
    assert example(data)["input_ids"] == [CLS, *ids_of("cat", "##s", "play", "##ing"), SEP]
    assert example(data)["labels"] == [-100, 1, -100, 2, -100, -100]
    assert data.report.labels == {"D": (1, 0), "N": (1, 0), "V": (1, 0)}


def test_a_learned_tokenizer_cuts_words_as_it_cuts_text():
    words = ["many", "words", "stand", "here"]
    records = [{"tokens": words * 60, "tags": ["A", "B", "A", "B"] * 60} for _ in range(200)]
    data = prepare_examples(records, "token_classification", val_split=0)
    assert "BPE" in data.report.tokenizer
    ids = data.train[0]["input_ids"].tolist()
    assert ids == data.tokenizer(" ".join(words * 60))["input_ids"]
    assert (data.train[0]["labels"] != -100).sum() == 240


def test_inputs_and_targets_have_lengths_of_their_own():
    records = [{"source": "the cat sat on the mat", "target": "the cat ran on"}, {"source": "dog", "target": "a"}]
    data = prepared(records, "seq2seq", max_length=6, max_target_length=4)
    assert example(data)["input_ids"] == [CLS, *ids_of("the", "cat", "sat", "on"), SEP]
    assert example(data)["labels"] == [CLS, *ids_of("the", "cat"), SEP]
    batch = data.train.take([0, 1])
    assert batch["labels"].tolist()[1] == [CLS, *ids_of("a"), SEP, -100]
    assert (data.report.truncated_examples, data.report.lost_tokens) == (1, 2 + 2)


@pytest.mark.parametrize(("labels", "shape"), [([0.5, "2", 3], (3,)), ([[1, 2], [3, 4], [0, 0.5]], (3, 2))])
def test_numbers_to_predict_are_floats(labels, shape):
    data = prepared((["a", "cat", "dog"], labels), "regression")
    batch = data.train.take([0, 1, 2])
    assert (tuple(batch["labels"].shape), batch["labels"].dtype) == (shape, torch.float32)
    assert data.task_spec.num_classes == (shape[1] if len(shape) > 1 else 1)
    with pytest.raises(DataError, match="different lengths"):
        prepared((["a", "cat"], [[1, 2], [1]]), "regression")


def test_truncation_is_counted():
    data = prepared([{"text": "a " * 30, "label": 0}, {"text": "a cat", "label": 1}], max_length=12)
    assert [len(row) for row in (data.train[0]["input_ids"], data.train[1]["input_ids"])] == [12, 4]
    assert data.train[0]["input_ids"][-1] == SEP
    assert (data.report.truncated_examples, data.report.lost_tokens) == (1, 20)
    assert "1 of 2 examples were cut: 20 tokens lost" in data.report.rows()["Truncation"]
    with pytest.raises(ConfigError, match="got max_length=2; at least 3 tokens are needed, of which 2 are special"):
        prepared(max_length=2)


def test_text_that_looks_like_a_special_token_is_text():
    assert SEP not in example(prepared((["a [SEP] cat", "dog"], [0, 1])))["input_ids"][1:-1]


@pytest.mark.parametrize(
    ("task", "records", "shape"),
    [
        ("text_classification", (["one text", "other text"], [0, 1]), "<s>one text</s>"),
        ("text_classification", ([("one", "two"), ("three", "four")], [0, 1]), "<s>one</s>two</s>"),
        ("seq2seq", (["one text", "two"], ["1", "2"]), "one text</s>"),
    ],
)
def test_a_tokenizer_that_is_learned_frames_the_texts(task, records, shape, tmp_path):
    data = prepare_examples(records, task, val_split=0)
    assert data.tokenizer.decode(data.train[0]["input_ids"]) == shape
    assert data.task_spec.pad_token_id == data.tokenizer.pad_token_id == 0
    data.tokenizer.save_pretrained(tmp_path / "tokenizer")
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert again("one text")["input_ids"] == data.tokenizer("one text")["input_ids"]


def test_a_learned_tokenizer_never_reads_the_validation_part():
    records = (["aaa bbb", "ccc ddd"], [0, 1])
    data = prepare_examples(records, "text_classification", validation=(["xyz", "xyz"], [0, 1]))
    assert "xy" not in data.tokenizer.get_vocab()  # a pair that occurs twice there, and would become a token
    assert (len(data.train), len(data.validation)) == (2, 2)


# ---- the split ----


def test_every_class_has_its_share_of_the_validation_part(rng_untouched):
    labels = ["rare"] * 10 + ["usual"] * 90
    texts = [f"a {'cat ' * (i % 9)}dog" for i in range(100)]
    data = prepared((texts, labels), val_split=0.2)
    assert data.report.labels == {"rare": (8, 2), "usual": (72, 18)}
    again = prepared((texts, labels), val_split=0.2)
    assert again.validation.digest() == data.validation.digest()
    assert prepared((texts, labels), val_split=0.2, random_seed=1).validation.digest() != data.validation.digest()
    assert "90.0% right for always 'usual'" in data.report.baseline
    assert "have an input that training has too" in data.report.notes[0]


def test_no_example_is_lost_or_taken_twice():
    for count, share in ((2, 0.5), (7, 0.1), (100, 0.33), (1000, 0.1)):
        strata = np.arange(count) % 3
        train, validation = split_examples(strata, share, seed=5)
        assert sorted([*train, *validation]) == list(range(count))
        assert 1 <= len(validation) <= max(1, share * count)


def test_a_class_of_one_example_is_learned():
    strata = np.array([0] * 50 + [1])
    assert all(50 in split_examples(strata, 0.5, seed)[0] for seed in range(20))


def test_a_range_of_numbers_is_split_alike():
    values = np.sort(np.random.default_rng(0).normal(size=200)).astype(np.float32)
    _, validation = split_examples(values, 0.1, seed=0)
    assert np.bincount(validation // 20, minlength=10).tolist() == [2] * 10


def test_one_example_cannot_be_split():
    with pytest.raises(DataError, match="val_split=0"):
        prepared([{"text": "a", "label": 0.5}], "regression", val_split=0.1)


def test_validation_records_of_ones_own_are_used():
    data = prepared(validation=[{"text": "a good mat", "label": "good", "more": 1}], val_split=0.1)
    assert (len(data.train), len(data.validation)) == (12, 1)
    assert data.report.split == "validation has records of its own"
    with pytest.raises(DataError, match="validation has no column 'label'"):
        prepared(validation=[{"text": "a", "kind": 1}], val_split=0.1)


# ---- language models ----


def test_masked_language_models_get_packed_blocks_and_a_mask_token():
    texts = [f"{text}, and then the story goes on and on. " * 8 for text in TEXTS * 2]
    data = prepare_examples(texts, "masked_lm", max_length=32, val_split=0.2)
    assert isinstance(data.train, TokenBlocks)
    assert isinstance(data.validation, TokenBlocks)
    assert data.train.block_size == 32
    assert data.tokenizer.mask_token == "<mask>"
    assert data.task_spec.task_type == "masked_lm"
    assert data.task_spec.vocab_size == len(data.tokenizer)
    module = UniversalDataModule(data.train, data.validation, data.task_spec, data.tokenizer, batch_size=4)
    batch = next(module.steps(0, 0, 1)).micro_batches[0]
    assert (batch["labels"] != -100).sum(1).tolist() == [5] * 4
    assert (batch["input_ids"] == data.tokenizer.mask_token_id).any()


def test_causal_language_models_get_what_prepare_text_makes():
    model = tiny_gpt(vocab_size=300, length=16)
    data = prepare_examples([text * 20 for text in TEXTS], "causal_lm", model=model, val_split=0)
    assert (data.train.block_size, data.task_spec.vocab_size, data.task_spec.task_type) == (16, 300, "causal_lm")
    assert data.validation is None


# ---- as a source ----


def test_examples_are_the_same_from_any_place_and_any_process():
    data = prepared(val_split=0.25)
    module = UniversalDataModule(data.train, data.validation, data.task_spec, data.tokenizer, batch_size=2, seed=1)
    steps = list(module.steps(0, 0, 2))
    resumed = list(module.steps(0, 4, 2))
    assert [step.sample_ids for step in resumed] == [step.sample_ids for step in steps[1:]]
    workers = UniversalDataModule(data.train, None, data.task_spec, data.tokenizer, batch_size=2, seed=1, num_workers=2)
    for alone, helped in zip(steps, workers.steps(0, 0, 2), strict=True):
        for first, second in zip(alone.micro_batches, helped.micro_batches, strict=True):
            assert {name: value.tolist() for name, value in first.items()} == {
                name: value.tolist() for name, value in second.items()
            }


def test_content_decides_the_digest_of_examples():
    collate = list
    one = EncodedExamples({"input_ids": Ragged.of([[1, 2], [3]]), "labels": np.array([0, 1])}, collate)
    for other in ([[1], [2, 3]], [[1, 2], [4]], [[1, 2], [3], []]):
        assert (
            EncodedExamples({"input_ids": Ragged.of(other), "labels": np.array([0, 1])}, collate).digest()
            != one.digest()
        )
    assert (
        EncodedExamples({"input_ids": Ragged.of([[1, 2], [3]]), "labels": np.array([1, 1])}, collate).digest()
        != one.digest()
    )
    assert one[-1]["input_ids"].tolist() == [3]
    with pytest.raises(IndexError):
        one[2]


def test_rows_are_read_in_pieces():
    texts = [f"{'cat ' * (i % 5)}dog" for i in range(2500)]
    data = prepared((texts, [i % 2 for i in range(2500)]))
    assert len(data.train) == 2500
    for index in (0, 999, 1000, 1999, 2000, 2499):
        assert len(data.train[index]["input_ids"]) == index % 5 + 3
        assert data.train[index]["labels"] == index % 2


# ---- arguments and the report ----


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("image_classification", {}, "Images come from DatasetRegistry"),
        ("tagging", {}, "got 'tagging'"),
        ("text_classification", {"target_column": "label"}, "for text_classification give label_column"),
        ("seq2seq", {"pair_column": "text"}, "not for seq2seq"),
        ("text_classification", {"on_bad_row": "ignore"}, "got 'ignore'"),
        ("text_classification", {"val_split": 0.9}, "got val_split=0.9"),
    ],
)
def test_arguments_that_do_not_fit_the_task_are_said(task, options, message):
    with pytest.raises(ConfigError, match=message):
        prepared(task=task, **options)


def test_a_tokenizer_larger_than_the_model_is_refused():
    with pytest.raises(ConfigError, match="the tokenizer has 31 tokens, but the model's vocabulary holds 20"):
        prepared(task=TaskSpec.classification(vocab_size=20))


def test_the_report_says_what_became_of_the_records(capsys):
    data = prepared(val_split=0.25, source="moods.csv")
    data.report.show()
    shown = capsys.readouterr().out
    for words in (
        "moods.csv: 12 rows",
        'text from "text", label from "label"; not used: id',
        "3 of 12 examples, drawn with seed 42, of every class as large a share",
        "with 31 tokens (given)",
        "9 examples, 54 tokens",
        "median 6 tokens, longest 6, limit 512",
        "nothing was cut",
    ):
        assert words in shown
    assert data.report.to_dict()["num_train"] == 9
    assert str(data.report) in shown
    assert data.report.unigram_loss is None


def test_the_baseline_of_numbers_is_their_mean():
    data = prepared(
        (["a", "b", "c", "d"], [0.0, 2.0, 0.0, 2.0]), "regression", validation=(["a", "b"], [1.0, 3.0]), val_split=0.1
    )
    assert data.report.baseline == "mean squared error 2 for always the mean of training"


def test_a_split_of_numbers_is_said_to_be_by_their_range():
    data = prepared([{"text": "ab"[i % 2], "label": i / 2} for i in range(12)], "regression", val_split=0.25)
    assert ", of every range of targets as large a share, are" in data.report.split


# ---- what the task knows is enough for further records ----


def test_a_task_reads_further_records_as_it_read_the_first():
    stars = [{"text": text, "label": 1 + i % 5} for i, text in enumerate(TEXTS)]
    data = prepared(stars)
    assert data.task_spec.num_classes == 5
    expected = [i % 5 for i in range(len(TEXTS))]
    again = prepare_examples(stars, data.task_spec, data.tokenizer, val_split=0)
    raw = UniversalDataModule(stars, None, data.task_spec, data.tokenizer)
    few = prepare_examples([stars[2], stars[1]], data.task_spec, data.tokenizer, val_split=0)
    everything = range(len(TEXTS))
    assert again.train.take(everything)["labels"].tolist() == expected
    assert raw.train.take(everything)["labels"].tolist() == expected
    assert few.train.take([0, 1])["labels"].tolist() == [2, 1]
    with pytest.raises(DataError, match="the label 6 is not one of the 5 classes: 1, 2, 3, 4, 5"):
        prepare_examples([("a", 6), ("b", 1)], data.task_spec, data.tokenizer, val_split=0)
    renamed = prepare_examples(
        RECORDS, data.task_spec, data.tokenizer, val_split=0, class_names=["bad", "good", *"xyz"]
    )
    assert renamed.train.take([0, 1])["labels"].tolist() == [1, 0]
    assert "class_values" not in renamed.task_spec.preprocessing_config


def test_several_classes_are_known_to_the_task_and_read_from_further_records():
    sets = [["sport"], ["sport", "weather"], []]
    posts = [{"text": text, "label": sets[i % 3]} for i, text in enumerate(TEXTS)]
    data = prepared(posts)
    assert data.task_spec.multi_label
    raw = UniversalDataModule(posts, None, data.task_spec, data.tokenizer)
    expected = [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]]
    assert data.train.take([0, 1, 2])["labels"].tolist() == expected
    assert raw.train.take([0, 1, 2])["labels"].tolist() == expected
    assert raw.train.take([0])["labels"].tolist() == expected[:1]


def test_one_class_that_a_text_may_lack_is_a_yes_or_no():
    data = prepared([(text, ["fast"] if "fast" in text else []) for text in TEXTS])
    batch = data.train.take([0, 1])
    assert batch["labels"].tolist() == [[1.0], [0.0]]
    assert batch["labels"].dtype == torch.float32


@pytest.mark.parametrize("name", ["max_length", "max_target_length", "vocab_size"])
@pytest.mark.parametrize("value", [0, -4, True, 2.5, "8"])
def test_sizes_that_are_none_are_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name}.*got {value!r}"):
        prepare_examples([("a b", "c d")] * 4, "seq2seq", **{name: value})


@pytest.mark.parametrize(
    ("task", "bad", "told"),
    [
        ("text_classification", {"text": None, "label": 1}, "no text"),
        ("text_classification", {"txt": "a", "label": 1}, "no text"),
        ("text_classification", {"text": 7, "label": 1}, "a int for a text"),
        ("text_classification", {"text": "a"}, "no label"),
        ("seq2seq", {"text": "a", "label": None, "target": None}, "no label"),
        ("token_classification", {"tokens": "a b", "tags": [0, 1]}, "no list of words"),
    ],
)
def test_a_record_that_cannot_be_used_is_named_when_its_batch_is_made(task, bad, told):
    good = {
        "text_classification": {"text": "the cat", "label": 1},
        "seq2seq": {"text": "the cat", "target": "sat"},
        "token_classification": {"tokens": ["the", "cat"], "tags": [0, 1]},
    }[task]
    module = UniversalDataModule([good, bad], None, TaskSpec(task), bert_like_tokenizer())
    assert module.train.take([0])["labels"].numel()
    with pytest.raises(DataError, match=f"{told}.*on_bad_row"):
        module.train.take([0, 1])


@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"tokenizer": "gpt2"}, DataTypeError, "transformers tokenizer; got a str.*from_pretrained"),
        ({"model": "bert"}, DataTypeError, "nn.Module.*got a str"),
        ({"random_seed": "a"}, ConfigError, "random_seed.*got 'a'"),
        ({"random_seed": -1}, ConfigError, "random_seed.*got -1"),
        ({"class_names": "good"}, ConfigError, "class_names.*got 'good'"),
        ({"class_names": ["bad", "good", "bad"]}, ConfigError, "every class once"),
    ],
)
def test_arguments_of_another_kind_are_refused(arguments, error, told):
    with pytest.raises(error, match=told):
        prepare_examples(RECORDS, "text_classification", **arguments)


def test_columns_may_have_numbers_for_names():
    rows = [{0: "the cat", 1: "good"}, {0: "the dog", 1: "bad"}]
    data = prepared(rows, text_column="0", label_column="1")
    assert data.train.take([0, 1])["labels"].tolist() == [1, 0]


def test_what_is_no_part_of_the_data_is_refused_with_the_way_to_one():
    import pandas

    data = prepared()
    with pytest.raises(DataTypeError, match=r"Give its \.train and \.validation"):
        UniversalDataModule(data, None, data.task_spec, data.tokenizer)
    with pytest.raises(DataTypeError, match=r"pandas DataFrame.*from_pandas"):
        UniversalDataModule(pandas.DataFrame(RECORDS), None, data.task_spec, data.tokenizer)


# ---- numbers where the task reads texts ----


def number_column(kind: str, name: str, values: list):
    if kind == "dicts":
        return [{"source": text, name: value} for text, value in zip(TEXTS, values, strict=False)]
    if kind == "frame":
        import pandas

        return pandas.DataFrame({"source": TEXTS[: len(values)], name: values})
    from datasets import Dataset

    return Dataset.from_dict({"source": TEXTS[: len(values)], name: values})


@pytest.mark.parametrize("kind", ["dicts", "frame", "dataset"])
@pytest.mark.parametrize(("name", "values"), [("target", [2, 10, -3]), ("target", [0.5, 2.25, 1.0]), ("own", [2, 10, -3])])
def test_numbers_as_targets_are_taken_by_their_digits(kind, name, values):
    data = prepared(number_column(kind, name, values), "seq2seq", text_column="source", target_column=name)
    written = prepared(number_column(kind, name, [str(value) for value in values]), "seq2seq", text_column="source", target_column=name)
    assert data.train.digest() == written.train.digest()


@pytest.mark.parametrize(("name", "value"), [("own", 0.5), ("target", True), ("target", {"a": 1})])
def test_what_has_no_digits_of_its_own_is_no_target_text(name, value):
    rows = [{"source": "the cat", name: value}] * 2
    with pytest.raises(DataError, match=f"2 with a {type(value).__name__} for a target text"):
        prepared(rows, "seq2seq", text_column="source", target_column=name)


# ---- the ends of texts ----


def word_tokenizer(*, eos="</s>", template: str | None = None):
    """Words; `template` such as "$A </s>" is what the tokenizer adds by itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {"<pad>": 0, "<unk>": 1, "</s>": 2, "<s>": 3, "en": 4, "a": 5, "b": 6}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if template is not None:
        special = [(token, vocabulary[token]) for token in ("</s>", "<s>", "en") if token in template]
        backend.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", unk_token="<unk>", eos_token=eos)


PAIRS = [{"source": "a b", "target": "b a"}] * 4


@pytest.mark.parametrize(
    ("template", "labels", "added"),
    [
        (None, [6, 5, 2], True), ("$A </s>", [6, 5, 2], False), ("<s> $A", [3, 6, 5, 2], True),
        ("</s> $A", [2, 6, 5, 2], True), ("$A </s> en", [6, 5, 2, 4], False),
    ],
)  # fmt: skip
def test_every_target_ends_with_the_end_of_text(template, labels, added):
    tokenizer = word_tokenizer(template=template)
    data = prepared(PAIRS, "seq2seq", tokenizer)
    assert data.train[0]["labels"].tolist() == labels
    assert data.train.take([0])["labels"].tolist() == [labels]
    assert any("end-of-text token '</s>' was added" in note for note in data.report.notes) == added
    raw = UniversalDataModule(PAIRS, task_spec=data.task_spec, tokenizer=tokenizer)
    assert raw.train.take([0])["labels"].tolist() == [labels]


def test_a_target_that_is_cut_ends_with_the_end_of_text_and_the_loss_is_counted():
    data = prepared([{"source": "a", "target": "a b a b"}] * 2, "seq2seq", word_tokenizer(), max_target_length=3)
    assert data.train[0]["labels"].tolist() == [5, 6, 2]
    assert data.report.lost_tokens == 4


def test_a_tokenizer_without_an_end_is_reported():
    tokenizer = word_tokenizer(eos=None)
    assert any("cannot learn where a target ends" in note for note in prepared(PAIRS, "seq2seq", tokenizer).report.notes)
    texts = ["a b a b a b a b"] * 8
    assert any("follow each other unmarked" in note for note in prepared(texts, "causal_lm", tokenizer, max_length=4).report.notes)
    spec = TaskSpec("causal_lm", max_seq_len=4)
    assert any("follow each other unmarked" in note for note in UniversalDataModule(texts, task_spec=spec, tokenizer=tokenizer).notices)
    whole = prepared(texts, "causal_lm", word_tokenizer(), max_length=4)
    assert not any("unmarked" in note for note in whole.report.notes)


def test_a_classifier_that_pools_at_the_end_of_text_is_given_one():
    from transformers import BartConfig, BartForSequenceClassification

    sizes = {
        "vocab_size": 8, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16, "num_labels": 2,
    }  # fmt: skip
    model = BartForSequenceClassification(BartConfig(**sizes)).eval()
    records = [{"text": "a b" if n % 2 else "b", "label": n % 2} for n in range(4)]
    data = prepared(records, tokenizer=word_tokenizer(), model=model)
    batch = data.train.take(range(4))
    assert sorted(row[row != 0].tolist() for row in batch["input_ids"]) == [[5, 6, 2], [5, 6, 2], [6, 2], [6, 2]]
    assert model(**batch).logits.shape == (4, 2)


def test_a_column_of_numbers_may_be_the_input():
    rows = [{"source": n, "target": "the cat"} for n in (7, 12)]
    written = [{**row, "source": str(row["source"])} for row in rows]
    assert prepared(rows, "seq2seq").train.digest() == prepared(written, "seq2seq").train.digest()


def test_an_empty_cell_is_no_label_of_the_suggested_task():
    rows = [{"text": text, "mood": mood} for text, mood in zip(TEXTS, MOODS, strict=True)]
    found = suggest_task([*rows, {"text": "", "mood": ""}, {"text": " ", "mood": " "}])
    assert (found.task, found.reason) == ("text_classification", "mood holds 2 different labels, and text holds texts")
