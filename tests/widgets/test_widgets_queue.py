"""The queue panel: the setup becomes a job that any worker runs, and its buttons do what the queue's methods do."""

from __future__ import annotations

from pathlib import Path

import ipywidgets
import pytest

import widgets
from tests.kit.toys import golden_config, plain_lm
from utils.errors import ConfigError
from utils.models import ModelRegistry
from utils.training import JobConfig, JobQueue
from utils.ui import SetupConfig
from utils.ui.queue_jobs import QueueJobs
from widgets.guarded import watching
from widgets.queue_view import QueuePanel

URL = "sqlite:///jobs.db"


def setup_and_model():
    Path("my.txt").write_text("\n\n".join(f"{n} bottles of beer on the wall." for n in range(60)))
    setup = SetupConfig(
        dataset_path="my.txt", tokenizer_strategy="character", max_length=16, epochs=1, batch_size=8, max_steps=2,
        run_name="bottles",
    )  # fmt: skip
    model = ModelRegistry.create("gpt-small", vocab_size=120, max_seq_len=16, n_layer=1, n_embd=16, n_head=2)
    return setup, model


def durable(**changes):
    return JobConfig(
        "tests.kit.toys:plain_lm", train_data="tests.kit.toys:train_set",
        training_config=golden_config(run_name=None, max_steps=2), **changes,
    )  # fmt: skip


def test_the_setup_is_submitted_run_by_a_worker_and_opened_from_its_folder():
    panel = QueuePanel(QueueJobs(URL, *setup_and_model()))
    assert not Path("jobs.db").exists()
    assert "No job yet." in panel.table.value
    assert panel._actions.layout.display == "none"
    panel.submit.click()
    assert "Job 1 waits for a worker." in panel.message.value
    assert JobQueue(URL).work() == 1
    panel.refresh.click()
    assert "completed" in panel.table.value
    assert "step 2, loss" in panel.table.value
    panel.open.click()
    (view,) = panel.live.children
    assert "bottles" in view.value
    panel.show_log.click()
    assert "submitted with priority 5" in panel.log.value


def test_jobs_are_cancelled_and_put_back_and_a_job_without_a_run_has_no_view():
    queue = JobQueue(URL)
    for _ in range(2):
        queue.submit_job(durable())
    panel = QueuePanel(QueueJobs(queue))
    panel.job.value = 1
    panel.cancel.click()
    assert queue.get_job_status(1) == "cancelled"
    panel.retry.click()
    assert queue.get_job_status(1) == "pending"
    assert panel.job.value == 1
    panel.retry.click()
    assert "was not put back" in panel.message.value
    with watching() as failures:
        panel.open.click()
    assert "Job 1 has no run yet" in panel.message.value
    assert len(failures) == 1
    failures.clear()
    queue.close()


def test_a_failed_jobs_error_is_in_the_table():
    queue = JobQueue(URL)
    number = queue.submit_job(durable(max_attempts=1))
    queue.fail_job(queue.claim_job(), "<b>no</b> such thing\nmore")
    panel = QueuePanel(QueueJobs(queue))
    assert queue.get_job_status(number) == "failed"
    assert "&lt;b&gt;no&lt;/b&gt; such thing" in panel.table.value
    assert "more" not in panel.table.value
    queue.close()


def test_a_model_that_no_worker_can_make_is_refused_with_the_way_out():
    setup, _ = setup_and_model()
    with pytest.raises(ConfigError, match="cannot make this PlainLM.*ModelRegistry.create"):
        QueueJobs(URL, setup, plain_lm()).submit()
    with pytest.raises(ConfigError, match="no setup to submit"):
        QueueJobs(URL).submit()
    assert not Path("jobs.db").exists()


def test_without_widgets_the_jobs_are_text_and_no_widget_or_database_is_made(capsys, monkeypatch):
    def refused(*_, **__):
        raise AssertionError("a widget was made")

    monkeypatch.setattr(ipywidgets.Widget, "__init__", refused)
    jobs = widgets.queue_panel(URL, *setup_and_model())
    assert "No job in sqlite:///jobs.db yet" in capsys.readouterr().out
    assert not Path("jobs.db").exists()
    assert jobs.submit(priority=9) == 1
    widgets.queue_panel(URL)
    assert "bottles-" in capsys.readouterr().out
