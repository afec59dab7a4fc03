"""Model cards: what they state, what they say is unknown, text that would break Markdown or YAML, and code that runs."""

from __future__ import annotations

import copy
import re
import runpy
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from torch import nn

from tests.kit.toys import VOCAB_SIZE, golden_config, plain_lm, tiny_gpt, tiny_llama, train_set, validation_set
from utils.checks import run_all_tier1_tests
from utils.data import prepare_data
from utils.errors import ExportError
from utils.models import ModelRegistry
from utils.tokenization.character import build_character_tokenizer
from utils.training import ModelCardGenerator, Trainer, export_model
from utils.training.export import model_card
from utils.training.export.hf import export_hf
from utils.ui import SetupConfig

SECTIONS = [
    "Model details", "Intended use", "Training data", "Training procedure", "Performance metrics", "Checks", "Usage",
    "Limitations", "Environment and energy", "Citation",
]  # fmt: skip


def card_of(*given, **named):
    return ModelCardGenerator().generate(*given, **named)


def section(card, title):
    return re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", card, re.M | re.S)[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run whose data and weights are recorded, from the built-in text."""
    folder = tmp_path_factory.mktemp("runs")
    model = ModelRegistry.create("gpt-small", vocab_size=128, max_seq_len=16, n_layer=1, n_embd=16, n_head=2)
    setup = SetupConfig(max_length=16, max_steps=2, max_train_samples=16, max_val_samples=8, output_dir=str(folder))
    data = prepare_data(setup, model)
    trainer = Trainer(model, training_config=setup.training_config, task_spec=data.task_spec, tokenizer=data.tokenizer)
    return trainer.train(data.train, data.validation)


def test_a_run_is_described_by_what_it_recorded(run):
    card = card_of("my model", run.model, run)
    assert re.findall(r"^## (.+)$", card, re.M) == SECTIONS
    assert "Python language reference" in section(card, "Training data")
    assert "| Training samples | 16 |" in section(card, "Training data")
    assert f"| `learning_rate` | {run.training_config.learning_rate:g} |" in section(card, "Training procedure")
    measured = section(card, "Performance metrics")
    assert f"| val/loss | {run.final_metrics['val/loss']:.6g} | validation data after step 2 |" in measured
    assert "torch 2" in section(card, "Environment and energy")
    assert "| Energy | " in card
    found = ModelCard(card).data
    assert found.pipeline_tag == "text-generation"
    assert found.eval_results[0].metric_value == pytest.approx(run.final_metrics["val/loss"])
    assert str(run.run_dir.parent) not in card


def test_what_nobody_knows_is_said_to_be_unknown():
    card = card_of("bare", nn.Linear(2, 3))
    assert re.findall(r"^## (.+)$", card, re.M) == SECTIONS
    assert "not recorded" in section(card, "Training data")
    assert "Not recorded." in section(card, "Training procedure")
    assert "Nothing was measured" in section(card, "Performance metrics")
    assert "Not stated by the author." in section(card, "Limitations")
    assert ModelCard(card).data.eval_results is None


@pytest.mark.parametrize(
    "given", [{"final_metrics": {"val/loss": 1.5, "note": "good"}}, {"val/loss": 1.5, "model": None}]
)
def test_a_mapping_of_metrics_is_enough(given):
    measured = section(card_of("m", nn.Linear(2, 3), given), "Performance metrics")
    assert "| val/loss | 1.5 | as given by the author |" in measured
    assert "good" not in measured


@pytest.mark.parametrize(
    "name", ['a|b `c` "d" <script>', "x: - {y}\n---\nz", "'single", "owner/name", "%!&*", "ünï 数据", "- item"]
)
def test_names_of_any_kind_break_neither_markdown_nor_yaml(name):
    results = {"val/loss": 1.0}
    card = card_of(name, nn.Linear(2, 3), results, dataset_name=name, output_path="card.md")
    assert re.findall(r"^## (.+)$", card, re.M) == SECTIONS
    assert "<script>" not in card.split("---", 2)[2]
    for line in section(card, "Training data").splitlines():
        assert len(re.findall(r"(?<!\\)\|", line)) in (0, 3)
    data = ModelCard.load("card.md").data
    assert data.eval_results[0].dataset_name == name
    assert (data.datasets == ["owner/name"]) == (name == "owner/name")


@pytest.mark.parametrize("path", ["/Users/someone/my data/a.txt", "C:\\Users\\someone\\a.txt", "~/someone/a.txt"])
def test_a_path_is_shown_without_its_folders(path):
    card = card_of("m", nn.Linear(2, 3), dataset_name=f"file {path}, 3 lines")
    assert "someone" not in card
    assert "a.txt, 3 lines" in card


def test_secrets_are_removed_and_checks_are_listed(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "some-very-secret-value")
    report = run_all_tier1_tests(plain_lm(), SimpleNamespace(vocab_size=VOCAB_SIZE, max_seq_len=16), only=["shapes"])
    card = card_of("m", plain_lm(), description="key some-very-secret-value", checks=report)
    assert "some-very-secret-value" not in card
    assert "| shapes | pass |" in section(card, "Checks")


def test_a_card_that_cannot_be_written_is_an_export_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="could not be written"):
        card_of("m", nn.Linear(2, 3), output_path=tmp_path / "file" / "card.md")


# ---- usage ----


def execute(card, folder, monkeypatch):
    """Run the card's Python code in a folder; returns its globals."""
    (code,) = re.findall(r"```python\n(.*?)```", section(card, "Usage"), re.S)
    monkeypatch.chdir(folder)
    (folder / "usage.py").write_text(code)
    return runpy.run_path("usage.py")


def tiny(kind):
    import transformers

    torch.manual_seed(0)
    small = {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    if kind in ("BertForSequenceClassification", "BertForTokenClassification", "BertForMaskedLM", "BertModel"):
        return getattr(transformers, kind)(transformers.BertConfig(**small, max_position_embeddings=32))
    if kind == "T5ForConditionalGeneration":
        return transformers.T5ForConditionalGeneration(
            transformers.T5Config(vocab_size=VOCAB_SIZE, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2, decoder_start_token_id=0)
        )  # fmt: skip
    if kind == "ViTForImageClassification":
        del small["vocab_size"]
        return transformers.ViTForImageClassification(transformers.ViTConfig(**small, image_size=8, patch_size=4))
    return {"gpt": tiny_gpt, "llama": tiny_llama}[kind]()


def tokenizer():
    return build_character_tokenizer(["The quick brown fox"], vocab_size=VOCAB_SIZE)


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        ("gpt", "output"), ("llama", "output"), ("T5ForConditionalGeneration", "output"),
        ("BertForSequenceClassification", "output"), ("BertForTokenClassification", "output"),
        ("BertForMaskedLM", "output"), ("BertModel", "output"), ("ViTForImageClassification", "output"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("with_tokenizer", [True, False])
def test_the_usage_code_of_a_transformers_folder_runs(kind, output, with_tokenizer, tmp_path, monkeypatch, capsys):
    model = tiny(kind).eval()
    model.save_pretrained(tmp_path)
    if with_tokenizer and not kind.startswith("ViT"):
        tokenizer().save_pretrained(tmp_path)
    done = execute(card_of("m", model, exports=[tmp_path]), tmp_path, monkeypatch)
    assert done[output] is not None
    assert capsys.readouterr().out
    assert torch.equal(next(done["model"].parameters()), next(model.parameters()))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    results = Trainer(
        tiny_gpt(layers=1), training_config=golden_config(epochs=1, output_dir=str(tmp_path_factory.mktemp("runs"))), tokenizer=tokenizer()
    ).train(train_set(), validation_set())  # fmt: skip
    return results, export_model(results, formats=["hf", "onnx", "safetensors"])


@pytest.mark.parametrize("name", ["hf", "onnx", "safetensors"])
def test_every_export_has_a_card_whose_code_runs(name, exported, monkeypatch):
    results, exports = exported
    folder = exports[name].path
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert f"Source: the history of run `{results.run_name}`" in card
    done = execute(card, folder, monkeypatch)
    made = {"hf": "output", "onnx": "outputs", "safetensors": "weights"}[name]
    assert len(done[made])


def test_the_metrics_are_those_of_the_weights_that_were_exported(exported):
    _, exports = exported
    card = (exports["hf"].path / "README.md").read_text(encoding="utf-8")
    assert f"validation data after step {exports['hf'].step}" in card


def test_a_card_of_all_exports_shows_each(exported):
    results, exports = exported
    used = section(card_of("m", results.model, results, exports=exports), "Usage")
    assert re.findall(r"^### (.+)$", used, re.M) == ["transformers", "ONNX Runtime", "safetensors"]
    assert used == section(card_of("m", results.model, results), "Usage")


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # peft's own
def test_the_usage_code_of_a_merged_adapter_loads_the_merged_model(tmp_path, monkeypatch):
    peft = pytest.importorskip("peft")
    adapted = peft.get_peft_model(tiny("gpt"), peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True))
    merged = copy.deepcopy(adapted).merge_and_unload()
    merged.save_pretrained(tmp_path)
    done = execute(card_of("m", adapted, exports=[tmp_path]), tmp_path, monkeypatch)
    assert type(done["model"]).__name__ == "GPT2LMHeadModel"


def test_an_export_is_kept_where_its_card_cannot_be_written(exported, monkeypatch, tmp_path):
    def fails(*arguments):
        raise AttributeError("a config without a size")

    monkeypatch.setattr(model_card, "usage_of", fails)
    done = export_model(exported[0], formats=["safetensors"], output_dir=tmp_path)["safetensors"]
    assert done.path.is_dir()
    assert "no model card in the folder: AttributeError: a config without a size" in done.notes[-1]


def test_hf_folders_written_directly_have_no_card(tmp_path):
    export_hf(tiny_gpt().eval(), None, tmp_path / "hf", "none")
    assert not (tmp_path / "hf" / "README.md").exists()
