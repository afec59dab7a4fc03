"""P12: no password, token or key reaches a file, a log, a service or a screen."""

from __future__ import annotations

import ast
import json
import logging
import sys
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.kit.toys import golden_config, tiny_gpt, train_set, validation_set
from tests.kit.tree import dotted, python_sources
from tests.training.test_tracking import FakeWandb
from utils import colab
from utils.errors import CallbackError, ConfigError, DataError, Problem, TrainingInterrupted
from utils.scrubbing import LOGGERS, describe_error, environment_read_once, remember_secret, scrub, scrubbed
from utils.storage import write_json
from utils.training import Callback, JobConfig, JobQueue, RunTable, TaskSpec, Trainer, TrainingConfig, export_model
from utils.training.engine.checkpointing.store import newest
from utils.training.search import search_hyperparameters
from utils.ui import SetupConfig
from utils.ui.wizard_code import CODE_FORMS, setup_code
from utils.views.display import show_text
from utils.views.html import alert
from widgets.guarded import error_details, error_sentence

# Put together here, so that no scanner of this tree takes them for real ones.
PASSWORD = "hunter2" + "Xq9"
TOKEN = "hf_" + "Ab3" * 11 + "z"
URL = f"https://anna:{PASSWORD}@example.org/data.csv"
SECRET_TEXTS = [
    (URL, PASSWORD), (f"https://{PASSWORD}@example.org/x.git", PASSWORD), (f"postgresql://u:{PASSWORD}@db/study", PASSWORD),
    (f"https://u:p@{PASSWORD}@example.org", PASSWORD), (f"GET https://x.org/a?b=1&access_token={PASSWORD}&c=2", PASSWORD),
    (f"https://s3.org/a?X-Amz-Credential=AKIA&X-Amz-Signature={PASSWORD}", PASSWORD), (f"https://x.org/a?sig={PASSWORD}", PASSWORD),
    (f"cannot log in with {TOKEN}.", TOKEN), ("key sk-" + "a1B2" * 6, "a1B2a1B2"), ("sk-proj-" + "a1-B2_" * 6, "a1-B2"),
    ("ghp_" + "a1B2" * 9, "a1B2a1B2"), ("github_pat_" + "a1_B2" * 9, "a1_B2"), ("glpat-" + "a1B2" * 6, "a1B2"),
    ("AKIA" + "A1B2" * 4, "A1B2A1B2"), ("xoxb-" + "1234-abcd-5678", "abcd"), ("AIza" + "a1B2_" * 7, "a1B2_"),
    ("eyJ" + "hbGciOiJI" + ".eyJ" + "zdWIiOiIx" + "." + "c2lnbmF0dXJl", "c2lnbmF0"), (f"api_key={PASSWORD}", PASSWORD),
    (f'{{"api_key": "{PASSWORD}"}}', PASSWORD), (f"WANDB_API_KEY: {PASSWORD}", PASSWORD), (f"password = '{PASSWORD}'", PASSWORD),
    (f"Authorization: Bearer {PASSWORD * 2}", PASSWORD), ("wandb login " + "0123456789" * 4, "01234567"),
    ("wandb: key " + "abcdef0123" * 4, "abcdef"),
    ("-----BEGIN " + "RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----", "MIIEow"),
]  # fmt: skip


@pytest.fixture(autouse=True)
def no_secret_is_remembered_after_a_test(monkeypatch):
    monkeypatch.setattr("utils.scrubbing._seen", set())


@pytest.mark.parametrize(("text", "secret"), SECRET_TEXTS, ids=lambda text: text[:20])
def test_a_secret_is_known_by_its_place_or_its_shape(text, secret):
    assert secret in text
    assert secret not in scrub(text)
    assert "***" in scrub(text)
    assert secret not in scrub(f"Error in\n  {text}\nand more of {text}")


@pytest.mark.parametrize("text", [
    "pad_token='<|endoftext|>' and eos_token: </s>", "pad_token_id=50256", "token 50257 is out of range", "12,345 tokens: 3 epochs",
    "https://huggingface.co/datasets/Salesforce/wikitext?row=1", "data/*.txt", "key=value", "sqlite:///runs/study.db", "anna@example.org",
    "commit 0123456789012345678901234567890123456789", "a task-specific run", "sk-learn-forest", "d_key: 64",
    "the secret of success", "author=somebody-or-other", "hf_datasets/wikitext", "tokenizer_strategy: character",
])  # fmt: skip
def test_ordinary_text_stays_as_it_is(text):
    assert scrub(text) == text


def test_the_environment_is_read_once_for_a_drawing_and_again_for_the_next(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "first of the values")
    with environment_read_once():
        monkeypatch.setenv("MY_SERVICE_TOKEN", "second of the values")
        remember_secret("a value that was read meanwhile")
        assert scrub("first of the values, a value that was read meanwhile") == "***, ***"
    assert scrub("second of the values") == "***"


def test_values_of_environment_variables_and_of_colabs_secrets_are_secrets(monkeypatch):
    monkeypatch.setenv("MY_SERVICE_TOKEN", "plain words only")
    monkeypatch.setenv("OTHER_API_KEY", "none")
    assert scrub("it said: plain words only, none") == "it said: ***, none"
    monkeypatch.setenv("NEUTRAL", "a quiet afternoon")
    assert scrub("a quiet afternoon") == "a quiet afternoon"
    assert colab.secret("NEUTRAL") == "a quiet afternoon"
    assert scrub("a quiet afternoon") == "***"
    remember_secret("abc")
    assert scrub("abc is too short to be one") == "abc is too short to be one"


def test_plain_values_are_scrubbed_by_their_text_and_by_their_names():
    values = {"api_key": "short", "url": [URL, 3, None], "rate": 0.1, "pair": ("a", TOKEN), "password": ""}
    assert scrubbed(values) == {
        "api_key": "***", "url": ["https://***@example.org/data.csv", 3, None], "rate": 0.1, "pair": ("a", "***"), "password": "",
    }  # fmt: skip


class Leak(Callback):
    """Raises what a client library might: an error with a URL, credentials included."""

    def on_step_end(self, step, trainer, logs=None):
        if step == 2:
            raise ConnectionError(f"cannot reach {URL} with {TOKEN}")


def leaky_config(**changes):
    return golden_config(epochs=1, run_name="leaky", notes=f"data from {URL}", **changes)


def everything_in(folder):
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def assert_clean(texts):
    for name, content in texts.items():
        data = content if isinstance(content, bytes) else str(content).encode()
        assert PASSWORD.encode() not in data, name
        assert TOKEN.encode() not in data, name


def test_no_file_of_a_run_that_failed_holds_a_secret(caplog):
    caplog.set_level(logging.DEBUG)
    spec = TaskSpec.language_modeling(preprocessing_config={"source": URL, "key": {"api_key": PASSWORD}})
    trainer = Trainer(tiny_gpt(), None, leaky_config(), spec, callbacks=[Leak()])
    trainer.description = {"data": {"path": URL}}
    with pytest.raises(Exception, match="cannot reach") as caught:
        trainer.train(train_set(), validation_set())
    files = everything_in("runs")
    assert {"state.json", "config.yaml", "history.jsonl", "environment.json"} <= {path.name for path in files}
    assert any(path.suffix == ".pt" for path in files)
    assert_clean({**files, "message": caught.value, "notices": trainer.notices, "log": caplog.text})
    assert "ConnectionError: cannot reach https://***@example.org" in json.loads(Path("runs/leaky/state.json").read_text())["error"]
    _, payload = newest(Path("runs/leaky/checkpoints"))
    assert_clean({"config": payload["config"], "task_spec": payload["task_spec"]})


def test_f35_a_key_of_the_environment_is_in_nothing_that_is_written_sent_or_shown(monkeypatch, caplog, capfd):
    """The key has no shape by which it could be known: only its value gives it away."""
    caplog.set_level(logging.DEBUG)
    key = "CANARY" + "quietAfternoon" * 2
    monkeypatch.setenv("OPENAI_API_KEY", key)
    service = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", service)
    settings = {"notes": f"asked with {key}", "wandb_project": "p"}

    class Refused(Callback):
        def on_step_end(self, step, trainer, logs=None):
            raise ConnectionError(f"401 for {key}")

    results = Trainer(tiny_gpt(), None, golden_config(run_name="good", epochs=1, **settings)).train(train_set(), validation_set())
    exported = export_model(results, formats=["safetensors"], output_dir="exports")
    with pytest.raises(CallbackError) as caught:
        Trainer(tiny_gpt(), None, golden_config(run_name="bad", epochs=1, **settings), callbacks=[Refused()]).train(train_set())
    job = {"model_factory": "tests.kit.toys:plain_lm", "train_data": "tests.kit.toys:train_set", "max_attempts": 1}
    with closing(JobQueue("sqlite:///jobs.db")) as queue:
        with pytest.raises(ConfigError, match="a queue must not store"):
            queue.submit_job(JobConfig(**job, training_config=golden_config(run_name=None, **settings)))
        number = queue.submit_job(JobConfig(**job, training_config=golden_config(run_name=None)))
        queue.work(1, callbacks=[Refused()])
        status, messages = queue.get_job_status(number), queue.get_job_logs(number).to_string()
    print(*RunTable("runs").list_runs(), results, exported, results.notices)
    written = everything_in(".")
    assert {".pt", ".db", ".json", ".jsonl", ".safetensors", ".sqlite"} <= {path.suffix for path in written}
    shown = {"error": caught.value, "log": caplog.text, "screen": "".join(capfd.readouterr()), "job": f"{status} {messages}"}
    sent = {"run": service.inits, "rows": service.rows}
    for name, content in {**written, **shown, **sent}.items():
        assert key.encode() not in (content if isinstance(content, bytes) else str(content).encode()), name
    assert "401 for ***" in str(shown["job"])


def test_a_run_whose_settings_held_a_secret_is_resumed_exactly():
    config = leaky_config(max_steps=2)
    Trainer(tiny_gpt(), None, config).train(train_set(), validation_set())
    more = config.replace(max_steps=None, on_config_change="continue")
    results = Trainer(tiny_gpt(seed=9), None, more).train(train_set(), validation_set(), resume_from="auto")
    assert results.stop_reason == "finished"
    assert not [notice for notice in results.notices if "notes" in notice]


def test_a_service_is_sent_no_secret(monkeypatch):
    module = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    Trainer(tiny_gpt(), None, leaky_config(wandb_project="p")).train(train_set(), validation_set())
    assert_clean({"init": module.inits, "rows": module.rows})
    assert module.inits[0]["notes"] == "data from https://***@example.org/data.csv"


def test_a_failed_trial_is_recorded_without_secrets():
    results = search_hyperparameters(
        lambda **_: tiny_gpt(), {"learning_rate": [1e-3, 1e-2]}, train_set(), validation_set(), strategy="grid",
        training_config=golden_config(epochs=1, run_name=None), callbacks=[Leak()],
    )  # fmt: skip
    assert [trial.status for trial in results.trials] == ["failed", "failed"]
    assert_clean({**everything_in("runs"), "summary": results.to_frame().to_string()})


@pytest.mark.parametrize("name", ["setup.yaml", "setup.json"])
def test_a_saved_setup_holds_no_secret(name):
    setup = SetupConfig(dataset_path=URL, notes=TOKEN)
    setup.save(name)
    assert_clean(everything_in("."))
    assert SetupConfig.load(name).dataset_path == "https://***@example.org/data.csv"
    TrainingConfig(notes=URL, output_dir=URL).save(f"training-{name}")
    assert_clean(everything_in("."))


@pytest.mark.parametrize("form", CODE_FORMS)
def test_a_setup_that_is_copied_as_code_holds_no_secret(form):
    setup = SetupConfig(dataset_path=URL, notes=TOKEN)
    code = setup_code(form, setup)
    assert "***@example.org" in code
    assert_clean({"code": code, "repr": setup, "training": setup.training_config})


def test_messages_hold_no_secret(capsys):
    errors = {
        "data": DataError(f"{URL} is not there"), "interrupt": TrainingInterrupted(f"stopped: {TOKEN}"),
        "problem": ConfigError.from_problems("x", [Problem("path", f"got {URL}")]), "details": error_details(ValueError(URL)),
        "sentence": error_sentence(ValueError(TOKEN)), "described": describe_error(OSError(URL)), "alert": alert(URL, TOKEN),
    }  # fmt: skip
    assert_clean(errors)
    assert_clean({"problem": errors["problem"].problems})
    with pytest.raises(ConfigError) as caught:
        SetupConfig(dataset_path=URL, dataset_name="wikitext", batch_size=URL)
    assert_clean({"refusal": caught.value, "problems": caught.value.problems})
    show_text(f"from {URL}")
    assert_clean({"output": capsys.readouterr().out})


def test_json_files_hold_no_secret():
    write_json("export.json", {"source": URL, "nested": [{"token": TOKEN}]})
    assert_clean(everything_in("."))


def test_logs_hold_no_secret_and_every_logger_is_guarded(caplog):
    for name in LOGGERS:
        try:
            raise ConnectionError(URL)
        except ConnectionError as error:
            logging.getLogger(name).warning("failed with %s: %s", TOKEN, error, exc_info=True)
    assert_clean({"log": caplog.text})
    assert caplog.text.count("***") >= 3 * len(LOGGERS)
    used = {
        name
        for _, tree in python_sources(under=("utils/", "widgets/", "cli/"), naming="getLogger")
        for name in logger_names(tree)
    }
    assert used == set(LOGGERS)


def logger_names(tree):
    return [
        node.args[0].value
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and dotted(node.func) == "logging.getLogger"
        and isinstance(node.args[0], ast.Constant)
        and str(node.args[0].value).startswith("trainbook")
    ]


def test_colab_secrets_that_were_read_are_removed(monkeypatch):
    userdata = SimpleNamespace(get=lambda name: "a value of Colab", SecretNotFoundError=KeyError, NotebookAccessError=OSError)
    monkeypatch.setattr(colab, "is_colab", lambda: True)
    monkeypatch.setitem(sys.modules, "google.colab.userdata", userdata)
    assert colab.secret("SOME_NAME") == "a value of Colab"
    assert scrub("with a value of Colab inside") == "with *** inside"
