"""push_to_hub against a Hub on 127.0.0.1: what is sent, what is refused, what the errors say, and that it resumes."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub import constants

from tests.kit.receiving_hub import receiving
from utils import colab
from utils.errors import ExportError, HubError
from utils.training import push_to_hub

# huggingface_hub's own call of its HTTP client.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

TOKEN = "a-token-that-may-write"
REPOSITORY = "me/model"


@pytest.fixture(autouse=True)
def online(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub():
    with receiving(TOKEN) as server:
        yield server
        huggingface_hub.close_session()  # its open connections each hold a thread of the server


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "hf"
    (path / "onnx").mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "gpt2"}')
    (path / "README.md").write_text("---\ntags:\n- trainbook\n---\n# A model\n")
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 16)
    (path / "onnx" / "model[1].onnx").write_bytes(b"graph")
    return path


def content(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def push(hub, export, **options):
    return push_to_hub(export, REPOSITORY, **{"token": TOKEN, "endpoint": hub.address, **options})


def test_every_file_arrives_in_a_private_repository(hub, folder, caplog):
    caplog.set_level(logging.DEBUG)
    done = push(hub, SimpleNamespace(path=folder))
    assert hub.repositories == {REPOSITORY: content(folder)}
    assert hub.private == {REPOSITORY: True}
    assert done.private
    assert done.url == f"{hub.address}/{REPOSITORY}"
    assert done.total_bytes == sum(map(len, content(folder).values()))
    assert TOKEN not in caplog.text
    assert TOKEN not in repr(done)


def test_a_dry_run_lists_files_and_sizes_and_asks_nobody(hub, folder):
    planned = push(hub, {"hf": SimpleNamespace(path=folder)}, dry_run=True, token=None)
    assert planned.files == {name: len(data) for name, data in content(folder).items()}
    assert planned.dry_run
    assert "4,096  model.safetensors" in str(planned)
    assert hub.asked == []


@pytest.mark.parametrize("where", ["environment", "colab", "login"])
def test_the_token_is_found(where, hub, folder, monkeypatch):
    if where == "environment":
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    elif where == "colab":
        secrets = SimpleNamespace(
            get=lambda name: TOKEN if name == "HF_TOKEN" else None,
            SecretNotFoundError=KeyError,
            NotebookAccessError=OSError,
        )
        monkeypatch.setattr(colab, "is_colab", lambda: True)
        monkeypatch.setitem(sys.modules, "google.colab.userdata", secrets)
    else:
        monkeypatch.setattr(huggingface_hub, "get_token", lambda: TOKEN)
    push(hub, folder, token=None)
    assert set(hub.repositories[REPOSITORY]) == set(content(folder))


def test_without_a_token_nothing_is_asked(hub, folder):
    with pytest.raises(HubError, match=r"no token.*HF_TOKEN.*login\(\)"):
        push(hub, folder, token=None)
    assert hub.asked == []


@pytest.mark.parametrize("name", ["model", "a/b/c", "", "me/mo del", None])
def test_a_name_that_is_no_repository_is_refused(name, folder):
    with pytest.raises(HubError, match="owner/name"):
        push_to_hub(folder, name, dry_run=True)


@pytest.mark.parametrize(
    ("status", "says"),
    [(401, "token.*write access"), (403, "may not write to 'me'"), (404, "Check the spelling"), (413, "no room"), (400, "answered 400")],
)  # fmt: skip
@pytest.mark.parametrize("where", ["/repos/create", "/commit/"])
def test_refusals_say_the_way_out(status, says, where, hub, folder):
    hub.refused = {where: status}
    with pytest.raises(HubError, match=says) as error:
        push(hub, folder)
    assert TOKEN not in str(error.value)
    assert hub.repositories.get(REPOSITORY, {}) == {}


def test_a_wrong_token_is_named_as_such(hub, folder):
    with pytest.raises(HubError, match=r"did not accept the token \(401\)"):
        push(hub, folder, token="another-token-of-somebody")


def test_a_hub_that_is_not_there(folder):
    with receiving(TOKEN) as hub:
        pass
    with pytest.raises(HubError, match="could not be reached.*the same call continues"):
        push(hub, folder)


def test_offline_mode_is_named(hub, folder, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(HubError, match="HF_HUB_OFFLINE"):
        push(hub, folder)


def test_after_an_interruption_large_files_are_not_sent_again(hub, folder):
    hub.refused = {"/commit/": 400}
    with pytest.raises(HubError, match="the same call continues"):
        push(hub, folder)
    sent = [line for line in hub.asked if line.startswith("PUT /objects/")]
    assert len(sent) == 1
    hub.refused, hub.asked[:] = {}, []
    push(hub, folder)
    assert not any(line.startswith("PUT /objects/") for line in hub.asked)
    assert hub.repositories[REPOSITORY] == content(folder)


def test_a_public_repository_is_not_taken_for_a_private_one(hub, folder):
    hub.repositories[REPOSITORY], hub.private[REPOSITORY] = {}, False
    with pytest.raises(HubError, match="is public; nothing was sent"):
        push(hub, folder)
    assert hub.repositories[REPOSITORY] == {}
    assert not push(hub, folder, private=False).private
    assert hub.repositories[REPOSITORY] == content(folder)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("notes.txt", "one\npassword = 'hunter2hunter2'\n", "notes.txt, line 2"),
        ("config.json", '{"api_key": "abcdefghijkl"}', "config.json, line 1"),
        ("tokenizer.json", '{"x": "hf_CANARYabcdefghijklmnop"}', "tokenizer.json, line 1"),
        (".env", "A=1\n", "files of this name hold credentials"),
        ("key.pem", "-----BEG" "IN PRIVATE KEY-----\n", "key.pem"),
        ("README.md", f"token {TOKEN}", "README.md, line 1"),
        ("model.onnx", f"\0\xff{TOKEN}", "model.onnx: a token of this machine"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry_run", [True, False])
def test_a_folder_with_a_secret_is_refused(name, text, says, dry_run, hub, folder):
    (folder / name).write_bytes(text.encode("latin-1"))
    with pytest.raises(ExportError, match=says) as error:
        push(hub, folder, dry_run=dry_run)
    assert TOKEN not in str(error.value)
    assert "hunter2" not in str(error.value)
    assert hub.asked == []


def test_a_file_that_somebody_checked_is_sent(hub, folder):
    (folder / "notes.txt").write_text("password = 'placeholder'\n")
    push(hub, folder, checked_files=["notes.txt"])
    assert "notes.txt" in hub.repositories[REPOSITORY]


def test_entries_of_a_vocabulary_are_no_secrets(folder):
    (folder / "tokenizer.json").write_text('{"password": 123456, "api_key": 654321}')
    assert "tokenizer.json" in push_to_hub(folder, REPOSITORY, dry_run=True).files


def test_what_cannot_be_pushed(tmp_path, folder):
    with pytest.raises(ExportError, match="is not a folder"):
        push_to_hub(tmp_path / "none", REPOSITORY, dry_run=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match="holds no files"):
        push_to_hub(tmp_path / "empty", REPOSITORY, dry_run=True)
    both = {"hf": SimpleNamespace(path=folder), "onnx": SimpleNamespace(path=folder)}
    with pytest.raises(ExportError, match="one repository holds one export; got hf, onnx"):
        push_to_hub(both, REPOSITORY, dry_run=True)
    (tmp_path / "outside.txt").write_text("x")
    (folder / "link.txt").symlink_to(tmp_path / "outside.txt")
    with pytest.raises(ExportError, match="link to a file outside"):
        push_to_hub(folder, REPOSITORY, dry_run=True)
