"""`load_model` takes a model from every kind of source, and refuses what it cannot load in plain words."""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import sys
import textwrap
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    T5Config,
)

from tests.kit.gist_server import gists
from tests.kit.hub_server import MAIN, NOWHERE, asked_here, hub_at
from utils.errors import ConfigError, HubError, ModelError, ModelNotFoundError, TrainbookError, UntrustedCodeError
from utils.models import ModelRegistry, load_model
from utils.models import gists as gist_files

ROOT = Path(__file__).resolve().parents[2]
GIST = "0123456789abcdef0123456789abcdef"
NET = """
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, width)

class Net(nn.Module):
    def __init__(self, vocab_size=20, width=8):
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, width)
        self.block = Block(width)
        self.head = nn.Linear(width, vocab_size)

    def forward(self, ids):
        return self.head(self.block.layer(self.tokens(ids)))
"""
CONFIGURED = """
from dataclasses import dataclass
from torch import nn

@dataclass
class NetConfig:
    vocab_size: int = 20
    width: int = 8

class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.tokens = nn.Embedding(config.vocab_size, config.width)
"""
# As nanoGPT's file: parts, a dataclass, and one model over them.
TINY = {"vocab_size": 30, "n_positions": 8, "n_layer": 1, "n_embd": 8, "n_head": 2}
SMALL_BERT = {
    "vocab_size": 30, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 8,
}  # fmt: skip


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ModelRegistry.list_available()
    monkeypatch.setattr(ModelRegistry, "_factories", dict(ModelRegistry._factories))


def write(name, text):
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


# Objects, classes, names


def test_a_model_is_returned_as_it_is():
    model = nn.Linear(2, 2)
    assert load_model(model) is model
    with pytest.raises(ConfigError, match="is a model already"):
        load_model(model, width=3)


class InTheNotebook(nn.Module):
    def __init__(self, width, depth=1):
        super().__init__()
        self.layer, self.depth = nn.Linear(width, width), depth


def test_a_class_and_a_function_of_the_notebook_are_called_with_the_overrides():
    assert load_model(InTheNotebook, width=3).layer.in_features == 3
    assert load_model(lambda width: nn.Linear(width, 2), width=5).in_features == 5
    assert load_model(InTheNotebook, config={"width": 3, "depth": 4}, depth=2).depth == 2
    with pytest.raises(ConfigError, match="widht.*did you mean width"):
        load_model(InTheNotebook, widht=3)
    with pytest.raises(ConfigError, match="width.*has no default"):
        load_model(InTheNotebook)
    with pytest.raises(ModelError, match="returned a dict; must be an nn.Module"):
        load_model(lambda: {"no": "model"})


def test_a_name_of_the_registry():
    ModelRegistry.register("mine", InTheNotebook)
    assert load_model("MINE", width=3).layer.in_features == 3
    with pytest.raises(ModelNotFoundError, match="Did you mean 'gpt-small'"):
        load_model("gpt-smal")
    with pytest.raises(ConfigError, match="vocabsize"):
        load_model("gpt-small", vocabsize=3)


@pytest.mark.parametrize("source", [3, None, "", "  ", "a\0b", [1], "no_such_model", "x" * 5000])
def test_what_is_no_source_is_refused_with_the_kinds_there_are(source):
    with pytest.raises(ModelError, match="ModelRegistry"):
        load_model(source)


@dataclass
class WidthConfig:
    width: int = 4


class Configured(nn.Module):
    def __init__(self, config: WidthConfig, scale: float = 1.0):
        super().__init__()
        self.layer, self.scale = nn.Linear(config.width, 1), scale


class Described(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.layer = nn.Linear(config["width"], config.depth)


@pytest.mark.parametrize(
    ("arguments", "width"),
    [({}, 4), ({"width": 6}, 6), ({"config": {"width": 7}}, 7), ({"config": WidthConfig(9)}, 9),
     ({"config": WidthConfig(9), "width": 3}, 3), ({"config": "net.json"}, 5)],
)  # fmt: skip
def test_a_config_is_made_of_the_class_that_the_model_names(arguments, width):
    write("net.json", '{"width": 5}')
    model = load_model(Configured, **arguments, scale=2.0)
    assert (model.layer.in_features, model.scale) == (width, 2.0)


def test_a_config_without_a_class_has_entries_and_attributes():
    layer = load_model(Described, config={"width": 3}, depth=2).layer
    assert (layer.in_features, layer.out_features) == (3, 2)
    with pytest.raises(ConfigError, match="takes a config"):
        load_model(Described)
    with pytest.raises(ModelError, match="no entry 'depth'"):
        load_model(Described, width=3)


# Files of one's own


def test_a_file_with_one_model_and_its_parts():
    write("net.py", NET)
    assert type(load_model("net.py", width=4)).__name__ == "Net"
    assert type(load_model(Path("net.py"))).__name__ == "Net"
    assert type(load_model("net.py:Block", width=4)).__name__ == "Block"
    with pytest.raises(ModelError, match="no 'Bock'.*Block, Net.*Did you mean 'Block'"):
        load_model("net.py:Bock")


def test_a_file_that_changed_is_read_again_and_models_keep_their_class():
    write("net.py", NET)
    first = load_model("net.py")
    write("net.py", NET.replace("width=8", "width=16"))
    assert load_model("net.py").block.layer.in_features == 16
    assert type(first)().block.layer.in_features == 8


def test_a_file_with_a_config_class_or_a_function_or_a_sibling():
    write("configured.py", CONFIGURED)
    assert load_model("configured.py").tokens.embedding_dim == 8
    assert load_model("configured.py", width=3).tokens.embedding_dim == 3
    write("made.py", "from torch import nn\ndef create_model(n=3):\n    return nn.Linear(n, 1)\n")
    assert load_model("made.py", n=2).in_features == 2
    write("a folder/parts_of_mine.py", "WIDTH = 7\n")
    write(
        "a folder/net.py",
        "from parts_of_mine import WIDTH\nfrom torch import nn\ndef make():\n    return nn.Linear(WIDTH, 1)\n",
    )
    assert load_model("a folder/net.py:make").in_features == 7
    assert str(Path("a folder").absolute()) not in sys.path


def test_several_models_or_none_in_a_file_are_an_error_that_lists_them():
    write("two.py", "from torch import nn\nclass A(nn.Module): pass\nclass B(nn.Module): pass\n")
    with pytest.raises(ModelError, match="several models: A, B. Name one"):
        load_model("two.py")
    write("none.py", "from torch.nn import Linear\n")  # an imported class is not the file's own
    with pytest.raises(ModelError, match="defines no nn.Module class"):
        load_model("none.py")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from torch import nn\nclass Net(nn.Module)\n    pass\n", r"net.py line 2: SyntaxError: expected ':'"),
        ("def f():\n    x = 1\n   y = 2\n", r"net.py line 3: IndentationError"),
        ("x = 1\nimport no_such_package\n", r"net.py line 2: the module 'no_such_package' is not installed"),
        ("x = 1\n\ny = x / 0\n", r"net.py line 3: ZeroDivisionError: division by zero"),
        ("import sys\nsys.exit(3)\n", r"net.py line 2: SystemExit: 3"),
        ("x = '\0'\n", r"net.py"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_line(text, message):
    Path("net.py").write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        load_model("net.py")
    assert isinstance(caught.value.__cause__, (ZeroDivisionError, SystemExit, type(None)))


def test_an_error_of_the_constructor_names_the_line_of_the_file():
    write("net.py", NET.replace("nn.Embedding(vocab_size, width)", "nn.Embedding(vocab_size, missing)"))
    with pytest.raises(ModelError, match=r"Net could not be created line 12: NameError: name 'missing'"):
        load_model("net.py")


def test_a_missing_file_names_the_working_folder_and_one_that_is_near():
    write("network.py", NET)
    with pytest.raises(
        ModelNotFoundError, match=f"(?s)does not exist; the working folder is {Path.cwd()}.*'network.py'"
    ):
        load_model("netwrk.py")
    with pytest.raises(FileNotFoundError):
        load_model("./nothing")


def test_an_importable_function_and_what_it_says_of_names_that_do_not_exist():
    write("my_models/nets.py", NET)
    assert type(load_model("my_models.nets:Net", width=4)).__name__ == "Net"
    with pytest.raises(ModelNotFoundError, match="has no 'Nett'. Did you mean 'Net'"):
        load_model("my_models.nets:Nett")
    with pytest.raises(ModelError, match="'my_models.nothing' is not installed"):
        load_model("my_models.nothing:Net")
    assert str(Path.cwd()) not in sys.path


def test_a_files_own_digest_can_be_required():
    path = write("net.py", NET)
    assert load_model("net.py", trust=hashlib.sha256(path.read_bytes()).hexdigest())
    path.write_text(NET + "\nimport no_such_package\n")
    with pytest.raises(UntrustedCodeError, match="is not the code that you trusted"):
        load_model("net.py", trust=hashlib.sha256(NET.encode()).hexdigest())
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        load_model("net.py", trust="yes")
    for source in (nn.Linear(1, 1), "lenet", "torch.nn:Identity"):
        with pytest.raises(ConfigError, match="nothing to trust"):
            load_model(source, trust="0" * 64)


# transformers


def test_a_config_object_and_file_make_the_architecture_with_new_weights():
    config = GPT2Config(**TINY)
    assert isinstance(load_model(config), GPT2LMHeadModel)
    assert load_model(config, n_layer=2).config.n_layer == 2
    assert config.n_layer == 1
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained("gpt")
    assert load_model("gpt/config.json", n_embd=4).config.n_embd == 4
    with pytest.raises(ConfigError, match="n_layr.*did you mean n_layer"):
        load_model("gpt/config.json", n_layr=2)
    with pytest.raises(ModelError, match="n_embd|embed_dim|divisible"):
        load_model(config, n_embd=3)


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (BertConfig(**SMALL_BERT), "BertForMaskedLM"),
        (BertConfig(**SMALL_BERT, is_decoder=True), "BertLMHeadModel"),
        (BertConfig(**SMALL_BERT, architectures=["BertForSequenceClassification"]), "BertForSequenceClassification"),
        (T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2), "T5ForConditionalGeneration"),
    ],
)  # fmt: skip
def test_the_class_follows_from_the_config(config, name):
    assert type(load_model(config)).__name__ == name


def test_an_unknown_class_or_type_is_refused_with_those_there_are():
    with pytest.raises(ConfigError, match="BertForSequenceClasification.*Did you mean 'BertForSequenceClassification'"):
        load_model(BertConfig(**SMALL_BERT, architectures=["BertForSequenceClasification"]))
    with pytest.raises(ConfigError, match="takes a GPT2Config; got a BertConfig"):
        load_model(BertConfig(**SMALL_BERT, architectures=["GPT2LMHeadModel"]))
    write("config.json", '{"model_type": "gpt3"}')
    with pytest.raises(ModelError, match="no model_type 'gpt3'.*Did you mean 'gpt"):
        load_model("config.json")
    write("other.json", '{"width": 3}')
    with pytest.raises(ModelError, match="no model_type"):
        load_model("other.json")
    write("broken.json", "{")
    with pytest.raises(ModelError, match="not valid JSON"):
        load_model("broken.json")


def test_a_folder_gives_its_weights_and_says_what_it_did_not_have(caplog):
    saved = GPT2LMHeadModel(GPT2Config(**TINY))
    saved.save_pretrained("gpt")
    loaded = load_model("gpt")
    assert all(torch.equal(a, b) for a, b in zip(saved.parameters(), loaded.parameters(), strict=True))
    with pytest.raises(ConfigError, match="holds no code to trust"):
        load_model("gpt", trust="0" * 64)
    BertForMaskedLM(BertConfig(**SMALL_BERT)).save_pretrained("bert")
    with caplog.at_level(logging.WARNING, "trainbook.models"):
        model = load_model("bert:BertForSequenceClassification", num_labels=3)
    assert isinstance(model, BertForSequenceClassification)
    assert model.config.num_labels == 3
    assert "classifier.weight" in caplog.text


def test_a_folder_without_weights_or_with_those_of_another_model_is_refused():
    GPT2Config(**TINY).save_pretrained("empty")
    with pytest.raises(ModelError, match="no weights .*give the file config.json itself"):
        load_model("empty")
    GPT2LMHeadModel(GPT2Config(**TINY)).save_pretrained("gpt")
    with pytest.raises(ModelError, match="cannot be loaded.*|size|mismatch"):
        load_model("gpt", n_embd=4)
    BertConfig(**SMALL_BERT, architectures=["BertForMaskedLM"]).save_pretrained("gpt")
    with pytest.raises(ModelError, match="none of its weights has a name"):
        load_model("gpt")
    Path("gpt/model.safetensors").write_bytes(b"\xff" * 30)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_model("gpt")
    Path("stray").mkdir()
    with pytest.raises(ModelError, match="not the folder of a model"):
        load_model("stray")


def test_a_folder_of_ones_own_code_has_its_config_and_weights():
    from safetensors.torch import save_file

    write("mine/model.py", NET)
    write("mine/config.json", '{"model_name": "Net", "width": 6, "made_by": "me"}')
    model = load_model("mine")
    assert model.block.layer.in_features == 6
    save_file(
        {name: torch.full_like(value, 2.0) for name, value in model.state_dict().items()}, "mine/model.safetensors"
    )
    assert load_model("mine").head.weight.mean().item() == 2.0
    with pytest.raises(ModelError, match="does not hold the weights"):
        load_model("mine", width=4)


CUSTOM = """
from transformers import PretrainedConfig, PreTrainedModel
from torch import nn
from .parts import WIDTH

open("ran", "w").close()

class TinyConfig(PretrainedConfig):
    model_type = "tiny-of-mine"
    def __init__(self, vocab_size=9, **more):
        super().__init__(**more)
        self.vocab_size = vocab_size

class TinyModel(PreTrainedModel):
    config_class = TinyConfig
    def __init__(self, config):
        super().__init__(config)
        self.head = nn.Linear(WIDTH, config.vocab_size)
        self.post_init()
    def forward(self, input_ids):
        return self.head(input_ids.float())
"""


def custom_folder():
    """A transformers folder that brings its own code."""
    write("custom/modeling.py", CUSTOM)
    write("custom/parts.py", "WIDTH = 4\n")
    config = {
        "model_type": "tiny-of-mine", "vocab_size": 9, "architectures": ["TinyModel"],
        "auto_map": {"AutoConfig": "modeling.TinyConfig", "AutoModel": "modeling.TinyModel"},
    }  # fmt: skip
    write("custom/config.json", json.dumps(config))
    from safetensors.torch import save_file

    save_file(
        {"head.weight": torch.ones(9, 4), "head.bias": torch.zeros(9)}, "custom/model.safetensors", {"format": "pt"}
    )


def test_code_in_a_transformers_folder_runs_only_with_its_sha256():
    custom_folder()
    with pytest.raises(UntrustedCodeError, match=r"modeling.py \(") as refused:
        load_model("custom")
    assert not Path("ran").exists()
    model = load_model("custom", trust=refused.value.sha256)
    assert model.head.weight.sum().item() == 36.0
    assert Path("ran").exists()
    Path("custom/parts.py").write_text("WIDTH = 4  # changed\n")
    with pytest.raises(UntrustedCodeError, match="not the code that you trusted"):
        load_model("custom", trust=refused.value.sha256)


# Archives


def archive(files, name="model.zip"):
    with zipfile.ZipFile(name, "w", zipfile.ZIP_DEFLATED) as target:
        for path, content in files.items():
            target.writestr(path, content)
    return name


@pytest.mark.parametrize("folder", ["", "export/"])
def test_an_archive_runs_only_with_the_sha256_of_its_code(folder):
    name = archive({f"{folder}model.py": NET, f"{folder}config.json": '{"width": 5}', f"{folder}README.md": "hello"})
    with pytest.raises(UntrustedCodeError) as refused:
        load_model(name)
    assert load_model(name, trust=refused.value.sha256).block.layer.in_features == 5
    assert sorted(path.name for path in Path().iterdir()) == ["model.zip"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"readme.md": "x"}, "no model.py"),
        ({"model.py": "x" * (2 << 20)}, "at most 1,048,576"),
        ({"model.py": b"\xff\xfe"}, "not UTF-8"),
        ({"model.py": "x", "Model.py": "y"}, "upper and lower case"),
        ({"model.py": "x", "a b.py": "y"}, "Names are letters"),
        ({f"m{number}.py": "x" for number in range(120)} | {"model.py": "x"}, "at most 100"),
    ],
)
def test_an_archive_outside_of_the_limits_is_refused(files, message):
    with pytest.raises(ModelError, match=message) as caught:
        load_model(archive(files))
    assert not isinstance(caught.value, UntrustedCodeError)


def test_what_is_no_archive_is_refused():
    Path("model.zip").write_bytes(b"PK\x03\x04nothing")
    with pytest.raises(ModelError, match="cannot be read as a zip archive"):
        load_model("model.zip")


# Gists


@pytest.fixture
def github(monkeypatch):
    """GitHub on 127.0.0.1, for gists alone."""
    with gists() as server:
        monkeypatch.setattr(gist_files, "API", server.address)
        monkeypatch.setattr(gist_files, "ORIGINS", frozenset({server.address, "https://gist.github.com"}))
        yield server


def refusal(source=f"gist:{GIST}", error=TrainbookError, **arguments):
    with pytest.raises(error) as caught:
        load_model(source, **arguments)
    return caught.value


def test_f31_a_hostile_gist_is_not_run(github):
    marker = Path("ran")
    hostile = f"open({str(marker.absolute())!r}, 'w').close()\n{NET}"
    github.gist(GIST, {"model.py": hostile, "config.json": "{}"})
    # Import-time side effects: shown, not run.
    shown = refusal(error=UntrustedCodeError)
    assert hostile.strip() in str(shown)
    assert shown.files["model.py"] == hostile
    assert shown.sha256 in str(shown)
    # Another digest, and content that changed after consent: both digests are named.
    wrong = refusal(error=UntrustedCodeError, trust="0" * 64)
    assert "0" * 64 in str(wrong)
    assert wrong.sha256 in str(wrong)
    github.gist(GIST, {"model.py": hostile + "# changed\n", "config.json": "{}"})
    changed = refusal(error=UntrustedCodeError, trust=shown.sha256)
    assert shown.sha256 in str(changed)
    assert changed.sha256 != shown.sha256
    # Redirects to another host, of the API and of a raw file.
    github.answers[f"/gists/{GIST}"] = (302, {"Location": "http://localhost:1/gists/x"}, b"")
    assert "leads to http://localhost:1, which is not one of GitHub's hosts" in str(refusal(error=HubError))
    raw = {"filename": "model.py", "size": 10, "truncated": True, "content": "", "raw_url": f"{github.address}/raw"}
    github.gist(GIST, {"model.py": raw})
    github.answers["/raw"] = (302, {"Location": "file:///etc/passwd"}, b"")
    assert "'file:///etc/passwd' is not allowed" in str(refusal(error=HubError))
    github.gist(GIST, {"model.py": {**raw, "raw_url": "http://localhost:1/raw"}})
    assert "leads to http://localhost:1" in str(refusal(error=HubError))
    # Ten megabytes, as the description states and as the content turns out to be.
    large = {
        "filename": "model.py",
        "size": 10 << 20,
        "truncated": True,
        "content": "",
        "raw_url": f"{github.address}/raw",
    }
    github.gist(GIST, {"model.py": large})
    assert "10,485,760 bytes; at most 1,048,576" in str(refusal(error=ModelError))
    github.gist(GIST, {"model.py": {**large, "size": 5}})
    github.answers["/raw"] = (200, {}, b"x" * (10 << 20))
    assert "more than 1,048,576 bytes" in str(refusal(error=ModelError))
    # Names that lead out of a folder.
    github.gist(GIST, {"model.py": NET, "../../evil.py": "x = 1"})
    assert "'../../evil.py'" in str(refusal(error=ModelError))
    assert not marker.exists()
    assert [path.name for path in Path().iterdir()] == []


def test_a_trusted_gist_is_its_model_with_its_config(github):
    github.gist(
        GIST, {"model.py": NET, "config.json": '{"model_name": "Net", "width": 6, "nodes": [1]}', "notes.md": "x"}
    )
    trust = refusal().sha256
    model = load_model(f"https://gist.github.com/somebody/{GIST}", trust=trust, vocab_size=11)
    assert (model.block.layer.in_features, model.tokens.num_embeddings) == (6, 11)
    assert "class Net" in inspect.getsource(type(model))
    lines = "".join(
        f"{hashlib.sha256(content.encode()).hexdigest()}  {name}\n"
        for name, content in (("config.json", '{"model_name": "Net", "width": 6, "nodes": [1]}'), ("model.py", NET))
    )
    assert trust == hashlib.sha256(lines.encode()).hexdigest()
    github.gist(GIST, {"model.py": NET})
    assert refusal().sha256 == hashlib.sha256(NET.encode()).hexdigest()


def test_what_was_shown_is_what_runs_though_the_gist_changes_in_between(github):
    github.gist(GIST, {"model.py": NET})
    trust = refusal().sha256
    github.on_request = lambda path: github.gist(GIST, {"model.py": "raise SystemExit(3)"})
    with pytest.raises(UntrustedCodeError):
        load_model(f"gist:{GIST}", trust=trust)


def test_an_error_in_a_trusted_gist_names_its_line(github):
    github.gist(GIST, {"model.py": "x = 1\nclass Net(:\n"})
    caught = refusal(trust=refusal().sha256, error=ModelError)
    assert "model.py line 2: SyntaxError" in str(caught)
    github.gist(GIST, {"model.py": "from .parts import x\n", "parts.py": "\n\nx = y\n"})
    assert "parts.py line 3): NameError" in str(refusal(trust=refusal().sha256, error=ModelError))


def test_code_cannot_hide_from_the_reader(github):
    hidden = "password = __import__('os').system('true')  # \u202e\r\x1b[2K\nx = 'ghp_" + "a" * 30 + "'\n"
    github.gist(GIST, {"model.py": hidden})
    text = str(refusal())
    assert "__import__('os').system('true')" in text
    assert "***" not in text
    assert not {"\u202e", "\r", "\x1b"} & set(text)
    assert "\\u202e\\r\\x1b[2K" in text


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (404, {}, "no such gist"),
        (403, {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "1"}, "limit of requests.*GITHUB_TOKEN"),
        (429, {}, "limit of requests"),
        (401, {}, "does not accept GITHUB_TOKEN"),
        (403, {}, "refused"),
        (502, {}, "cannot answer now"),
        (200, {"Content-Type": "text/html"}, "not that of GitHub's API"),
    ],
)
def test_what_github_refuses_is_told_with_a_way_out(github, status, headers, message):
    github.answers[f"/gists/{GIST}"] = (status, headers, b"<html>log in</html>")
    with pytest.raises(HubError, match=message) as caught:
        load_model(GIST)
    assert caught.value.__cause__ is None


def test_a_gist_without_a_model_and_a_line_that_is_down(github, monkeypatch):
    github.gist(GIST, {"other.py": NET, "config.json": "{}"})
    with pytest.raises(ModelError, match="no file model.py; it has config.json, other.py"):
        load_model(f"gist:{GIST}")
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(gist_files, "API", nowhere)
    monkeypatch.setattr(gist_files, "ORIGINS", frozenset({nowhere}))
    with pytest.raises(HubError, match="could not be reached.*save model.py on this machine"):
        load_model(f"gist:{GIST}")


def test_the_token_goes_to_the_api_alone_and_is_not_shown(github, monkeypatch):
    token = "canary-token-0123456789"
    monkeypatch.setenv("GITHUB_TOKEN", token)
    raw = {"filename": "model.py", "size": 9, "truncated": True, "content": "", "raw_url": f"{github.address}/raw"}
    monkeypatch.setattr(gist_files, "API", f"{github.address}/api")
    github.gist(GIST, {"model.py": raw})
    github.answers[f"/api/gists/{GIST}"] = (302, {"Location": f"{github.address}/gists/{GIST}"}, b"")
    github.answers["/raw"] = (200, {}, NET.encode())
    assert token not in str(refusal(error=UntrustedCodeError))
    sent = {path: headers.get("Authorization") for path, headers in github.asked}
    assert sent == {f"/api/gists/{GIST}": f"Bearer {token}", f"/gists/{GIST}": None, "/raw": None}
    github.answers["/raw"] = (500, {}, token.encode())
    assert token not in str(refusal(error=HubError))


@pytest.mark.parametrize(
    ("source", "gist_id", "revision"),
    [
        (GIST, GIST, None),
        (f"gist:{GIST}@{'a' * 40}", GIST, "a" * 40),
        (f"https://gist.github.com/{GIST}", GIST, None),
        (f"https://gist.github.com/12345/{GIST}#file-model-py", GIST, None),
        (f"https://gist.github.com/me/{GIST}/{'b' * 40}", GIST, "b" * 40),
        (f"https://gist.githubusercontent.com/me/{GIST}/raw/{'b' * 40}/model.py", GIST, "b" * 40),
        (f"https://api.github.com/gists/{GIST}", GIST, None),
        ("https://gist.github.com/me/1234567", "1234567", None),
    ],
)
def test_every_form_of_a_gists_address(source, gist_id, revision):
    assert gist_files.gist_address(source) == gist_files.GistAddress(gist_id, revision)


@pytest.mark.parametrize(
    "source",
    ["https://evil.example/gists/1234567890", f"https://gist.github.com@evil.example/{GIST}", "https://gist.github.com/me",
     f"ftp://gist.github.com/{GIST}", f"https://gist.github.com.evil.example/{GIST}", "gist:../../x", "https://[x", "file:///x"],
)  # fmt: skip
def test_other_hosts_and_addresses_without_a_gist_are_refused(source):
    with pytest.raises(ModelError, match=r"gist"):
        load_model(source)


# The Hub


def answer_of(source):
    """What load_model gives or raises."""
    try:
        model = load_model(source)
    except TrainbookError as error:
        return f"{type(error).__name__}: {error}"
    return [type(model).__name__, float(sum(p.detach().abs().sum() for p in model.parameters()))]


@pytest.mark.slow
def test_a_model_of_the_hub_is_loaded_and_its_code_runs_only_if_trusted():
    saved = GPT2LMHeadModel(GPT2Config(**TINY))
    saved.save_pretrained("gpt")
    custom_folder()
    weights = {path.name: path.read_bytes() for path in Path("gpt").iterdir()}
    own = {path.name: path.read_bytes() for path in Path("custom").iterdir()}
    refusals = {"me/gated": (403, "GatedRepo"), "me/none": (404, "RepoNotFound")}
    home = Path("hub-home").absolute()
    with asked_here({"me/gpt": {MAIN: weights}, "me/custom": {MAIN: own}}, refusals, home):
        model, other, untrusted, gated, missing = map(
            answer_of, ("me/gpt", "me/gpt:GPT2ForSequenceClassification", "me/custom", "me/gated", "me/none")
        )
    assert model == [
        "GPT2LMHeadModel",
        pytest.approx(sum(p.detach().abs().sum().item() for p in saved.parameters()), rel=1e-5),
    ]
    assert other[0] == "GPT2ForSequenceClassification"
    assert untrusted.startswith("UntrustedCodeError: Hugging Face Hub: me/custom holds code")
    assert gated.startswith("HubError: me/gated is gated")
    assert missing.startswith("HubError: the Hugging Face Hub has no model 'me/none'")
    # The same models without a connection: from the copy, or refused.
    with hub_at(NOWHERE, home):
        copy, none = map(answer_of, ("me/gpt", "me/new"))
    assert copy == model
    assert none.startswith("HubError: the Hugging Face Hub could not be reached for me/new")
