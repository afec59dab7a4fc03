"""The old functions train and search as documented, by their old names, and say what to write instead."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.kit.toys import plain_lm, tiny_gpt, token_rows
from utils import HOME, tier3_training_utilities
from utils.errors import ConfigError
from utils.training import Trainer, TrainingConfig, legacy_api

KEYS = (
    "loss_history", "final_loss", "final_perplexity", "training_time", "metrics_summary", "best_epoch", "grad_norm_history",
    "amp_enabled",
)  # fmt: skip


def rows(count=16):
    return list(token_rows(count))


def fine_tune(*arguments, **options):
    with pytest.warns(DeprecationWarning, match=r"test_fine_tuning\(\) is deprecated; use Trainer"):
        return tier3_training_utilities.test_fine_tuning(*arguments, **options)


def search(*arguments, **options):
    with pytest.warns(DeprecationWarning, match="use search_hyperparameters"):
        return legacy_api.test_hyperparameter_search(*arguments, **{"n_trials": 2, "n_epochs": 1, **options})


def test_old_arguments_train_what_the_engine_would_train():
    model = plain_lm()
    results = fine_tune(
        model=model, config=SimpleNamespace(vocab_size=32), train_data=rows(), val_data=rows(4), n_epochs=2, learning_rate=1e-2,
        batch_size=8, gradient_clip_norm=0.5, gradient_accumulation_steps=2, weight_decay=0.1, random_seed=7,
    )  # fmt: skip
    config = TrainingConfig(
        epochs=2, learning_rate=1e-2, batch_size=8, max_grad_norm=0.5, gradient_accumulation_steps=2, weight_decay=0.1,
        random_seed=7, use_amp=False,
    )  # fmt: skip
    direct = Trainer(plain_lm(), None, config).train(rows(), rows(4))
    assert results["loss_history"] == direct["loss_history"]
    assert all(key in results for key in KEYS)
    assert not results["amp_enabled"]


def test_new_names_are_taken_too():
    results = fine_tune(plain_lm(), None, rows(), max_epochs=1, precision="32", run_name="named")
    assert (results.epochs_trained, results.run_name) == (1, "named")


def test_without_data_it_is_the_builtin_corpus_and_that_is_said():
    results = fine_tune(tiny_gpt(vocab_size=300), None, max_steps=2, n_epochs=1)
    assert "built-in corpus" in results.notices[0]
    assert results.steps == 2
    assert results.tokenizer is not None


def test_the_search_takes_the_old_names_and_returns_the_configs():
    space = {"lr": (1e-5, 1e-3), "batch_size": [4, 8], "wd": (1e-6, 1e-2), "warmup": (0, 3)}
    results = search(plain_lm, None, rows(), search_space=space)
    assert set(results["best_params"]) == {"learning_rate", "batch_size", "weight_decay", "warmup_steps"}
    assert 1e-5 <= results["best_params"]["learning_rate"] <= 1e-3
    assert len(results["trials"]) == 2


def test_a_searched_model_keeps_its_weights():
    model = plain_lm()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    results = search(model=model, config=None, train_data=rows(), val_data=rows(4), timeout=3600)
    assert set(results["best_params"]) == {"learning_rate", "batch_size", "weight_decay"}
    assert all(torch.equal(mine, parameter) for mine, parameter in zip(before, model.parameters(), strict=True))


def test_a_search_needs_one_model():
    with pytest.raises(ConfigError, match="neither"):
        search(train_data=rows())
    with pytest.raises(ConfigError, match="both"):
        search(plain_lm, model=plain_lm(), train_data=rows())


def test_pytest_leaves_the_documented_names_alone():
    for face in (tier3_training_utilities, legacy_api):
        assert face.test_fine_tuning.__test__ is False
        assert face.test_hyperparameter_search.__test__ is False


CALLER = """
from utils.tier3_training_utilities import {name}

def call():
    try:
        {name}({arguments})
    except Exception as error:
        print(type(error).__name__)
"""


def shown_to_a_caller(name, *options, before=""):
    """Standard error of a script whose imported module calls the function."""
    arguments = {"test_fine_tuning": "None, train_data=[]", "test_hyperparameter_search": ""}[name]
    Path("helper.py").write_text(CALLER.format(name=name, arguments=arguments))
    Path("script.py").write_text(f"{before}\nimport helper\nhelper.call()\n")
    done = subprocess.run([sys.executable, *options, "script.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.mark.parametrize("name", ["test_fine_tuning", "test_hyperparameter_search"])
def test_the_notice_is_seen_from_an_imported_module_with_version_date_and_guide(name):
    notice = shown_to_a_caller(name)
    assert "=" * 80 in notice
    assert f"DEPRECATION WARNING: {name}() is deprecated" in notice
    assert "will be removed in v4.0.0 (Q3 2025)" in notice
    assert "helper.py:6: DeprecationWarning" in notice
    assert "See docs/MIGRATION_GUIDE.md" in notice
    guide = (HOME / "docs/MIGRATION_GUIDE.md").read_text(encoding="utf-8")
    assert name in guide


@pytest.mark.parametrize(("options", "before"), [
    (("-W", "ignore::DeprecationWarning"), ""),
    ((), "import warnings\nwarnings.filterwarnings('ignore')"),
    ((), "import warnings\nwarnings.simplefilter('ignore', DeprecationWarning)"),
    ((), "import warnings\nwarnings.filterwarnings('ignore', message='(?s).*DEPRECATION')"),
], ids=["command line", "all", "category", "message"])  # fmt: skip
def test_who_silences_the_notice_does_not_see_it(options, before):
    assert "DEPRECATION" not in shown_to_a_caller("test_hyperparameter_search", *options, before=before)
