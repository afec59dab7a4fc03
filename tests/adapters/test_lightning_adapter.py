"""UniversalModelAdapter: the engine's loss inside Lightning's trainer, its own logs, checkpoints and text."""

from __future__ import annotations

import math
import random
import sys
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader

from tests.kit.fresh import before_its_import
from tests.kit.toys import LENGTH, VOCAB_SIZE, plain_lm, same_weights, tiny_gpt, token_rows, train_set, validation_set
from utils.adapters import ModelCall, UniversalModelAdapter
from utils.errors import ConfigError, ModelError
from utils.training import TrainingConfig
from utils.training.engine.compute.optim import Schedule
from utils.training.engine.loss.tasks import CausalLM
from utils.training.task_spec import TaskSpec

pytestmark = [
    # Lightning's own, about torch's newer tree functions and about loaders without processes.
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
]


def fit(adapter, folder, train=None, validation=None, **settings):
    """Train with Lightning, without a logger; returns its trainer."""
    trainer = pl.Trainer(
        **{"max_epochs": 3, "log_every_n_steps": 1, **settings}, logger=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder, accelerator="cpu",
    )  # fmt: skip
    trainer.fit(adapter, train or DataLoader(train_set(), 8), validation or DataLoader(validation_set(), 4))
    return trainer


class LearningRates(pl.Callback):
    """The learning rate of each optimizer step."""

    def __init__(self):
        self.rates = []

    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])


# ---- forward ----


def test_the_loss_is_the_models_own_for_next_tokens():
    model, ids = tiny_gpt(dropout=0.0).eval(), token_rows(4)
    found = UniversalModelAdapter(model)(ids, labels=ids)
    assert found["logits"].shape == (4, LENGTH, VOCAB_SIZE)
    torch.testing.assert_close(found["loss"], model(ids, labels=ids).loss)


def test_without_labels_there_is_no_loss():
    assert set(UniversalModelAdapter(plain_lm())(token_rows(2))) == {"logits"}


def test_padding_is_not_scored_even_where_labels_name_it():
    model, ids = tiny_gpt(dropout=0.0).eval(), token_rows(2)
    padded = torch.cat([ids, torch.full((2, 4), 7)], dim=1)[:, :LENGTH]
    padded[:, LENGTH - 5 :] = 7
    mask = torch.ones_like(padded)
    mask[:, LENGTH - 5 :] = 0
    short = ids[:, : LENGTH - 5]
    adapter = UniversalModelAdapter(model)
    expected = adapter(short, labels=short)["loss"]
    torch.testing.assert_close(adapter(padded, mask, labels=padded)["loss"], expected)


def test_the_tokenizers_padding_is_not_scored_where_there_is_no_mask():
    model, ids = plain_lm(dropout=0.0).eval(), token_rows(2)
    ids[:, -3:] = 31
    adapter = UniversalModelAdapter(model, tokenizer=SimpleNamespace(pad_token_id=31, eos_token_id=0))
    expected = adapter(ids[:, :-3], labels=ids[:, :-3])["loss"]
    torch.testing.assert_close(adapter(ids, labels=ids)["loss"], expected)


def test_labels_that_are_all_ignored_give_a_loss_of_zero_that_can_be_learned_from():
    adapter, ids = UniversalModelAdapter(plain_lm()), token_rows(2)
    loss = adapter(ids, labels=torch.full_like(ids, -100))["loss"]
    assert loss.item() == 0
    loss.backward()


def test_what_else_a_model_takes_reaches_it():
    model, ids = tiny_gpt(dropout=0.0).eval(), token_rows(2, length=8)
    positions = torch.arange(4, 12).expand(2, -1)
    found = UniversalModelAdapter(model)(ids, position_ids=positions)["logits"]
    torch.testing.assert_close(found, model(ids, position_ids=positions).logits)


# ---- in Lightning's trainer ----


def test_a_trainer_learns_and_logs_under_the_documented_names(tmp_path):
    adapter = UniversalModelAdapter(tiny_gpt(dropout=0.0), learning_rate=3e-3)
    ids = token_rows()
    before = adapter(ids, labels=ids)["loss"].item()
    metrics = fit(adapter, tmp_path).callback_metrics
    assert {"train_loss", "train_perplexity", "val_loss", "val_perplexity"} <= set(metrics)
    assert adapter(ids, labels=ids)["loss"].item() < before - 0.3
    assert metrics["val_perplexity"].item() == pytest.approx(math.exp(metrics["val_loss"].item()))


@pytest.mark.parametrize("batch_size", [2, 4, 9])
def test_the_validation_loss_does_not_depend_on_how_the_data_are_cut(tmp_path, batch_size):
    adapter = UniversalModelAdapter(tiny_gpt(dropout=0.0), learning_rate=1e-3)
    ids = validation_set().tensors[0].clone()
    rows = [{"input_ids": row, "labels": row.clone()} for row in ids]
    rows[0]["labels"][3:] = -100  # so that rows have different numbers of targets
    trainer = fit(adapter, tmp_path, validation=DataLoader(rows, batch_size), max_epochs=1)
    labels = torch.stack([row["labels"] for row in rows])
    adapter.eval()
    expected = CausalLM()(ModelCall(adapter.model), {"input_ids": ids, "labels": labels})
    assert trainer.callback_metrics["val_loss"].item() == pytest.approx(
        expected.loss_sum.item() / expected.num_targets, rel=1e-5
    )


def test_early_stopping_and_checkpoints_can_watch_val_loss(tmp_path):
    from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

    kept = ModelCheckpoint(tmp_path / "kept", monitor="val_loss", save_top_k=2)
    fit(UniversalModelAdapter(plain_lm()), tmp_path, callbacks=[kept, EarlyStopping("val_loss")])
    assert len(list((tmp_path / "kept").iterdir())) == 2


def test_lightnings_checkpoint_is_loaded_into_a_new_model(tmp_path):
    adapter = UniversalModelAdapter(plain_lm(), learning_rate=2e-3, warmup_steps=3, vocab_size=30)
    path = fit(adapter, tmp_path, max_epochs=1).checkpoint_callback.best_model_path
    loaded = UniversalModelAdapter.load_from_checkpoint(path, model=plain_lm(seed=9))
    assert same_weights(loaded.model, adapter.model)
    assert dict(loaded.hparams) == dict(adapter.hparams)
    assert loaded.vocab_size == 30


def test_biases_and_norms_do_not_decay():
    (optimizer,), _ = UniversalModelAdapter(plain_lm(), weight_decay=0.3).configure_optimizers()
    decays = {
        parameter.dim() >= 2: group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]
    }
    assert decays == {True: 0.3, False: 0.0}


def test_the_learning_rate_rises_linearly_and_stays(tmp_path):
    watch = LearningRates()
    adapter = UniversalModelAdapter(plain_lm(), learning_rate=4e-3, warmup_steps=3)
    fit(adapter, tmp_path, max_epochs=2, callbacks=[watch])
    assert watch.rates == pytest.approx([1e-3, 2e-3, 3e-3, *[4e-3] * 7])


def test_the_learning_rate_falls_as_the_engines_schedule_does(tmp_path):
    watch = LearningRates()
    adapter = UniversalModelAdapter(plain_lm(), learning_rate=4e-3, warmup_steps=2, lr_schedule="cosine")
    fit(adapter, tmp_path, max_epochs=2, callbacks=[watch])
    schedule = Schedule(TrainingConfig(learning_rate=4e-3, warmup_steps=2), total_steps=10)
    assert watch.rates == pytest.approx([schedule.at(step) for step in range(10)])


def test_gradients_are_clipped_beside_mixed_precision(tmp_path):
    adapter = UniversalModelAdapter(tiny_gpt())
    fit(adapter, tmp_path, max_steps=2, max_epochs=1, precision="bf16-mixed", gradient_clip_val=1.0)


@pytest.mark.parametrize("shape", ["dict", "pair", "tensor"])
def test_a_batch_may_be_a_dict_a_pair_or_ids(tmp_path, shape):
    ids = token_rows(8)
    rows = {
        "dict": [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in ids],
        "pair": [(row, row) for row in ids],
        "tensor": list(ids),
    }[shape]
    adapter = UniversalModelAdapter(tiny_gpt(dropout=0.0), learning_rate=1e-3)
    metrics = fit(adapter, tmp_path, DataLoader(rows, 4), DataLoader(rows, 4), max_epochs=1).callback_metrics
    adapter.eval()
    assert metrics["val_loss"].item() == pytest.approx(adapter(ids, labels=ids)["loss"].item(), rel=1e-5)


# ---- generate ----


def test_max_length_counts_the_prompt():
    found = UniversalModelAdapter(tiny_gpt()).generate(
        token_rows(2)[:, :3], max_length=9, temperature=0.8, top_k=5, top_p=0.9
    )
    assert found.shape == (2, 9)
    assert torch.equal(found[:, :3], token_rows(2)[:, :3])


def test_without_sampling_the_likeliest_token_is_taken(rng_untouched):
    model, prompt = tiny_gpt(dropout=0.0).eval(), token_rows(2)[:, :5]
    found = UniversalModelAdapter(model).generate(prompt, max_length=6, do_sample=False)
    assert torch.equal(found[:, 5], model(prompt).logits[:, -1].argmax(-1))


def test_the_tokenizers_end_ends_a_text():
    model = plain_lm()
    with torch.no_grad():
        model.head.bias[4] = 100.0
    adapter = UniversalModelAdapter(model, tokenizer=SimpleNamespace(eos_token_id=4, pad_token_id=None))
    assert adapter.generate(token_rows(1)[:, :2], max_length=50).shape == (1, 3)
    assert adapter.generate(token_rows(1)[:, :2], max_length=9, eos_token_id=5, do_sample=False).shape == (1, 9)


def test_ids_beyond_the_vocabulary_are_not_drawn():
    model = plain_lm()
    with torch.no_grad():
        model.head.bias[20:] = 100.0
    found = UniversalModelAdapter(model, vocab_size=20).generate(torch.tensor([[1, 2]]), max_length=30)
    assert found.max() < 20


@pytest.mark.parametrize("max_length", [3, 0, 2.5, True])
def test_a_length_that_leaves_no_room_is_refused(max_length):
    with pytest.raises(ConfigError, match="max_length .*the prompts have 3 tokens already"):
        UniversalModelAdapter(plain_lm()).generate(torch.tensor([[1, 2, 3]]), max_length=max_length)


# ---- what is given ----


def test_what_is_no_model_is_refused():
    with pytest.raises(ModelError, match="got a str"):
        UniversalModelAdapter("gpt2")


def test_a_vocabulary_larger_than_the_models_is_refused_with_both_numbers():
    with pytest.raises(ModelError, match=f"vocab_size=33, but GPT2LMHeadModel has {VOCAB_SIZE} embeddings"):
        UniversalModelAdapter(tiny_gpt(), vocab_size=VOCAB_SIZE + 1)


@pytest.mark.parametrize(
    "argument", [{"learning_rate": 0}, {"warmup_steps": -1}, {"weight_decay": -0.1}, {"vocab_size": 2.0}]
)
def test_settings_out_of_range_are_refused(argument):
    with pytest.raises(ConfigError, match=next(iter(argument))):
        UniversalModelAdapter(plain_lm(), **argument)


def test_a_model_without_gradient_is_refused_before_training():
    with pytest.raises(ModelError, match="nothing to train"):
        UniversalModelAdapter(plain_lm().requires_grad_(False)).configure_optimizers()


def test_an_adapter_is_a_model_for_the_rest_of_the_library():
    model, ids = tiny_gpt(dropout=0.0).eval(), token_rows(2)
    adapter = UniversalModelAdapter(model).eval()
    assert adapter.config is model.config
    assert isinstance(adapter, nn.Module)
    torch.testing.assert_close(ModelCall(adapter)({"input_ids": ids, "labels": ids}), model(ids).logits)


def test_other_tasks_have_their_own_loss_and_no_perplexity(tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    pixels, labels = torch.rand(24, 1, 4, 4), torch.arange(24) % 3
    adapter = UniversalModelAdapter(model, learning_rate=1e-2, task_spec=TaskSpec.image_classification(num_classes=3))
    loader = DataLoader(list(zip(pixels, labels, strict=True)), 8)
    metrics = fit(adapter, tmp_path, loader, loader).callback_metrics
    assert set(metrics) == {"train_loss", "val_loss"}
    expected = nn.functional.cross_entropy(model(pixels), labels).item()
    assert metrics["val_loss"].item() == pytest.approx(expected, rel=1e-5)


def test_the_adapter_is_imported_when_asked_for_and_draws_no_random_number():
    def imported():
        import utils.adapters

        before = random.getstate(), torch.get_rng_state().tolist()
        assert "pytorch_lightning" not in sys.modules
        assert utils.adapters.UniversalModelAdapter is not UniversalModelAdapter, "imported anew"
        assert "pytorch_lightning" in sys.modules
        assert before == (random.getstate(), torch.get_rng_state().tolist())

    before_its_import(imported, "pytorch_lightning", "lightning_fabric", "torchmetrics")
