"""The documented examples of the toolkit: adapters, tokenizers, one-call training, export, setup, checks.

Held elsewhere, line by line:
    inspector and executor of models that take outputs of their own nodes: tests/adapters/test_node_outputs.py
    UniversalModelAdapter inside Lightning's Trainer: tests/adapters/test_lightning_adapter.py
    Lightning's checkpoints, their backup and clean-up: tests/training/test_checkpoint_manager.py
    ONNX: tests/export/test_onnx_exporter.py; TorchScript: tests/export/test_export_graphs.py
    what the checks find: tests/checks
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kit.toys import tiny_gpt
from utils.adapters import ModelSignatureInspector, UniversalModelAdapter
from utils.tokenization import (
    AdaptiveTokenizer,
    AdaptiveTokenizerDataModule,
    BPETrainerConfig,
    CharacterLevelTokenizer,
    FastBPETrainer,
    TokenizerValidator,
)
from utils.training import DatasetLoader, ModelCardGenerator, TrainingCoordinator, train_model
from utils.ui import PRESETS, ConfigPresets, SetupWizard

VOCAB_SIZE, LENGTH = 300, 32
TEXTS = [
    f"line {number}: {number % 7} and {number % 5} are few; then comes line {number + 1}." for number in range(120)
]
SPECIAL = ["<pad>", "<unk>", "<s>", "</s>"]


def make_model():
    return tiny_gpt(vocab_size=VOCAB_SIZE, length=LENGTH, dropout=0.0)


@pytest.fixture(scope="module")
def dataset():
    from datasets import Dataset

    return Dataset.from_dict({"text": TEXTS})


@pytest.fixture(scope="module")
def results(tmp_path_factory, dataset):
    """One call that trains."""
    return train_model(
        model=make_model(), dataset=dataset, vocab_size=VOCAB_SIZE, max_epochs=1, batch_size=16, learning_rate=1e-3,
        max_length=LENGTH, output_dir=str(tmp_path_factory.mktemp("trained")),
    )  # fmt: skip


def test_an_ordinary_model_needs_no_outputs_of_its_own_nodes():
    inspector = ModelSignatureInspector(make_model())
    assert "input_ids" in inspector.get_parameters()
    assert inspector.requires_intermediate_outputs() is False
    assert set(inspector.get_signature_info()) >= {"parameters"}


def test_an_adapter_writes():
    adapter = UniversalModelAdapter(model=make_model(), learning_rate=1e-4, vocab_size=VOCAB_SIZE, warmup_steps=500)
    text = adapter.generate(input_ids=torch.tensor([[1, 2, 3]]), max_length=10, temperature=0.8)
    assert text.shape == (1, 10)
    assert text[0, :3].tolist() == [1, 2, 3]


def test_a_tokenizer_is_made_encodes_and_decodes(dataset):
    tokenizer = AdaptiveTokenizer.load_or_create(vocab_size=VOCAB_SIZE, dataset=dataset, cache_dir="./tokenizers")
    encoded = tokenizer.encode("line 7 and few!", max_length=64, padding="max_length")
    assert len(encoded["input_ids"]) == 64
    assert "line 7 and few!" in tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)
    assert TokenizerValidator.validate(tokenizer, expected_vocab_size=len(tokenizer), strict=False) is True
    datamodule = AdaptiveTokenizerDataModule(
        dataset=dataset, tokenizer=tokenizer, batch_size=16, max_length=LENGTH, val_split=0.1, num_workers=0
    )
    datamodule.setup("fit")
    batch = next(iter(datamodule.train_dataloader()))
    assert batch["input_ids"].shape[0] == 16
    assert batch["input_ids"].shape[1] <= LENGTH


def test_a_bpe_tokenizer_is_trained_and_saved(dataset):
    config = BPETrainerConfig(vocab_size=400, min_frequency=2, special_tokens=SPECIAL)
    tokenizer = FastBPETrainer(config).train_on_dataset(texts=dataset["text"], show_progress=False)
    tokenizer.save("my_tokenizer.json")
    assert Path("my_tokenizer.json").is_file()
    assert len(tokenizer.encode(TEXTS[0])) < len(TEXTS[0])


def test_characters_of_any_script_come_back():
    tokenizer = CharacterLevelTokenizer(vocab_size=100_000, special_tokens=SPECIAL)
    encoded = tokenizer.encode("Hello 世界!", max_length=512)
    assert "Hello 世界!" in tokenizer.decode(encoded["input_ids"], skip_special_tokens=True)


def test_one_call_trains(results):
    assert Path(results["best_model_path"]).is_file()
    assert {"best_model_path", "final_metrics", "trainer", "model", "tokenizer"} <= set(results)
    assert results["final_metrics"]["val/loss"] > 0


def test_the_coordinator_takes_the_whole_list_of_arguments(dataset):
    coordinator = TrainingCoordinator(
        output_dir="./training_output", use_gpu=True, precision="32", gradient_clip_val=1.0
    )
    found = coordinator.train(
        model=make_model(), dataset=dataset, vocab_size=VOCAB_SIZE, batch_size=16, max_length=LENGTH, learning_rate=5e-4,
        max_epochs=1, val_split=0.1, accumulate_grad_batches=2, early_stopping_patience=3, save_top_k=3,
        resume_from_checkpoint=None, seed=7,
    )  # fmt: skip
    assert Path(found["best_model_path"]).is_relative_to(Path("training_output").resolve())
    assert found["steps"] > 0


def test_data_are_loaded_counted_and_shown(capsys):
    Path("data.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    loader = DatasetLoader(preprocessing=True, min_length=10, max_length=None, remove_duplicates=False)
    dataset = loader.load_local_file("data.txt", text_column="text")
    assert len(loader.load_from_drive("data.txt")) == len(dataset)
    stats = loader.get_statistics(dataset)
    loader.print_statistics(dataset)
    loader.preview_samples(dataset, num_samples=3)
    assert stats["num_samples"] == len(dataset) == len(TEXTS)
    assert TEXTS[0] in capsys.readouterr().out


def test_a_model_card_has_its_sections(results):
    card = ModelCardGenerator().generate(
        model_name="my-gpt2", model=results["model"], training_results=results, dataset_name="lines",
        vocab_size=VOCAB_SIZE, description="GPT-2 trained on lines", output_path="MODEL_CARD.md",
    )  # fmt: skip
    assert Path("MODEL_CARD.md").read_text(encoding="utf-8") == card
    assert "GPT-2 trained on lines" in card
    assert card.count("\n## ") >= 5


def test_a_wizard_without_a_form_makes_a_setup_that_is_valid(capsys):
    wizard = SetupWizard()
    config = wizard.quick_setup(model=make_model(), preset="tiny", dataset_name="wikitext")
    wizard.print_config(config)
    is_valid, errors = wizard.validate_config(config)
    assert (is_valid, errors) == (True, [])
    assert "wikitext" in capsys.readouterr().out
    assert "wikitext" in config.to_dict().values()


def test_presets_are_looked_up_changed_and_recommended(capsys):
    presets = ConfigPresets()
    presets.print_all_presets()
    documented = {"tiny", "small", "medium", "large", "code_generation", "chat", "summarization"}
    assert documented <= set(PRESETS)
    assert all(name in capsys.readouterr().out or name in PRESETS for name in documented)
    config = presets.get("small")
    assert config.description
    assert config.estimated_time_hours > 0
    custom = presets.customize("small", max_epochs=10, batch_size=32)
    assert custom.to_dict()["batch_size"] == 32
    assert presets.get_recommendation(goal="learning", time_budget_hours=5.0) in PRESETS


def test_the_documented_errors_are_of_the_documented_kinds():
    with pytest.raises((ValueError, FileNotFoundError, RuntimeError)):
        train_model(model=make_model(), dataset="invalid_dataset")
