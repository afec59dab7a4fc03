"""A notebook's training on several devices: torchrun starts its processes, which get what the kernel holds.

The kernel is one process, so each process gets copies: model, data, callbacks and the rest are pickled by value where another
process could not import them, such as classes of a notebook's cell. They travel through a socket in a folder that only this
user can open, and nothing is kept in a file that could be unpickled later. Weights and history come back through the run's
folder.
"""

from __future__ import annotations

import contextlib
import io
import pickle
import socket
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from utils import errors
from utils.errors import ConfigError, MissingPackageError, PeerProcessError, TrainbookError
from utils.models.origins import origin_of
from utils.storage import write_json, write_text
from utils.training.adapter_checkpoints import check_base
from utils.training.engine.callbacks import Callback
from utils.training.engine.checkpointing.best_weights import take_best_weights
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.engine.checkpointing.weights import averaged_is_better, load_model_weights, weights_to_use
from utils.training.engine.compute.buffers import load_run_states
from utils.training.engine.compute.master_weights import in_formats_of
from utils.training.engine.distributed.world import Launch
from utils.training.engine.interrupts import KEEP_BEST, Control
from utils.training.engine.results import TrainingResults, Weights
from utils.training.engine.state import TrainState
from utils.training.engine.trainer import Trainer
from utils.training.finetuning import with_lora
from utils.training.jobs import process
from utils.training.jobs.devices import POLL_S, no_results, read, started
from utils.training.run_start import absolute_source
from utils.training.task_spec import TaskSpec
from utils.training.training_config import TrainingConfig

Tell = Callable[[str, Mapping[str, Any]], None]


def processes_for(config: TrainingConfig) -> int | None:
    """Number of processes to start for this training; None: it runs in this process.

    `devices`, or with "auto" as many as there are GPUs. On a machine without GPUs two processes share the CPU.
    """
    if Launch.from_environment() is not None or config.num_nodes > 1:
        return None
    if config.devices == "auto":
        if config.strategy == "auto" or torch.cuda.device_count() == 1:
            return None
        return max(2, torch.cuda.device_count())
    return config.devices if config.devices > 1 else None


def train_in_processes(
    trainer: Trainer, train_data: Any, val_data: Any, processes: int, *, resume_from: Any = None,
    callbacks: Sequence[Callback] = (), tell: Tell = lambda run_dir, row: None,
) -> TrainingResults:  # fmt: skip
    """`trainer.train` by several processes of this host. Requests to the trainer's control reach them.

    The trainer's model has the weights of the last step afterwards. Callbacks, hooks, and an optimizer or scheduler of your own
    stay as they were here, because the processes work on copies.

    Args:
        callbacks: instead of the trainer's.
        tell: called with the run's folder and the newest row of progress while the training continues.
    Raises:
        ConfigError: something cannot be copied to another process; names it. MissingPackageError: cloudpickle (extra
            `notebook`). What `Trainer.train` raises.
    """
    if type(trainer) is not Trainer:
        raise ConfigError(
            f"several processes can be given a Trainer only; got a {type(trainer).__name__}. Start such a training with "
            "torchrun, from a script."
        )
    payload = _payload(trainer, train_data, val_data, resume_from, callbacks)
    with tempfile.TemporaryDirectory(prefix="trainbook-") as name, socket.socket(socket.AF_UNIX) as server:
        folder = Path(name)
        server.bind(str(folder / "socket"))
        server.listen(processes)
        server.settimeout(POLL_S)
        content = {"socket": str(folder / "socket"), "worker": process.identity(), "folder": str(folder)}
        write_json(folder / "job.json", content)
        with started(folder, processes) as group:
            while group.poll() is None:
                _hand_over(server, payload)
                _pass_on(trainer.control, folder)
                if (progress := read(folder / "progress.json")) is not None:
                    tell(progress["run_dir"], progress["row"] or {})
        trainer.control.clear()
        outcome = read(folder / "outcome.json")
        if outcome is None:
            raise PeerProcessError(no_results(folder, group.returncode))
        if "error" in outcome:
            raise _error_of(outcome)
    return _results(trainer, outcome)


# ---- what goes to the processes ----


def _pickled(value: Any) -> bytes:
    """`value` as bytes, with the classes and functions of a notebook's cells.

    Tensors of an accelerator travel as those of the CPU: each process moves its model to its own device.
    """
    try:
        import cloudpickle
    except ImportError:
        raise MissingPackageError("cloudpickle", "to train on several devices from a notebook", "notebook") from None

    class Pickler(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, obj: Any) -> Any:
            if isinstance(obj, torch.Tensor) and obj.device.type not in ("cpu", "meta"):
                data = obj.detach().cpu()
                if isinstance(obj, torch.nn.Parameter):
                    return torch.nn.Parameter, (data, obj.requires_grad)
                return torch.Tensor.requires_grad_, (data, obj.requires_grad)
            return super().reducer_override(obj)

    file = io.BytesIO()
    Pickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return file.getvalue()


def _payload(
    trainer: Trainer, train_data: Any, val_data: Any, resume_from: Any, callbacks: Sequence[Callback]
) -> bytes:
    if isinstance(resume_from, TrainingResults):
        resume_from = resume_from.run_dir
    origin = origin_of(trainer.model)
    parts = {
        "model": trainer.model, "training data": train_data, "validation data": val_data, "config": trainer.config,
        "tokenizer": trainer.tokenizer, "data_collator": trainer.data_collator, "hooks": trainer.hooks,
        "callbacks": list(callbacks), "own_parts": trainer.own_parts, "trackers": trainer.trackers,
        "training_config": trainer.training_config.with_absolute_paths().replace(devices="auto").to_dict(),
        "task_spec": trainer.task_spec, "resume_from": absolute_source(resume_from),
        "description": {**({} if origin is None else {"model": origin}), **trainer.description},
    }  # fmt: skip
    try:
        return _pickled(parts)  # in one piece: an optimizer holds parameters of the model
    except MissingPackageError:
        raise
    except Exception as error:
        found = "\n".join(f"  {name}: {reason}" for name, value in parts.items() if (reason := _obstacle(value)))
        raise ConfigError(
            f"several devices need several processes, and this cannot be copied to them:\n{found or error}\nMake such objects "
            "when they are first used (open files and connections in a method, for example), or train on one device: "
            "strategy='auto', devices='auto'."
        ) from error


def _obstacle(value: Any) -> str | None:
    try:
        _pickled(value)
    except Exception as error:  # noqa: BLE001 - the user's objects may raise anything when they are pickled
        return f"{type(error).__name__}: {error}"
    return None


def _hand_over(server: socket.socket, payload: bytes) -> None:
    """Give the payload to the next process that asks for it, within POLL_S seconds."""
    from multiprocessing.connection import Connection

    try:
        asking, _ = server.accept()
    except TimeoutError:
        return
    asking.setblocking(True)
    with Connection(asking.detach()) as connection, contextlib.suppress(ConnectionError):  # it ended meanwhile
        connection.send_bytes(payload)


def _pass_on(control: Control, folder: Path) -> None:
    """The requests of buttons and interrupts, as files that the first process looks for."""
    if control.stop.is_set() and not (folder / "stop").exists():
        write_text(folder / "stop", control.reason or "requested")
    if control.pause.is_set():
        (folder / "pause").touch()
    else:
        (folder / "pause").unlink(missing_ok=True)
    for request, name in ((control.save_now, "save"), (control.finish, "finish")):
        if request.is_set():
            request.clear()
            (folder / name).touch()


def received(address: str, watching: Callback) -> tuple[Trainer, Any, Any, Any]:
    """In a process of the training: the trainer, its training and validation data, and where it continues."""
    from multiprocessing.connection import Connection

    client = socket.socket(socket.AF_UNIX)
    client.connect(address)
    with Connection(client.detach()) as connection:
        parts = connection.recv()
    trainer = Trainer(
        parts["model"], parts["config"], TrainingConfig.from_dict(parts["training_config"]), parts["task_spec"],
        tokenizer=parts["tokenizer"], data_collator=parts["data_collator"], hooks=parts["hooks"],
        callbacks=[*parts["callbacks"], watching], own_parts=parts["own_parts"],
    )  # fmt: skip
    trainer.trackers, trainer.description = parts["trackers"], parts["description"]
    return trainer, parts["training data"], parts["validation data"], parts["resume_from"]


# ---- what comes back ----


def _error_of(outcome: Mapping[str, Any]) -> Exception:
    """The error of the first process, of the same class where it is one of this library's."""
    kind = getattr(errors, outcome["kind"], None)
    if isinstance(kind, type) and issubclass(kind, TrainbookError) and kind is not errors.UntrustedCodeError:
        return kind(outcome["message"])
    return PeerProcessError(f"the training failed in its processes: {outcome['error']}")


def _results(trainer: Trainer, outcome: Mapping[str, Any]) -> TrainingResults:
    values = outcome["results"]
    state = TrainState()
    weights: Weights = "trained"
    if values["checkpoint_path"] is not None:
        path = Path(values["checkpoint_path"])
        checkpoint = read_checkpoint(path, mapped=True)
        if "base_model" in checkpoint:
            trainer.model = with_lora(trainer.model, trainer.training_config)
            check_base(checkpoint, trainer.model, str(path))
        load_model_weights(trainer.model, in_formats_of(trainer.model, weights_to_use(checkpoint)), str(path))
        load_run_states(trainer.model, checkpoint.get("run_state", {}))
        weights = "averaged" if averaged_is_better(checkpoint) else "trained"
        state = TrainState.from_dict(checkpoint["state"])
    best = values["best_model_path"]
    if state.stop_reason == KEEP_BEST and best is not None:
        take_best_weights(
            trainer.model, Path(best), trainer.training_config.monitor, lambda sentence: None
        )  # said there
        weights = "best"
    spec = None if outcome["task_spec"] is None else TaskSpec.from_dict(outcome["task_spec"])
    trainer.state, trainer.run_dir, trainer.notices = state, Path(values["run_dir"]), list(values["notices"])
    results = TrainingResults(
        state=state, model=trainer.model, tokenizer=trainer.tokenizer, task_spec=spec,
        training_config=trainer.training_config, run_dir=trainer.run_dir, precision=outcome["precision"],
        checkpoints=[Path(path) for path in values["checkpoint_paths"]],
        best_model_path=None if best is None else Path(best), notices=trainer.notices, fine_tuning=outcome["fine_tuning"],
        weights=weights,
    )  # fmt: skip
    results.export_dir, results.export_error = outcome["export_dir"], outcome["export_error"]
    return results
