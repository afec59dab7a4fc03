"""A setup with a pretrained model and files of records means the same to the wizard, the coordinator, the command and the queue."""

from __future__ import annotations

import pytest

from cli.job_files import JobConfig, model_maker
from cli.queue_commands import data_of_job, model_of_job
from cli.run_training import main
from tests.kit.pretrained import save_bert, save_llama, write_conversations, write_reviews
from utils.data import prepare_data
from utils.errors import ConfigError
from utils.models.origins import tokenizer_of
from utils.training import JobQueue, TrainingCoordinator
from utils.ui import SetupWizard
from utils.ui.queue_jobs import QueueJobs
from utils.ui.wizard_code import command_line, python_code


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    base = tmp_path_factory.mktemp("pretrained")
    return {"causal_lm": str(save_llama(base / "llama")), "text_classification": str(save_bert(base / "bert"))}


@pytest.fixture(params=["causal_lm", "text_classification"])
def wizard(request, folders, tmp_path):
    task = request.param
    name = "chat.jsonl" if task == "causal_lm" else "reviews.csv"
    (write_conversations if task == "causal_lm" else write_reviews)(tmp_path / name)
    found = SetupWizard()
    found.run(
        interactive=False, preset="starter", task=task, dataset_path=name, pretrained_model=folders[task], max_steps=1,
        precision="32", run_name="one",
    )  # fmt: skip
    return found


def same_data(first, second):
    columns = [one.train.columns for one in (first, second)]
    return all(
        (getattr(a, "values", a) == getattr(b, "values", b)).all()
        for a, b in zip(columns[0].values(), columns[1].values(), strict=True)
    )


def test_the_coordinator_takes_the_setups_arguments(wizard):
    setup = wizard.state.setup
    results = TrainingCoordinator().train(wizard.model, **setup.to_dict(), tokenizer=tokenizer_of(wizard.model))
    assert results.trainer.task_spec.task_type == setup.task
    mine, theirs = results.report.to_dict(), prepare_data(setup, wizard.model).report.to_dict()
    assert {**mine, "notes": []} == {**theirs, "notes": []}  # special ids are set, and said, once


def test_a_queues_worker_makes_the_same_model_and_data(wizard, tmp_path, monkeypatch):
    setup = wizard.state.setup
    jobs = QueueJobs(f"sqlite:///{tmp_path}/jobs.db", setup, wizard.model)
    job = JobQueue(jobs.url).get_job(jobs.submit()).spec
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    model = model_of_job(**job["arguments"])
    assert type(model) is type(wizard.model)
    assert tokenizer_of(model) is not None
    data = data_of_job(**job["data_arguments"], model=model)
    assert same_data(data, prepare_data(setup, wizard.model))


def test_the_command_and_the_code_name_the_model(wizard, folders, capsys):
    setup = wizard.state.setup
    scope: dict = {}
    exec(python_code(setup), scope)  # noqa: S102 - our own code
    assert scope["setup"] == setup
    command = command_line(setup, wizard.state.facts)
    assert f"pretrained_model={folders[setup.task]}" in command.replace("'", "").replace('"', "")
    assert "model." not in command.replace("model.n", "")
    settings = [f"{name}={value}" for name, value in (
        ("task", setup.task), ("dataset_path", setup.dataset_path), ("pretrained_model", setup.pretrained_model))]  # fmt: skip
    assert main([*(word for setting in settings for word in ("--set", setting)), "--dry-run"]) == 0
    assert "Pretrained model" in capsys.readouterr().out


def test_two_models_in_a_job_are_refused(folders):
    job = JobConfig(model={"name": "gpt-small"}, setup={"pretrained_model": folders["causal_lm"]})
    with pytest.raises(ConfigError, match="keep one"):
        model_maker(job)
