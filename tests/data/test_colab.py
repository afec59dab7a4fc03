"""Drive, uploads and secrets: as Colab has them, and with a way on where there is no Colab."""

from __future__ import annotations

import importlib
import sys
import textwrap
from pathlib import Path

import pytest

from utils import colab
from utils.data import DatasetLoader, DatasetUploader
from utils.errors import DataError, DataNotFoundError
from utils.ui.setup_config import SetupConfig
from utils.ui.wizard_state import WizardState

PACKAGE = {
    "__init__.py": "",
    "drive.py": """
        from pathlib import Path
        asked = []
        answer = "yes"
        def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
            asked.append((mountpoint, timeout_ms))
            if answer != "yes":
                raise ValueError(answer)
            folder = Path(mountpoint) / "MyDrive"
            folder.mkdir(parents=True)
            (folder / "data.txt").write_text("a text from the Drive")
    """,
    "files.py": """
        chosen = {}
        def upload():
            return chosen
    """,
    "userdata.py": """
        class SecretNotFoundError(Exception): pass
        class NotebookAccessError(Exception): pass
        def get(name):
            if name == "DENIED":
                raise NotebookAccessError(name)
            if name != "KNOWN":
                raise SecretNotFoundError(name)
            return "value"
    """,
}


@pytest.fixture
def in_colab(tmp_path, monkeypatch):
    """A package google.colab that behaves as Colab's does, and a mount point of the test's own."""
    package = tmp_path / "packages" / "google" / "colab"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").write_text("")
    for name, code in PACKAGE.items():
        (package / name).write_text(textwrap.dedent(code))
    before = {name: module for name, module in sys.modules.items() if name == "google" or name.startswith("google.")}
    for name in before:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    monkeypatch.setattr(colab, "MOUNT_POINT", tmp_path / "drive")
    for name in ("drive", "files"):
        importlib.import_module(f"google.colab.{name}")  # as Colab's kernel does
    yield sys.modules["google.colab"]
    for name in [name for name in sys.modules if name == "google" or name.startswith("google.")]:
        del sys.modules[name]


def test_the_drive_is_mounted_once_with_a_time_limit(in_colab, tmp_path):
    loader = DatasetLoader()
    for path in ("data.txt", "MyDrive/data.txt", str(tmp_path / "drive" / "MyDrive" / "data.txt")):
        assert loader.load_from_drive(path)["text"][:] == ["a text from the Drive"]
    assert in_colab.drive.asked == [(str(tmp_path / "drive"), 180_000)]


def test_a_drive_that_is_refused_is_one_plain_error(in_colab):
    in_colab.drive.answer = "mount failed: timeout"
    with pytest.raises(DataNotFoundError, match=r"data.txt: .*not mounted: mount failed: timeout.*give its path"):
        DatasetLoader().load_from_drive("data.txt")


def test_an_interrupt_while_the_drive_is_asked_for_goes_on(in_colab, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(in_colab.drive, "mount", interrupted)
    with pytest.raises(KeyboardInterrupt):
        colab.mount_drive()


def test_a_missing_file_of_the_drive_names_the_ones_there(in_colab):
    with pytest.raises(DataNotFoundError, match=r"Did you mean .*data\.txt"):
        DatasetLoader().load_from_drive("dta.txt")


def test_the_wizard_does_not_ask_for_the_drive_while_somebody_types(in_colab):
    state = WizardState(SetupConfig(dataset_source="drive", dataset_path="data.txt", vocab_size=300))
    assert state.blockers("dataset") == []
    assert in_colab.drive.asked == []
    colab.mount_drive()
    state.set("dataset_path", "dta.txt")
    assert "Did you mean" in state.blockers("dataset")[0].message


def test_without_colab_a_path_is_taken_as_it_is_and_other_things_are_said(tmp_path, monkeypatch):
    monkeypatch.setattr(colab, "MOUNT_POINT", tmp_path / "drive")
    (tmp_path / "data.txt").write_text("a text of this machine")
    assert DatasetLoader().load_from_drive("data.txt")["text"][:] == ["a text of this machine"]
    with pytest.raises(DataNotFoundError, match="only Colab can mount one.*give its path"):
        DatasetLoader().load_from_drive(tmp_path / "drive" / "MyDrive" / "nothing.txt")
    with pytest.raises(DataNotFoundError, match="as its path below the Drive"):
        DatasetLoader().load_from_drive("/somewhere/else.txt")
    state = WizardState(SetupConfig(dataset_source="drive", dataset_path="nothing.txt", vocab_size=300))
    assert "only Colab can mount one" in state.blockers("dataset")[0].message


def test_uploads_are_kept_under_safe_names_and_loaded(in_colab):
    in_colab.files.chosen = {"../../evil.txt": b"an uploaded text", "b.csv": b"text\nan uploaded row\n"}
    loaded = DatasetLoader().load_upload()
    assert loaded["text"][:] == ["an uploaded text", "an uploaded row"]
    assert Path("uploads/evil.txt").read_bytes() == b"an uploaded text"


@pytest.mark.parametrize(
    ("chosen", "message"), [({}, "no file was chosen"), ({"a.txt": b"x" * 2000}, r"max_size_mb=0\.001"), ({"a.txt": b""}, "is empty")]
)  # fmt: skip
def test_an_upload_that_cannot_be_used_is_said(in_colab, chosen, message):
    in_colab.files.chosen = chosen
    with pytest.raises(DataError, match=message):
        DatasetUploader(max_size_mb=0.001).upload_and_load()


def test_secrets_come_from_the_environment_or_from_colab(in_colab, monkeypatch):
    assert (colab.secret("KNOWN"), colab.secret("UNKNOWN"), colab.secret("DENIED")) == ("value", None, None)
    monkeypatch.setenv("KNOWN", "of the environment")
    assert colab.secret("KNOWN") == "of the environment"


def test_without_colab_a_secret_is_one_of_the_environment(monkeypatch):
    monkeypatch.setenv("KNOWN", "value")
    assert (colab.is_colab(), colab.secret("KNOWN"), colab.secret("UNKNOWN")) == (False, "value", None)
