"""train_live in a real kernel that is terminated, restarted or interrupted: what was learned is saved first."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jupyter_client.manager import start_new_kernel

from tests.kit.crash import Child

PREPARE = """
import asyncio
from types import SimpleNamespace
from tests.kit.toys import golden_config, tiny_gpt, train_set, validation_set
from utils.training import Callback, Trainer
from widgets import train_live

class Tell(Callback):
    def on_step_end(self, step, trainer, logs=None):
        if step == 5:
            print("training", flush=True)
            trainer.control.stop.wait()

data = SimpleNamespace(train=train_set(), validation=validation_set())
trainer = Trainer(tiny_gpt(), training_config=golden_config(run_name="live"), callbacks=[Tell()])
"""


def saved(folder):
    state = json.loads((folder / "runs" / "live" / "state.json").read_text())
    assert (folder / "runs" / "live" / "checkpoints" / "step_5.pt").is_file()
    return state["status"], state["stop_reason"], state["step"]


@pytest.mark.slow
def test_a_process_that_is_terminated_saves_and_then_dies_of_the_signal(tmp_path):
    from_child, to_parent = os.pipe()

    def script():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        with os.fdopen(to_parent, "w") as sys.stdout:
            exec(f"{PREPARE}\nasyncio.run(train_live(trainer, data))", {})  # noqa: S102 - a script of this file

    child = Child(script)
    os.close(to_parent)
    with os.fdopen(from_child) as said:
        while said.readline() not in ("training\n", ""):
            pass
        child.kill(signal.SIGTERM)
        said.read()
    assert child.join().signal == signal.SIGTERM
    assert saved(tmp_path) == ("stopped", "terminated", 5)


LEFT_BEHIND = """
async def until_step_five():
    while trainer.state.step < 5:
        await asyncio.sleep(0.01)

loop = asyncio.new_event_loop()
task = loop.create_task(train_live(trainer, data))
loop.run_until_complete(until_step_five())
"""


@pytest.mark.slow
def test_an_interpreter_that_ends_mid_run_saves_first(tmp_path):
    subprocess.run([sys.executable, "-c", f"{PREPARE}\n{LEFT_BEHIND}"], cwd=tmp_path, check=True, capture_output=True)
    assert saved(tmp_path) == ("stopped", "kernel_shutdown", 5)


@pytest.fixture
def kernel(tmp_path):
    """A kernel in which a training stands at its fifth step."""
    environment = {**os.environ, "TRAINBOOK_UI": "widget"}
    manager, client = start_new_kernel(startup_timeout=300, cwd=str(tmp_path), env=environment, kernel_name="python3")
    try:
        code = f"{PREPARE}\nresults = await train_live(trainer, data)"
        cell = client.execute(code, store_history=False, stop_on_error=False)
        while True:
            message = client.get_iopub_msg(timeout=300)
            if message["msg_type"] == "error":
                pytest.fail("\n".join(message["content"]["traceback"]))
            if message["msg_type"] == "stream" and "training" in message["content"]["text"]:
                break
        yield manager, client, cell
    finally:
        client.stop_channels()
        if manager.has_kernel:
            manager.shutdown_kernel(now=True)


def reply_to(client, request: str) -> dict[str, Any]:
    """The answer to one request. On a loaded machine late answers to the start-up's questions come first."""
    while True:
        message = client.get_shell_msg(timeout=300)
        if message["parent_header"].get("msg_id") == request:
            return message["content"]


@pytest.mark.slow
@pytest.mark.notebook
def test_a_kernel_that_is_shut_down_mid_run_saves_first(kernel, tmp_path):
    manager, _, _ = kernel
    manager.shutdown_kernel()  # Jupyter interrupts first, then asks the kernel to end
    assert saved(tmp_path) == ("stopped", "interrupt", 5)


@pytest.mark.slow
@pytest.mark.notebook
def test_a_kernel_that_is_interrupted_goes_on_living(kernel, tmp_path):
    manager, client, cell = kernel
    manager.interrupt_kernel()
    reply = reply_to(client, cell)
    assert (reply["status"], reply.get("ename")) == ("error", "TrainingInterrupted")
    assert saved(tmp_path) == ("stopped", "interrupt", 5)
    assert reply_to(client, client.execute("1 + 1"))["status"] == "ok"
    assert Path(tmp_path / "runs").is_dir()
