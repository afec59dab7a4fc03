"""Pretrained models: facts shown before loading, the head of the task, what the checkpoint lacks, new tokens."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as hf

from benchmarks.finetuning import save_family
from tests.kit.hub_server import asked_here
from utils.data import prepare_data
from utils.errors import ConfigError, HubError, ModelError, ModelNotFoundError
from utils.models import ModelRegistry, extend_vocabulary, inspect_pretrained, load_pretrained
from utils.models.pretrained_facts import describe_on_hub
from utils.tokenization import train_bpe
from utils.ui.setup_config import SetupConfig


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("pretrained")
    for name in ("GPT-2", "BERT", "T5", "ViT"):
        save_family(name, home / name)
    (home / "GPT-2" / "README.md").write_text("---\nlicense: apache-2.0\n---\n# A model\n", encoding="utf-8")
    return home


def test_a_model_is_described_before_it_is_loaded(folders):
    facts = inspect_pretrained(folders / "GPT-2")
    model = hf.GPT2LMHeadModel.from_pretrained(folders / "GPT-2")
    assert (facts.architecture, facts.model_type, facts.dtype) == ("GPT2LMHeadModel", "gpt2", "fp32")
    assert facts.parameters == sum(p.numel() for p in model.parameters())
    assert facts.bytes_on_disk == (folders / "GPT-2" / "model.safetensors").stat().st_size
    assert (facts.vocab_size, facts.context_length, facts.licence) == (60, 64, "apache-2.0")
    assert "config.json" in facts.files
    assert facts.safe
    assert "GPT2LMHeadModel" in str(facts)


def test_a_model_of_the_hub_is_described_without_its_weights(folders, monkeypatch, tmp_path):
    files = {path.name: path.read_bytes() for path in (folders / "GPT-2").iterdir()}
    pickled = {"config.json": files["config.json"], "pytorch_model.bin": b"0" * 1000}
    repositories = {"me/gpt": {"main": files}, "me/old": {"main": pickled}, "me/text": {"main": {"README.md": b"# Text"}}}
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with asked_here(repositories) as hub:
        found = describe_on_hub("me/gpt")
        here = inspect_pretrained(folders / "GPT-2")
        for name in ("architecture", "model_type", "bytes_on_disk", "vocab_size", "context_length", "licence", "weights", "safe"):
            assert getattr(found, name) == getattr(here, name)
        assert not any("safetensors" in asked for asked in hub.asked)
        old = describe_on_hub("me/old")
        assert (old.bytes_on_disk, old.safe, old.licence) == (1000, False, None)
        with pytest.raises(HubError, match="has no model 'me/nothing'"):
            describe_on_hub("me/nothing")
        with pytest.raises(ModelError, match="no config.json"):
            describe_on_hub("me/text")
    with pytest.raises(ModelNotFoundError, match="no Hub id"):
        describe_on_hub("./folder")
    assert list(tmp_path.rglob("config.json")) == [], "a config alone would look like a model that was downloaded"


@pytest.mark.parametrize(("name", "task", "kind", "new"), [
    ("GPT-2", "causal_lm", "GPT2LMHeadModel", set()),
    ("GPT-2", "text_classification", "GPT2ForSequenceClassification", {"score.weight"}),
    ("BERT", "text_classification", "BertForSequenceClassification", {"classifier.weight", "classifier.bias"}),
    ("BERT", "token_classification", "BertForTokenClassification", {"classifier.weight", "classifier.bias"}),
    ("T5", "seq2seq", "T5ForConditionalGeneration", set()),
    ("ViT", "image_classification", "ViTForImageClassification", {"classifier.weight", "classifier.bias"}),
])  # fmt: skip
def test_the_task_chooses_the_head_and_what_is_new_is_listed(folders, name, task, kind, new):
    spec = {"name": "x", "task_type": task, "modality": "vision" if name == "ViT" else "text"}
    classes = {"num_classes": 3} if "classification" in task else {}
    loaded = load_pretrained(folders / name, {**spec, **classes}, labels=list("abc") if classes else None)
    assert type(loaded.model).__name__ == kind
    assert set(loaded.missing) == new
    if classes:
        assert loaded.model.config.id2label == {0: "a", 1: "b", 2: "c"}
        assert "starts with new values" in loaded.notices[0]
    torch.rand(1)  # the new values do not follow the global generator
    again = load_pretrained(folders / name, {**spec, **classes})
    state = loaded.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.model.state_dict().items())


def test_the_registry_makes_the_same_model(folders):
    model = ModelRegistry.create("pretrained", source=folders / "GPT-2")
    saved = hf.GPT2LMHeadModel.from_pretrained(folders / "GPT-2").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in model.state_dict().items())


def test_what_cannot_be_loaded_is_refused_with_the_way_out(folders, tmp_path):
    with pytest.raises(ModelNotFoundError, match="working folder"):
        load_pretrained("./nothing-here")
    with pytest.raises(ConfigError, match="no such head"):
        load_pretrained(folders / "ViT", "causal_lm")
    with pytest.raises(ConfigError, match="2 names for 3 classes"):
        load_pretrained(
            folders / "BERT", {"name": "x", "task_type": "text_classification", "num_classes": 3}, labels="ab"
        )
    (tmp_path / "config.json").write_text((folders / "GPT-2" / "config.json").read_text())
    with pytest.raises(ModelError, match="no weights"):
        inspect_pretrained(tmp_path)
    model = hf.GPT2LMHeadModel.from_pretrained(folders / "GPT-2")
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match="safetensors_only=False"):
        inspect_pretrained(tmp_path)
    assert not inspect_pretrained(tmp_path, safetensors_only=False).safe
    loaded = load_pretrained(tmp_path, safetensors_only=False).model.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in model.state_dict().items())
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 16)
    with pytest.raises(ModelError, match="damaged"):
        inspect_pretrained(tmp_path)


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_start_as_the_mean_and_tied_weights_stay_tied(tied):
    tokenizer = train_bpe(["some text to learn from\n"] * 3, 270)
    torch.manual_seed(0)
    config = hf.GPT2Config(
        vocab_size=len(tokenizer), n_positions=16, n_embd=8, n_layer=1, n_head=1, tie_word_embeddings=tied
    )
    model = hf.GPT2LMHeadModel(config)
    before, used = model.transformer.wte.weight.detach().clone(), len(tokenizer)
    head = model.lm_head.weight.detach().clone()
    ids = extend_vocabulary(model, tokenizer, ["<|user|>", "<|assistant|>"])
    assert ids == [used, used + 1]
    assert model.config.vocab_size == used + 2
    assert torch.equal(model.transformer.wte.weight[:used], before)
    assert torch.allclose(model.transformer.wte.weight[ids], before.mean(0).expand(2, -1))
    assert torch.allclose(model.lm_head.weight[ids], head.mean(0).expand(2, -1))
    assert (model.lm_head.weight is model.transformer.wte.weight) == tied
    assert extend_vocabulary(model, tokenizer, ["<|user|>"]) == [used]


def test_a_tokenizer_of_another_model_is_named(folders, tmp_path):
    hf.GPT2LMHeadModel.from_pretrained(folders / "GPT-2").save_pretrained(tmp_path)
    train_bpe(["some text to learn from\n"] * 3, 270).save_pretrained(tmp_path)
    loaded = load_pretrained(tmp_path)
    assert len(loaded.tokenizer) > 60
    assert any("the model 60 rows" in sentence for sentence in loaded.notices)


@pytest.mark.parametrize("name", ["text.txt", "chat.jsonl"])
def test_data_are_prepared_with_the_tokenizer_of_the_checkpoint(tmp_path, name):
    tokenizer = train_bpe(["What comes after 7? 8.\n"] * 5, 300)
    size = {"vocab_size": 300, "n_positions": 64, "n_embd": 8, "n_layer": 1, "n_head": 1}
    hf.GPT2LMHeadModel(hf.GPT2Config(**size)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    lines = [f"What comes after {n}? {n + 1}." for n in range(200)]
    if name == "chat.jsonl":
        lines = [json.dumps(dict(zip(("question", "answer"), line.split("? "), strict=True))) for line in lines]
    (tmp_path / name).write_text("\n".join(lines), encoding="utf-8")
    model = ModelRegistry.create("pretrained", source=tmp_path / "model")
    setup = SetupConfig(dataset_source="local", dataset_path=str(tmp_path / name), max_length=64, vocab_size=300)
    data = prepare_data(setup, model)
    assert tokenizer.get_vocab().items() <= data.tokenizer.get_vocab().items()  # a chat template may add to it
