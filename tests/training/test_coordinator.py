"""train_model and TrainingCoordinator: every kind of data, every argument, every documented error, and going on."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from tests.kit.toys import same_weights, tiny_gpt, token_rows
from utils.adapters import UniversalModelAdapter
from utils.data import UniversalDataModule, prepare_text
from utils.errors import (
    CheckpointNotFoundError,
    ConfigError,
    DataError,
    DataNotFoundError,
    HubError,
    ModelError,
)
from utils.training import Callback, Trainer, TrainingConfig, TrainingCoordinator, export_model, train_model
from utils.training.task_spec import TaskSpec
from utils.ui import PRESETS
from utils.ui.setup_config import SetupConfig

VOCAB_SIZE, LENGTH = 64, 32
TEXTS = [f"line {number}: {number % 7} and {number % 5} are few; then comes line {number + 1}." for number in range(60)]
QUICK = {"max_epochs": 1, "batch_size": 8, "learning_rate": 3e-3}


def model_of(seed: int = 0, **sizes):
    return tiny_gpt(**{"vocab_size": VOCAB_SIZE, "length": LENGTH, "dropout": 0.0, "seed": seed, **sizes})


def classifier_of():
    from transformers import BertConfig, BertForSequenceClassification

    return BertForSequenceClassification(
        BertConfig(
            vocab_size=VOCAB_SIZE, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
            max_position_embeddings=LENGTH, num_labels=2,
        )
    )  # fmt: skip


def trained(dataset=TEXTS, **arguments):
    """A short training with every default that keeps a test fast."""
    return TrainingCoordinator().train(model_of(), dataset, **{**QUICK, **arguments})


def problems_of(error) -> set[str]:
    return {problem.field for problem in error.value.problems}


class StopAfter(Callback):
    def __init__(self, steps):
        self.steps = steps

    def on_step_end(self, step, trainer, logs=None):
        if step == self.steps:
            trainer.request_stop("enough")


# ---- what comes back ----


def test_one_call_trains_and_returns_what_is_documented():
    model = model_of()
    results = train_model(
        model=model, dataset=TEXTS, vocab_size=VOCAB_SIZE, max_epochs=3, batch_size=8, learning_rate=3e-3
    )
    assert Path(results["best_model_path"]).is_file()
    assert results["final_metrics"]["val/loss"] > 0
    assert results["loss_history"][-1] < results["loss_history"][0]
    assert isinstance(results["trainer"], Trainer)
    assert isinstance(results["model"], UniversalModelAdapter)
    assert results["model"].model is model
    assert results["tokenizer"].decode(results["tokenizer"].encode("line 3")) == "line 3"
    assert results.run_dir.resolve() == Path("training_output/exp1").resolve()
    assert set(results) >= {"best_model_path", "final_metrics", "trainer", "model", "tokenizer"}
    assert {key: results[key] for key in results}.keys() == set(results)


def test_the_adapter_writes_what_the_tokenizer_can_read():
    results = trained()
    assert len(results.tokenizer) < VOCAB_SIZE
    prompt = torch.tensor([results.tokenizer.encode("line ")])
    written = results["model"].generate(prompt, max_length=LENGTH, temperature=5.0, seed=1)
    assert written.max() < len(results.tokenizer)


def test_the_results_are_exported_as_any_others():
    exported = export_model(trained(), formats=["hf"])
    assert (Path(exported["hf"].path) / "config.json").is_file()


def test_weights_are_the_trained_models_without_a_checkpoint_too():
    results = trained()
    for path in results.checkpoint_paths:
        Path(path).unlink()
    assert results.final_model_state.keys() == results["model"].model.state_dict().keys()


# ---- data ----


def test_without_data_the_built_in_corpus_is_trained_on_and_it_is_said():
    few = {"max_steps": 2, "max_train_samples": 8, "max_val_samples": 4}
    results = train_model(model_of(vocab_size=128), **few)
    assert results.notices[0].startswith("No data named: trained on the built-in corpus (Python language reference)")
    assert results.steps == 2
    named = train_model(model_of(vocab_size=128), "builtin", **few)
    assert named.final_loss == results.final_loss
    assert not any("No data named" in notice for notice in named.notices)


def _file():
    Path("my.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return "my.txt"


def _table_file():
    pd.DataFrame({"text": TEXTS, "number": 1}).to_csv("my.csv", index=False)
    return "my.csv"


def _folder():
    Path("texts").mkdir()
    (Path("texts") / "train.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    return "texts"


def _hugging_face(**columns):
    from datasets import Dataset

    return Dataset.from_dict(columns or {"text": TEXTS, "number": list(range(len(TEXTS)))})


SOURCES = {
    "texts": lambda: {"dataset": TEXTS},
    "a file by its name": lambda: {"dataset": _file()},
    "a file by its path": lambda: {"dataset_path": Path(_file())},
    "a table's file": lambda: {"dataset": _table_file(), "text_column": "text"},
    "a pattern of paths": lambda: {"dataset_path": Path(_file()).with_stem("*")},
    "a file of a Drive": lambda: {"dataset_path": _file(), "dataset_source": "drive"},
    "a folder": lambda: {"dataset": _folder()},
    "a folder by its path": lambda: {"dataset_path": _folder()},
    "a Hugging Face Dataset": lambda: {"dataset": _hugging_face()},
    "a column of it": lambda: {"dataset": _hugging_face(a=TEXTS, b=["x"] * len(TEXTS)), "text_column": "a"},
    "a DataFrame": lambda: {"dataset": pd.DataFrame({"text": TEXTS})},
    "records": lambda: {"dataset": [{"text": text, "number": 1} for text in TEXTS]},
    "rows of ids": lambda: {"dataset": list(token_rows(40))},
    "one tensor": lambda: {"dataset": token_rows(40)},
    "a TensorDataset": lambda: {"dataset": TensorDataset(token_rows(40))},
    "ids in a Hugging Face Dataset": lambda: {"dataset": _hugging_face(input_ids=token_rows(40).tolist())},
    "ids in a DataFrame": lambda: {"dataset": pd.DataFrame({"input_ids": token_rows(40).tolist()})},
    "samples of a torch Dataset": lambda: {
        "dataset": torch.utils.data.Subset(TensorDataset(token_rows(50)), range(40))
    },
    "prepared data": lambda: {"datamodule": prepare_text(TEXTS, vocab_size=VOCAB_SIZE, block_size=LENGTH)},
    "prepared data as the dataset": lambda: {"dataset": prepare_text(TEXTS, vocab_size=VOCAB_SIZE, block_size=LENGTH)},
    "a UniversalDataModule": lambda: {"datamodule": UniversalDataModule(token_rows(40), token_rows(8, seed=2))},
}


@pytest.mark.parametrize("source", SOURCES)
def test_every_kind_of_data_is_trained_on_and_validated(source):
    results = trained(**{"dataset": None, **SOURCES[source]()})
    assert results.steps > 0
    assert results.final_metrics["val/loss"] > 0
    assert not any("built-in" in notice for notice in results.notices)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning")
def test_a_lightning_datamodule_is_set_up_and_may_have_no_validation():
    import pytorch_lightning as pl

    class Module(pl.LightningDataModule):
        tokenizer = object()

        def setup(self, stage):
            self.rows = token_rows(24)

        def train_dataloader(self):
            return DataLoader(TensorDataset(self.rows), batch_size=8)

    results = trained(None, datamodule=Module())
    assert results.steps == 3
    assert results.val_loss_history == []
    assert results.tokenizer is Module.tokenizer


def test_rows_are_split_by_the_seed_and_every_row_is_used_once():
    first = trained(token_rows(40), val_split=0.25)
    assert "10 of 40 examples, drawn with seed 42, are for validation." in first.notices
    assert first.steps == 4  # 30 rows, 8 at a time
    assert trained(token_rows(40), val_split=0.25).val_loss_history == first.val_loss_history
    assert trained(token_rows(40), val_split=0.25, seed=7).val_loss_history != first.val_loss_history


@pytest.mark.parametrize("make", [lambda text: {"text": text}, lambda text: {"input_ids": [[1, 2, 3]] * len(text)}])
def test_a_data_sets_own_validation_split_is_taken(make):
    from datasets import Dataset, DatasetDict

    parts = DatasetDict(train=Dataset.from_dict(make(TEXTS[:50])), validation=Dataset.from_dict(make(TEXTS[50:])))
    results = trained(parts)
    assert results.val_loss_history
    if results.report is not None:
        assert "10 documents of their own are for validation" in results.report.split
    else:
        assert results.steps == 7  # all 50 rows, 8 at a time
    assert trained(parts, val_split=0).val_loss_history == []


def test_a_folder_of_the_same_name_stands_in_for_the_hub_and_it_is_said():
    _folder()
    results = trained("somebody/texts")
    assert results.notices[0].startswith("The Hub did not give somebody/texts: the folder 'texts' here was read.")


# ---- arguments ----


@pytest.mark.parametrize(
    ("argument", "field"),
    [
        ({"batch_size": 4}, "batch_size"), ({"learning_rate": 1e-3}, "learning_rate"), ({"max_epochs": 2}, "epochs"),
        ({"accumulate_grad_batches": 2}, "gradient_accumulation_steps"), ({"save_top_k": 2}, "keep_best_k"),
        ({"early_stopping_patience": 4}, "early_stopping_patience"), ({"seed": 5}, "random_seed"),
        ({"weight_decay": 0.2}, "weight_decay"), ({"warmup_steps": 3}, "warmup_steps"), ({"precision": "32"}, "precision"),
        ({"gradient_clip_val": 0.5}, "max_grad_norm"), ({"output_dir": "here"}, "output_dir"),
        ({"num_train_epochs": 2}, None),
    ],
)  # fmt: skip
def test_an_argument_is_the_configs_field_or_an_error(argument, field):
    ((name, value),) = argument.items()
    if field is None:
        with pytest.raises(ConfigError, match=f"{name} .*unknown argument; did you mean num_epochs?"):
            trained(**argument)
        return
    assert getattr(trained(**argument, max_steps=5).training_config, field) == value


def test_the_configs_own_name_stands_for_the_documented_one():
    assert TrainingCoordinator().train(model_of(), TEXTS, epochs=1, keep_best_k=2).epochs_trained == 1


def test_the_defaults_are_the_documented_ones():
    config = train_model(model_of(), TEXTS).training_config
    documented = TrainingConfig(
        epochs=3, batch_size=16, learning_rate=1e-4, keep_best_k=3, output_dir="./training_output"
    )
    assert config.diff(documented) == {}


def test_the_coordinators_own_settings_hold_unless_a_call_differs():
    coordinator = TrainingCoordinator("elsewhere", precision="32", gradient_clip_val=0.3)
    results = coordinator.train(model_of(), TEXTS, **QUICK)
    assert results.run_dir.resolve() == Path("elsewhere/exp1").resolve()
    assert (results.training_config.precision, results.training_config.max_grad_norm) == ("32", 0.3)
    changed = coordinator.train(model_of(), TEXTS, **QUICK, max_grad_norm=2.0, use_amp=True)
    assert (changed.training_config.precision, changed.training_config.max_grad_norm) == ("16", 2.0)


def test_train_model_takes_the_coordinators_arguments_too():
    results = train_model(model_of(), TEXTS, **QUICK, output_dir="mine", gradient_clip_val=0.0, use_gpu=False)
    assert results.run_dir.parent.name == "mine"
    assert results.training_config.max_grad_norm == 0


def test_without_the_gpu_it_is_not_even_looked_for(monkeypatch):
    monkeypatch.setenv("TRAINBOOK_DEVICE", "cuda")  # which is not there: whoever asks for it fails
    with pytest.raises(ConfigError, match="there is no such device"):
        TrainingCoordinator(use_gpu=True).train(model_of(), TEXTS, **QUICK)
    assert TrainingCoordinator(use_gpu=False).train(model_of(), TEXTS, **QUICK).steps > 0


def test_the_vocabulary_and_the_block_length_are_kept_to():
    results = trained(vocab_size=40, max_length=16)
    assert len(results.tokenizer) <= 40
    assert results.report.block_size == 16
    assert trained().report.block_size == LENGTH


def test_a_given_tokenizer_is_used():
    tokenizer = prepare_text(TEXTS, vocab_size=VOCAB_SIZE, block_size=LENGTH).tokenizer
    results = trained(TEXTS[:30], tokenizer=tokenizer, vocab_size=VOCAB_SIZE)
    assert results["tokenizer"] is tokenizer
    assert "(given)" in results.report.tokenizer


def test_the_tokenizers_kind_can_be_chosen():
    assert "character" in trained(tokenizer_strategy="character").report.tokenizer.lower()
    big = model_of(vocab_size=400)
    found = TrainingCoordinator().train(big, TEXTS, **QUICK, tokenizer_strategy="bpe")
    assert found.report.tokenizer != trained().report.tokenizer


def test_no_share_is_no_validation():
    results = trained(val_split=0)
    assert results.val_loss_history == []
    assert any("No validation data" in notice for notice in results.notices)
    assert len(trained(val_split=0.5).state.history) > 0


def test_the_seed_decides_the_whole_training():
    assert same_weights(trained(seed=3).bare_model, trained(seed=3).bare_model)
    assert not same_weights(trained(seed=3).bare_model, trained(seed=4).bare_model)


def test_early_stopping_and_the_best_checkpoints():
    results = trained(max_epochs=30, learning_rate=0.5, early_stopping_patience=2, save_top_k=4)
    assert results.stopped_early
    assert results.epochs_trained < 30
    assert len(results.checkpoint_paths) >= 4


def test_callbacks_watch():
    results = trained(callbacks=[StopAfter(2)])
    assert (results.steps, results.stop_reason) == (2, "enough")


def test_ids_are_checked_against_the_named_vocabulary():
    with pytest.raises(DataError, match="vocabulary"):
        train_model(torch.nn.Sequential(torch.nn.Linear(1, 1)), token_rows(20), vocab_size=8)


def test_a_quick_training_is_one_epoch_unless_it_is_told_otherwise():
    coordinator = TrainingCoordinator()
    results = coordinator.quick_train(model_of(), TEXTS, batch_size=8)
    assert (results.epochs_trained, results.training_config.keep_best_k) == (1, 1)
    assert coordinator.quick_train(model_of(), TEXTS, max_epochs=2).epochs_trained == 2


def test_a_table_with_labels_is_learned_by_its_task():
    model = classifier_of()
    table = pd.DataFrame({"text": TEXTS, "label": ["odd" if number % 2 else "even" for number in range(len(TEXTS))]})
    spec = TaskSpec.classification(num_classes=2)
    results = TrainingCoordinator().train(model, table, **QUICK, task_spec=spec, max_length=LENGTH)
    assert 0 <= results.final_metrics["val/accuracy"] <= 1
    assert results["model"].task_spec.task_type == "text_classification"
    assert results["report"].num_rows == len(TEXTS)


# ---- the wizard and the presets ----


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"starter"}))
def test_a_presets_arguments_are_accepted_and_the_hub_names_the_way_out(name):
    preset = PRESETS[name]
    model = model_of(vocab_size=preset.vocab_size, length=preset.max_length)
    with pytest.raises(HubError, match=r'dataset="builtin".*dataset_path="my.txt"'):
        TrainingCoordinator().train(model, **preset.to_dict())


def test_the_starter_preset_trains():
    preset = PRESETS["starter"]
    model = model_of(vocab_size=preset.vocab_size, length=preset.max_length)
    results = TrainingCoordinator().train(model, **preset.to_dict(), max_steps=2, max_val_samples=4)
    assert results.run_name == "starter"
    assert results.training_config.diff(preset.setup().training_config).keys() == {
        "max_steps",
        "max_val_samples",
        "output_dir",
    }


def test_a_setup_means_the_same_here():
    setup = SetupConfig(
        dataset_path=_file(), vocab_size=60, max_length=24, val_split=0.2, tokenizer_strategy="character", epochs=2,
        batch_size=4, gradient_accumulation_steps=2, learning_rate=2e-3, warmup_steps=3, lr_schedule="linear", precision="32",
        early_stopping_patience=7, keep_best_k=2, random_seed=9, label_smoothing=0.1, run_name="set", output_dir="put",
    )  # fmt: skip
    results = TrainingCoordinator().train(model_of(), **setup.to_dict())
    assert results.training_config == setup.training_config
    assert (results.report.block_size, results.run_dir.resolve()) == (24, Path("put/set").resolve())


# ---- errors ----


@pytest.mark.parametrize("call", [train_model, lambda *a, **k: TrainingCoordinator().train(*a, **k)])
def test_everything_that_is_wrong_is_said_before_anything_is_read(call):
    with pytest.raises(ConfigError) as error:
        call(
            model_of(), dataset_path="absent.txt", vocab_size=65, max_length=33, batch_size=0, val_split=0.7,
            config_name="a", tokenizer_strategy="bep",
        )  # fmt: skip
    assert problems_of(error) >= {"vocab_size", "max_length", "batch_size", "val_split", "tokenizer_strategy"}
    assert "takes at most 32 tokens" in str(error.value)
    assert not Path("training_output").exists()


@pytest.mark.parametrize(
    ("arguments", "field", "says"),
    [
        ({"dataset": TEXTS, "dataset_path": "a.txt"}, "dataset_path", "given together with dataset"),
        ({"dataset": TEXTS, "datamodule": object()}, "datamodule", "given together with dataset"),
        ({"dataset": TEXTS, "config_name": "a"}, "config_name", "says nothing about a list of texts"),
        ({"dataset": TEXTS, "text_column": "a"}, "text_column", "says nothing about a list of texts"),
        ({"config_name": "a"}, "config_name", "says nothing about the built-in corpus"),
        ({"dataset": token_rows(9), "max_length": 8}, "max_length", "says nothing about rows of token ids"),
        ({"dataset": token_rows(9), "tokenizer_strategy": "bpe"}, "tokenizer_strategy", "rows of token ids"),
        ({"datamodule": object(), "val_split": 0.3}, "val_split", "says nothing about a datamodule"),
        ({"dataset": 42}, "dataset", "got 42; must be 'builtin'"),
        ({"dataset": {"text": TEXTS}}, "dataset", "got a dict"),
        ({"dataset": DataLoader(token_rows(8))}, "dataset", "give the dataset that it loads"),
        ({"dataset": "a/b/c"}, "dataset", "no id on the Hub"),
        ({"dataset": TEXTS, "dataset_source": "drive"}, "dataset_source", "got 'drive' together with a list of texts"),
        ({"dataset": TEXTS, "dataset_source": "driv"}, "dataset_source", "must be one of"),
        ({"dataset": TEXTS, "val_split": True}, "val_split", "must be a number from 0 to 0.5"),
        ({"dataset": TEXTS, "max_length": 1}, "max_length", "at least 2"),
        ({"dataset": TEXTS, "vocab_size": 0}, "vocab_size", "at least 1"),
        ({"dataset": TEXTS, "task_spec": TaskSpec.masked_lm()}, "task_spec", "got masked_lm"),
        ({"dataset": TEXTS, "tokenizer": [1, 2, 3], "tokenizer_strategy": "bpe"}, "tokenizer_strategy", "keep one"),
        ({"dataset": TEXTS, "tokenizer": [1, 2, 3], "vocab_size": 2}, "vocab_size", "the tokenizer has 3 tokens"),
        ({"dataset": TEXTS, "epochs": 2, "max_epochs": 4}, "epochs", "given twice"),
        ({"dataset": TEXTS, "learning_rat": 1.0}, "learning_rat", "did you mean learning_rate?"),
        ({"dataset": TEXTS, "max_seq_length": 8}, "max_seq_length", "unknown argument"),
        ({"dataset": TEXTS, "datset": 1}, "datset", "did you mean dataset?"),
    ],
)  # fmt: skip
def test_what_contradicts_itself_is_refused(arguments, field, says):
    with pytest.raises(ConfigError, match=re.escape(says)) as error:
        TrainingCoordinator().train(model_of(), **arguments)
    assert field in problems_of(error)


def test_a_coordinator_that_cannot_work_is_not_made():
    with pytest.raises(ConfigError) as error:
        TrainingCoordinator(precision="8", gradient_clip_val=-1, use_gpu="yes")
    assert problems_of(error) == {"precision", "max_grad_norm", "use_gpu"}


def test_a_model_that_is_none_is_refused():
    with pytest.raises(ModelError, match=r"got a str\. Load it first: utils\.models\.load_model"):
        train_model("gpt2", TEXTS)


def test_a_model_that_says_no_vocabulary_needs_one():
    with pytest.raises(ConfigError, match=r"vocab_size .*set it"):
        train_model(torch.nn.Linear(2, 2), TEXTS)


def test_the_documented_errors_are_of_the_documented_kinds():
    with pytest.raises(ValueError, match="max_length"):
        train_model(model_of(), TEXTS, max_length=100)
    with pytest.raises(FileNotFoundError, match=r"absent\.txt"):
        train_model(model_of(), dataset_path="absent.txt")
    with pytest.raises(RuntimeError, match="invalid_dataset"):
        train_model(model_of(), dataset="invalid_dataset")
    with pytest.raises(DataNotFoundError):
        train_model(model_of(), dataset=Path("absent.txt"))
    with pytest.raises(DataNotFoundError, match=r"absent\.csv"):
        train_model(model_of(), dataset="absent.csv")


def test_an_object_that_is_no_datamodule_is_refused():
    with pytest.raises(DataError, match=r"got a object as datamodule; expected an object with train_dataloader\(\)"):
        train_model(model_of(), datamodule=object())


def test_too_few_rows_for_a_validation_part():
    with pytest.raises(DataError, match="got 1 example of token ids"):
        train_model(model_of(), token_rows(1))


def test_a_column_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(DataError, match="the columns of the Dataset are text, number"):
        trained(_hugging_face(), text_column="txt")


# ---- going on ----


def test_a_stopped_training_goes_on_as_if_it_had_not_been():
    path = _file()
    whole = TrainingCoordinator("whole").train(model_of(), path, **{**QUICK, "max_epochs": 3}, seed=5)
    coordinator = TrainingCoordinator("parts")
    stopped = coordinator.train(model_of(), path, **{**QUICK, "max_epochs": 3}, seed=5, callbacks=[StopAfter(7)])
    assert stopped.epochs_trained < 3
    continued = TrainingCoordinator("other").resume_training(stopped.checkpoint_path, model_of(seed=8))
    assert continued.run_dir == stopped.run_dir.absolute() or continued.run_dir.samefile(stopped.run_dir)
    assert same_weights(continued.bare_model, whole.bare_model)
    assert continued.loss_history == whole.loss_history


def test_a_run_is_continued_by_its_folder_or_its_results_too():
    coordinator = TrainingCoordinator()
    stopped = coordinator.train(model_of(), _file(), **{**QUICK, "max_epochs": 2}, callbacks=[StopAfter(2)])
    by_folder = coordinator.resume_training(stopped.run_dir, model_of(), callbacks=[StopAfter(4)])
    assert by_folder.steps == 4
    done = coordinator.resume_training(by_folder, model_of())
    assert (done.epochs_trained, done.run_name) == (2, "exp1")


def test_more_epochs_are_a_new_run_that_begins_where_the_old_one_ended():
    coordinator = TrainingCoordinator()
    first = coordinator.train(model_of(), _file(), **QUICK)
    more = coordinator.resume_training(first.checkpoint_path, model_of(), max_epochs=3)
    assert (more.run_name, more.epochs_trained, len(more.loss_history)) == ("exp2", 3, 3)
    assert more.loss_history[0] == first.loss_history[0]
    assert more.training_config.learning_rate == QUICK["learning_rate"]


def test_from_an_older_checkpoint_a_new_run_starts():
    coordinator = TrainingCoordinator()
    first = coordinator.train(model_of(), _file(), **{**QUICK, "max_epochs": 3})
    older = next(path for path in first.checkpoint_paths if path.endswith("epoch_2.pt"))
    again = coordinator.resume_training(older, model_of(seed=8))
    assert (again.run_name, again.epochs_trained) == ("exp2", 3)
    assert same_weights(again.bare_model, first.bare_model)


def test_data_that_were_objects_are_asked_for_again():
    coordinator = TrainingCoordinator()
    stopped = coordinator.train(model_of(), TEXTS, **QUICK, callbacks=[StopAfter(1)])
    with pytest.raises(
        ConfigError, match=r"run exp1 does not hold its dataset.*resume_training\(path, model, dataset=\.\.\.\)"
    ):
        coordinator.resume_training(stopped.checkpoint_path, model_of())
    assert coordinator.resume_training(stopped.checkpoint_path, model_of(), dataset=TEXTS).stop_reason == "finished"


def test_a_given_tokenizer_is_asked_for_again():
    tokenizer = prepare_text(TEXTS, vocab_size=VOCAB_SIZE, block_size=LENGTH).tokenizer
    coordinator = TrainingCoordinator()
    stopped = coordinator.train(model_of(), _file(), **QUICK, tokenizer=tokenizer, callbacks=[StopAfter(1)])
    with pytest.raises(ConfigError, match="does not hold its tokenizer"):
        coordinator.resume_training(stopped.run_dir, model_of())
    assert coordinator.resume_training(stopped.run_dir, model_of(), tokenizer=tokenizer).stop_reason == "finished"


def test_a_run_remembers_names_that_hold_from_another_folder(monkeypatch):
    stopped = TrainingCoordinator().train(model_of(), _file(), **QUICK, callbacks=[StopAfter(1)])
    kept = json.loads((stopped.run_dir / "data.json").read_text(encoding="utf-8"))
    assert kept["arguments"]["dataset"] == str(Path("my.txt").absolute())
    run_dir = stopped.run_dir.absolute()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert TrainingCoordinator().resume_training(run_dir, model_of()).stop_reason == "finished"


def test_a_run_does_not_name_the_home_folder_of_its_data(monkeypatch):
    monkeypatch.setenv("HOME", str(Path.cwd()))
    monkeypatch.setenv("USERPROFILE", str(Path.cwd()))
    stopped = TrainingCoordinator().train(model_of(), _file(), **QUICK, callbacks=[StopAfter(1)])
    assert json.loads((stopped.run_dir / "data.json").read_text(encoding="utf-8"))["arguments"]["dataset"] == "~/my.txt"
    run_dir = stopped.run_dir.absolute()
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert TrainingCoordinator().resume_training(run_dir, model_of()).stop_reason == "finished"


def test_a_checkpoint_that_is_not_there():
    with pytest.raises(CheckpointNotFoundError, match=r"no checkpoint epoch_9\.pt"):
        TrainingCoordinator().resume_training("epoch_9.pt", model_of())


def test_what_nobody_knows_is_refused_on_a_resume_too():
    stopped = trained(callbacks=[StopAfter(1)])
    with pytest.raises(ConfigError, match="did you mean dataset"):
        TrainingCoordinator().resume_training(stopped.run_dir, model_of(), datset=TEXTS)


def test_a_training_starts_from_a_checkpoint_of_another():
    first = trained()
    second = trained(max_epochs=2, resume_from_checkpoint=first["checkpoint_path"])
    assert (second.epochs_trained, second.run_name) == (2, "exp2")
    assert second.loss_history[0] == first.loss_history[0]


def test_an_object_that_is_given_again_is_used_as_before():
    plain = {**QUICK, "max_epochs": 2, "val_split": 0.3, "max_length": 16, "vocab_size": 40}
    whole = TrainingCoordinator("whole").train(model_of(), TEXTS, **plain)
    coordinator = TrainingCoordinator("parts")
    stopped = coordinator.train(model_of(), TEXTS, **plain, callbacks=[StopAfter(2)])
    continued = coordinator.resume_training(stopped.run_dir, model_of(seed=8), dataset=TEXTS)
    assert continued.run_dir.samefile(stopped.run_dir)
    assert same_weights(continued.bare_model, whole.bare_model)


def test_a_table_that_is_given_again_is_learned_as_before():
    frame = pd.DataFrame({"review": TEXTS, "label": [number % 2 for number in range(len(TEXTS))]})
    arguments = {**QUICK, "text_column": "review", "task_spec": TaskSpec.classification(num_classes=2)}
    coordinator = TrainingCoordinator()
    stopped = coordinator.train(classifier_of(), frame, **arguments, callbacks=[StopAfter(2)])
    continued = coordinator.resume_training(stopped.run_dir, classifier_of(), dataset=frame)
    assert continued.stop_reason == "finished"
    assert continued.task_spec.task_type == "text_classification"
    assert "val/accuracy" in continued["final_metrics"]


def test_a_damaged_note_of_the_data_is_as_none():
    stopped = trained(_file(), callbacks=[StopAfter(1)])
    (stopped.run_dir / "data.json").write_text("[]")
    with pytest.raises(ConfigError, match="does not hold its dataset"):
        TrainingCoordinator().resume_training(stopped.run_dir, model_of())


def test_words_in_place_of_objects_are_refused():
    with pytest.raises(ConfigError, match="must be a TaskSpec") as error:
        trained(task_spec="classification", tokenizer="gpt2")
    assert problems_of(error) == {"task_spec", "tokenizer"}
    for nothing in (None, 5):
        with pytest.raises(ConfigError, match="must be a checkpoint file, a run's folder, or results"):
            TrainingCoordinator().resume_training(nothing, model_of())
