"""Checkpoints whose checksums agree and whose content does not make sense: named, skipped by "auto", never half used."""

from __future__ import annotations

import gzip
import logging
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.kit.faults import swap_pickle
from tests.kit.golden import golden_parts
from tests.kit.toys import same_weights
from utils.errors import CheckpointError
from utils.training import Callback, Trainer, TrainingResults
from utils.training.engine.checkpointing.store import CheckpointStore, newest, read_checkpoint, read_plain


def shared_lists(levels: int) -> list[Any]:
    """A list of a few kilobytes that takes 2 ** levels steps to print."""
    made: list[Any] = []
    for _ in range(levels):
        made = [made, made]
    return made


def nested_lists(levels: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(levels):
        made = [made]
    return made


def each_weight(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, Any]], None]:
    def changed(payload: dict[str, Any]) -> None:
        payload["model"] = {name: change(tensor) for name, tensor in payload["model"].items()}

    return changed


#: What is wrong -> the change that makes it so, and a word of the message.
DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "step_nan": (lambda payload: payload["state"].update(step=float("nan")), "state.step"),
    "step_negative": (lambda payload: payload["state"].update(step=-1), "state.step"),
    "step_missing": (lambda payload: payload["state"].pop("step"), "state.step"),
    "epoch_text": (lambda payload: payload["state"].update(epoch="two"), "state.epoch"),
    "history_text": (lambda payload: payload["state"].update(history="none"), "state.history"),
    "history_row": (lambda payload: payload["state"]["history"].append({"event": "epoch"}), "state.history"),
    "history_value": (lambda payload: payload["state"]["history"][0].update({"val/loss": [1.0]}), "val/loss"),
    "best_list": (lambda payload: payload["state"].update(best=[]), "state.best"),
    "sums_text": (lambda payload: payload["state"]["epoch_sums"].update(counts={"correct": "many"}), "state.epoch_sums"),
    "state_list": (lambda payload: payload.update(state=[1]), "state"),
    "value_text": (lambda payload: payload.update(value="low"), "value"),
    "run_id_surrogate": (lambda payload: payload["run"].update(id="\ud800"), "not Unicode"),
    "run_without_id": (lambda payload: payload["run"].pop("id"), "run.id"),
    "rng_text": (lambda payload: payload["rng"].update(torch="random"), "rng.torch"),
    "rng_float": (lambda payload: payload["rng"].update(torch=torch.ones(5056)), "rng.torch"),
    "rng_short": (lambda payload: payload["rng"]["python"]["words"].pop(), "rng.python"),
    "rng_numpy": (lambda payload: payload["rng"]["numpy"].update(position="last"), "rng.numpy"),
    "optimizer_list": (lambda payload: payload.update(optimizer=[]), "optimizer"),
    "optimizer_groups": (lambda payload: payload["optimizer"].update(param_groups={}), "optimizer.param_groups"),
    "optimizer_average": (lambda payload: payload["optimizer"]["state"][0].update(exp_avg="flat"), "exp_avg"),
    "config_text": (lambda payload: payload.update(config="defaults"), "config"),
    "config_type": (lambda payload: payload["config"].update(batch_size="four"), "config.batch_size"),
    "config_bomb": (lambda payload: payload["config"].update(notes=shared_lists(60)), "expands"),
    "model_list": (lambda payload: payload.update(model=[1]), "model"),
    "weights_text": (lambda payload: payload["model"].update({"head.weight": "heavy"}), "model.head.weight"),
    "weights_sparse": (each_weight(lambda tensor: tensor.to_sparse()), "dense tensor"),
    "weights_complex": (each_weight(lambda tensor: tensor.to(torch.complex64)), "complex64"),
    "format_nested": (lambda payload: payload.update(format=shared_lists(60)), "format"),
    "format_dict": (lambda payload: payload.update(format={"format": {"format": 1}}), "format"),
    "deep": (lambda payload: payload.update(callbacks={"deep": nested_lists(100)}), "levels deep"),
    "fingerprint": (lambda payload: payload["fingerprint"].update(data=3), "fingerprint"),
    "environment": (lambda payload: payload["environment"].update(torch=["2"]), "environment"),
    "other_loop": (
        lambda payload: [payload.update(model_state_dict=payload.pop("model"), epoch=2), payload.pop("format")],
        "CheckpointManager(folder).load_checkpoint",
    ),
}  # fmt: skip


class StopAt(Callback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, step, trainer, logs=None):
        if step == self.step:
            trainer.request_stop("test")


def train(*callbacks: Callback, resume_from: Any = None, **changes: Any) -> TrainingResults:
    model, config, train_set, validation_set, count = golden_parts()
    if resume_from is not None:  # other weights: all must come from the file
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
    trainer = Trainer(model, None, config.replace(**changes), callbacks=[count, *callbacks])
    return trainer.train(train_set, validation_set, resume_from=resume_from)


def stopped_run() -> tuple[Path, Path]:
    """A run that was stopped within its third epoch: its newest checkpoint, and the one before."""
    results = train(StopAt(10), keep_best_k=3)
    *_, older, newer = (Path(path) for path in results.checkpoint_paths)
    assert (older.name, newer.name) == ("epoch_2.pt", "step_10.pt")
    return newer, older


@pytest.fixture(scope="module")
def kept_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds `runs`, of a stopped run: copied by each test."""
    before, folder = Path.cwd(), tmp_path_factory.mktemp("kept")
    os.chdir(folder)
    try:
        stopped_run()
    finally:
        os.chdir(before)
    return folder


def copied(kept_run: Path) -> tuple[Path, Path]:
    """The run in the working folder: its newest checkpoint, and the one before."""
    folder = Path("runs/golden/checkpoints").absolute()
    folder.mkdir(parents=True)
    for path in (kept_run / "runs/golden/checkpoints").glob("*.pt"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / "step_10.pt", folder / "epoch_2.pt"


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_content_that_makes_no_sense_is_named_and_skipped(damage, kept_run, caplog):
    newer, older = copied(kept_run)
    change, word = DAMAGE[damage]
    payload = torch.load(newer, weights_only=True)
    change(payload)
    torch.save(payload, newer)
    with pytest.raises(CheckpointError) as caught:
        train(resume_from=newer)
    assert str(newer) in str(caught.value)
    assert word in str(caught.value)
    assert len(str(caught.value)) < 1000
    with caplog.at_level(logging.WARNING, logger="trainbook"):
        continued = train(resume_from="auto")
    assert [message for message in caplog.messages if str(newer) in message and word in message]
    assert (continued.steps, continued.stop_reason) == (12, "finished")
    assert not any("other settings" in notice for notice in continued.notices)
    assert len(continued.history) == 3
    assert older.exists()


@pytest.mark.parametrize("pickled", [
    b"", b".", b"\x80\x02.", b"N.", b"\x80\x02}.", b"\x80\x02]q\x00h\x00a.", b"\x80\x02" + b"(" * 5000 + b"l" * 5000 + b".",
    b"\x80\x02X\xff\xff\xff\x7f.", b"\x80\x02K\x01K\x02s.", b"\x80\x02}(K\x01u.",
], ids=["empty", "stop", "bare", "none", "dict", "cycle", "deep", "long", "setitem", "odd"])  # fmt: skip
def test_a_pickle_that_makes_no_sense_is_named_and_skipped(pickled, kept_run, caplog):
    newer, older = copied(kept_run)
    swap_pickle(newer, pickled)
    with pytest.raises(CheckpointError, match=newer.name):
        read_checkpoint(newer)
    assert newest(newer.parent)[0] == older
    assert any(str(newer) in message for message in caplog.messages)


@pytest.mark.parametrize("change", [
    lambda payload: payload["optimizer"]["state"][0].update(exp_avg=torch.zeros(3)),
    lambda payload: payload["optimizer"]["state"][0].pop("exp_avg"),
    lambda payload: payload["optimizer"]["state"][0].update(step=torch.ones(2)),
    lambda payload: payload["optimizer"]["param_groups"].pop(),
    lambda payload: payload["optimizer"].clear(),
    lambda payload: payload["schedule"].update(plateau_factor="half"),
    lambda payload: payload["schedule"].update(plateau_factor=float("nan")),
    lambda payload: payload["rng"].clear(),
], ids=["average", "missing", "step", "groups", "empty", "schedule", "nan", "rng"])  # fmt: skip
def test_parts_that_do_not_fit_are_named_before_anything_is_changed(change, kept_run):
    newer, _ = copied(kept_run)
    payload = torch.load(newer, weights_only=True)
    change(payload)
    torch.save(payload, newer)
    model, config, train_set, validation_set, count = golden_parts()
    with pytest.raises(CheckpointError, match=r"step_10\.pt cannot be resumed from: (optimizer|schedule|rng)"):
        Trainer(model, None, config, callbacks=[count]).train(train_set, validation_set, resume_from=newer)
    assert same_weights(model, golden_parts()[0])


# ---- files that are no files, and files that claim to be larger than they are ----


@pytest.mark.parametrize(
    "read", [read_checkpoint, read_plain, lambda path: train(resume_from=path)], ids=["run", "plain", "resume"]
)
def test_devices_and_pipes_are_not_opened(read, tmp_path):
    pipe = tmp_path / "epoch_1.pt"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero"), Path("/dev/null")):
        with pytest.raises(CheckpointError, match=f"{path} is a device, a pipe or a socket"):
            read(path)


def test_a_pipe_with_a_checkpoints_name_is_left_out(kept_run):
    newer, _ = copied(kept_run)
    os.mkfifo(newer.with_name("epoch_9.pt"))
    assert newest(newer.parent)[0] == newer


def bomb(path: Path, kind: str, size: int) -> None:
    """A small file that claims or expands to `size` bytes."""
    if kind == "gzip":
        with gzip.open(path, "wb") as file:
            file.write(bytes(size))
        return
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if kind == "deflated" else zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", bytes(size) if kind == "deflated" else bytes(50_000))
        archive.writestr("archive/data/0", b"1234")
    if kind == "overlapping":  # many entries for the same bytes
        with zipfile.ZipFile(path, "a") as archive:
            first = archive.infolist()[0]
            for number in range(200):
                again = zipfile.ZipInfo(f"archive/data/{number + 1}")
                again.CRC, again.file_size, again.compress_size = first.CRC, first.file_size, first.compress_size
                again.header_offset, again.external_attr = first.header_offset, 0
                archive.filelist.append(again)
                archive.NameToInfo[again.filename] = again
            archive._didModify = True


@pytest.mark.parametrize("kind", ["gzip", "deflated", "overlapping"])
def test_bombs_are_refused_by_what_their_directory_says(kind, tmp_path, monkeypatch):
    path = tmp_path / "epoch_1.pt"
    bomb(path, kind, 16 << 20)
    assert path.stat().st_size < 100_000
    opened: list[str] = []
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda self, name, *rest, **more: opened.append(str(name)))
    monkeypatch.setattr(torch, "load", lambda *rest, **more: opened.append("torch"))
    with pytest.raises(CheckpointError, match="not the zip archive|is compressed|claim"):
        read_checkpoint(path)
    assert not opened


def test_a_damaged_file_that_was_skipped_does_not_count_as_one_of_the_last(kept_run):
    """Rotation keeps the last two; a file that cannot be loaded must not be one of them."""
    newer, older = copied(kept_run)
    payload = read_checkpoint(newer)
    newer.write_bytes(b"PK, but no archive")
    store = CheckpointStore(older.parent, payload["run"]["id"])
    store.adopt()
    assert [entry.path.name for entry in store.entries] == ["epoch_1.pt", "epoch_2.pt"]
