"""A bundle holds the model in the formats that were asked for, verified, with everything that is needed to run and serve it."""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import re
import shutil
import socket
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import TensorDataset

from tests.kit.toys import (
    VOCAB_SIZE,
    golden_config,
    normed_lm,
    plain_lm,
    tiny_gpt,
    token_rows,
    train_set,
    validation_set,
)
from tests.kit.tree import ROOT
from utils.errors import ExportError, TrainingInterrupted
from utils.tokenization.character import build_character_tokenizer
from utils.training import Callback, TaskSpec, Trainer, TrainingConfig, TrainingConfigBuilder, create_export_bundle
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.export.bundle_privacy import portable
from utils.training.export.bundle_texts import TESTED, dockerfile
from utils.training.export.result import ExportResult
from utils.training.export_formats import FORMATS

NAMES = {
    "README.md", "Dockerfile", "requirements.txt", "metadata.json", "inference.py", "serve.py", "verify.py", "runners.py",
    "configs/task_spec.json", "configs/training_config.json", "configs/torchserve_config.json", "configs/kserve.yaml",
}  # fmt: skip
#: What states the checksums, and what a later check writes anew.
UNRECORDED = {"metadata.json", "trainbook_export.json", "health_report.json", "health_report.md"}
SECTIONS = [
    "Overview", "Directory Structure", "Quick Start", "Docker Deployment", "TorchServe Deployment", "Model Information",
    "Troubleshooting", "Citation",
]  # fmt: skip


def tokenizer():
    return build_character_tokenizer(["abcdefgh ijklmnop\n"], vocab_size=VOCAB_SIZE)


def quick(**changes):
    """A config whose bundle needs no exporter that traces."""
    return TrainingConfig(**{"export_formats": ["pytorch"], "epochs": 1, **changes})


def metadata_of(bundle):
    return json.loads((Path(bundle) / "metadata.json").read_text(encoding="utf-8"))


def files_of(bundle):
    return {path.relative_to(bundle).as_posix(): path for path in Path(bundle).rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """A GPT-2 with its tokenizer, as a Hugging Face folder; a format that no model is exported to was asked for as well."""
    model = tiny_gpt().eval()
    config = TrainingConfig(
        export_formats=["hf", "peft"], output_dir=str(tmp_path_factory.mktemp("home") / "runs"), wandb_entity="somebody"
    )
    spec = TaskSpec.language_modeling("counting up", vocab_size=VOCAB_SIZE)
    path = create_export_bundle(model, None, spec, config, tmp_path_factory.mktemp("exports"), tokenizer=tokenizer())
    return path


def test_the_bundle_has_everything_under_its_documented_names(bundle):
    assert bundle.is_absolute()
    assert set(files_of(bundle)) >= NAMES
    assert "tokenizer/tokenizer.json" in files_of(bundle)
    metadata = metadata_of(bundle)
    assert {"task_name", "modality", "task_type", "formats", "export_timestamp", "framework_version"} <= set(metadata)
    assert (metadata["task_name"], metadata["task_type"], metadata["modality"]) == ("counting up", "causal_lm", "text")
    assert metadata["formats"] == ["hf", "pytorch"]
    assert metadata["runnable"] == ["hf"]
    served = json.loads((bundle / "configs" / "torchserve_config.json").read_text())
    assert {
        "modelName", "modelVersion", "runtime", "minWorkers", "maxWorkers", "batchSize", "deviceType", "handler", "metrics",
    } <= set(served)  # fmt: skip
    assert served["handler"]["class"]
    readme = (bundle / "README.md").read_text()
    assert re.findall(r"^## (.*)$", readme, re.MULTILINE) == SECTIONS
    assert all(name in readme for name in files_of(bundle))


def test_a_format_that_could_not_be_written_is_named_with_its_reason(bundle):
    assert set(metadata_of(bundle)["not_written"]) == {"peft"}
    assert "Not written: peft: " in (bundle / "README.md").read_text()


def test_the_health_report_says_what_was_checked(bundle):
    report = json.loads((bundle / "health_report.json").read_text())
    verdicts = {one["name"]: one["verdict"] for one in report["checks"]}
    assert verdicts["hf runs in another process"] == verdicts["weights are finite"] == "pass"
    assert verdicts["peft was written"] == "fail"
    assert (report["all_passed"], report["health_score"]) == (False, round(1 - 1 / len(verdicts), 4))
    assert "| peft was written | fail |" in (bundle / "health_report.md").read_text()


def test_every_file_is_recorded_with_its_checksum(bundle):
    recorded = metadata_of(bundle)["files"]
    assert set(recorded) == set(files_of(bundle)) - UNRECORDED
    for name, path in files_of(bundle).items():
        if name in recorded:
            assert recorded[name] == {
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "bytes": path.stat().st_size,
            }  # fmt: skip


def test_the_weights_are_the_models_in_every_format(bundle):
    expected = tiny_gpt().state_dict()
    loaded = torch.load(bundle / "artifacts" / "model.pytorch.pt", weights_only=True)
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], expected[name]) for name in expected)
    stored = load_file(bundle / "artifacts" / "hf" / "model.safetensors")
    assert all(torch.equal(stored[name], expected[name]) for name in stored)


def test_the_configs_load_again(bundle):
    config = TrainingConfig.load(bundle / "configs" / "training_config.json")
    assert config.export_formats == ("hf", "peft")
    spec = TaskSpec.from_dict(json.loads((bundle / "configs" / "task_spec.json").read_text()))
    assert spec.task_type == "causal_lm"


def test_nothing_in_the_bundle_names_this_machine_or_its_user(bundle, tmp_path):
    host = socket.gethostname()
    words = [str(ROOT), str(bundle.parent.parent), str(Path.home()), str(Path.cwd()), "somebody"]
    words += [word for word in (host, getpass.getuser()) if len(word) > 5]  # shorter ones are parts of other words
    for name, path in files_of(bundle).items():
        content = [path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                content += [archive.read(one) for one in archive.namelist()]
        for word in words:
            assert not any(word.encode() in part for part in content), f"{name} holds {word}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{home}/data/model.pt cannot be read", "model.pt cannot be read"),
        ("see https://example.org/a/b/c", "see https://example.org/a/b/c"),
        ("/m/01g317", "/m/01g317"),
        ("and/or", "and/or"),
        (r"C:\Users\somebody\x.txt", "x.txt"),
    ],
)
def test_paths_are_cut_to_their_last_part_and_other_text_is_kept(text, expected):
    assert portable({"a": [text.format(home=Path.home())]}) == {"a": [expected]}


def test_the_requirements_are_exact_and_those_that_the_formats_need(bundle):
    lines = (bundle / "requirements.txt").read_text().splitlines()
    assert all(re.fullmatch(r"[a-z-]+==[0-9.]+", line) for line in lines)
    assert {line.partition("==")[0] for line in lines} == {
        "fastapi", "numpy", "safetensors", "tokenizers", "torch", "transformers", "uvicorn",
    }  # fmt: skip


def test_versions_for_a_machine_without_the_server_are_those_that_are_tested():
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert {name: pinned[name] for name in TESTED} == TESTED


def test_the_dockerfile_follows_the_rules():
    steps = [line for line in re.sub(r"\\\n", " ", dockerfile()).splitlines() if line and not line.startswith("#")]
    order = [step.split()[0] for step in steps]
    assert order[0] == "FROM"
    assert re.fullmatch(r"FROM python:\d+\.\d+\.\d+-slim", steps[0]), "the base image has an exact version"
    assert [step for step in steps if step.startswith("USER")] == ["USER inference"]
    assert order.index("USER") > max(number for number, word in enumerate(order) if word in ("RUN", "COPY"))
    assert "EXPOSE 8080" in steps
    assert any(step.startswith("HEALTHCHECK") and "/health" in step for step in steps)
    assert sum(word == "CMD" for word in order) == 1
    assert steps[-1].startswith("CMD [")
    assert not any("ADD " in step or "curl" in step or ":latest" in step for step in steps)


@pytest.mark.parametrize(
    "wrap", [lambda model: model, lambda model: torch.compile(model, backend="eager")], ids=["plain", "compiled"]
)
def test_the_model_is_left_as_it_was_and_a_compiled_one_is_unwrapped(wrap, tmp_path, rng_untouched):
    model = plain_lm().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    spec = TaskSpec("numbers", "tabular")
    bundle = create_export_bundle(wrap(model), None, spec, quick(), tmp_path)
    assert model.training
    loaded = torch.load(bundle / "artifacts" / "model.pytorch.pt", weights_only=True)
    assert loaded.keys() == before.keys()
    assert all(torch.equal(loaded[name], before[name]) for name in before)
    metadata = metadata_of(bundle)
    assert metadata["model"]["class"] == "PlainLM"
    assert metadata["runnable"] == []
    assert "load_state_dict" in (bundle / "README.md").read_text()


def test_two_bundles_do_not_overwrite_each_other(tmp_path):
    spec = TaskSpec("numbers", "tabular")
    first, second = (create_export_bundle(nn.Linear(2, 2), None, spec, quick(), tmp_path) for _ in range(2))
    assert first != second
    assert (first / "metadata.json").is_file()


def test_arguments_may_be_mappings_and_may_be_left_out(tmp_path):
    bundle = create_export_bundle(
        nn.Linear(2, 2), {}, {"name": "numbers", "modality": "tabular"}, {"export_formats": ["safetensors"]}, tmp_path
    )
    assert metadata_of(bundle)["formats"] == ["safetensors", "pytorch"]
    with pytest.raises(ExportError, match="takes an nn.Module as model"):
        create_export_bundle("model.pt", export_base_dir=tmp_path)


class NoTensor(nn.Linear):
    """A module with something other than tensors in its state: no format holds it."""

    def get_extra_state(self):
        return {"a": 1}

    def set_extra_state(self, state):
        pass


def test_when_no_format_can_be_written_the_error_names_each_and_nothing_is_left(tmp_path):
    with pytest.raises(ExportError, match="(?s)no format could be written.*safetensors: .*pytorch: "):
        create_export_bundle(
            NoTensor(2, 2), None, TaskSpec("n", "tabular"), quick(export_formats=["safetensors"]), tmp_path / "made"
        )
    assert list((tmp_path / "made").iterdir()) == []


def traced(model, tokenizer, target, source, notes=()):
    """An exporter of TorchScript that knows one input only."""
    target.mkdir()
    script = torch.jit.trace(model, torch.zeros(2, 5).long(), check_trace=False)
    torch.jit.save(script, str(target / "model.pt"))
    return ExportResult("torchscript", target, 0, {"max_abs_diff": 0.0})


def garbled(model, tokenizer, target, source, notes=()):
    """An exporter whose file cannot be loaded, though it says that all is well."""
    target.mkdir()
    (target / "model.pt2").write_bytes(b"no program")
    return ExportResult("torch_export", target, 0, {"max_abs_diff": 0.0})


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_only_what_runs_in_another_process_is_in_the_bundle(tmp_path, monkeypatch):
    monkeypatch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"], writer=traced))
    monkeypatch.setitem(FORMATS, "torch_export", replace(FORMATS["torch_export"], writer=garbled))
    spec = TaskSpec.language_modeling(vocab_size=VOCAB_SIZE)
    bundle = create_export_bundle(
        normed_lm(), None, spec, quick(export_formats=["torchscript", "torch_export"]), tmp_path
    )
    metadata = metadata_of(bundle)
    assert metadata["formats"] == ["torchscript", "pytorch"]
    assert metadata["verification"]["torchscript"]["max_abs_diff"] < 1e-5
    assert "does not run as inference.py runs it" in metadata["not_written"]["torch_export"]
    assert {name for name in files_of(bundle) if name.startswith("artifacts/")} == {
        "artifacts/example.json", "artifacts/model.pytorch.pt", "artifacts/model.torchscript.pt",
    }  # fmt: skip
    assert set(metadata["files"]) == set(files_of(bundle)) - UNRECORDED
    assert str(ROOT).encode() not in (bundle / "artifacts" / "model.torchscript.pt").read_bytes()


# ---- After training ----


def trained(model=None, callbacks=(), given_tokenizer=None, **changes):
    settings = {
        "epochs": 2,
        "early_stopping_patience": None,
        "export_bundle": True,
        "export_formats": ["pytorch"],
        **changes,
    }
    trainer = Trainer(
        model or tiny_gpt(), training_config=golden_config(**settings), callbacks=callbacks, tokenizer=given_tokenizer,
        task_spec=TaskSpec.language_modeling(),
    )  # fmt: skip
    return trainer.train(train_set(), validation_set(), resume_from="auto")


@pytest.fixture
def without_verification(monkeypatch):
    """Bundles that are not about their programs need no process of their own."""
    monkeypatch.setattr("utils.training.export.bundle.RUNNABLE", ())


@pytest.mark.parametrize("export_dir", [None, "elsewhere"])
def test_training_ends_with_a_bundle_of_the_best_checkpoint(export_dir, without_verification):
    results = trained(learning_rate=0.03, export_dir=export_dir)
    bundle = Path(results["export_dir"])
    assert bundle.parent == (Path("elsewhere").absolute() if export_dir else results.run_dir / "exports")
    best = read_checkpoint(results.best_model_path)["model"]
    loaded = torch.load(bundle / "artifacts" / "model.pytorch.pt", weights_only=True)
    assert all(torch.equal(loaded[name], best[name]) for name in best)
    assert results.export_error is None
    assert results.summary()["export bundle"] == str(bundle)
    assert metadata_of(bundle)["run"]["name"] == "golden"


def test_the_same_cell_again_finds_the_bundle_and_makes_one_that_is_gone(without_verification):
    first, again = trained(), trained()
    assert again.export_dir == first.export_dir
    assert len(list(Path(first.export_dir).parent.iterdir())) == 1
    (Path(first.export_dir) / "metadata.json").unlink()
    made = trained()
    assert made.export_dir not in (None, first.export_dir)
    assert made.steps == first.steps


def test_a_bundle_that_fails_is_reported_and_the_run_is_kept(caplog, without_verification):
    Path("a file").write_text("")
    with caplog.at_level(logging.WARNING, "trainbook.export"):
        results = trained(export_dir="a file/exports")
    assert results.stop_reason == "finished"
    assert Path(results.best_model_path).is_file()
    assert results.export_dir is None
    assert "could not be written" in results.export_error
    assert any("No export bundle was made" in sentence for sentence in results.notices)
    assert "No export bundle was made" in caplog.text


def test_a_format_that_is_missing_is_in_the_notices(without_verification):
    results = trained(export_formats=["pytorch", "peft"])
    assert any(sentence.startswith("peft is not in the export bundle: ") for sentence in results.notices)


def test_a_run_that_can_be_continued_has_no_bundle_yet(without_verification):
    class Stop(Callback):
        def on_step_end(self, step, trainer, logs=None):
            trainer.request_stop("enough for now")

    results = trained(callbacks=[Stop()])
    assert results.export_dir is None
    assert "can be continued" in results.export_error
    assert trained().export_dir is not None


def test_an_interrupt_while_the_bundle_is_written_carries_the_results(monkeypatch, without_verification):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("utils.training.export.bundle_results.write_bundle", interrupted)
    with pytest.raises(TrainingInterrupted) as caught:
        trained()
    assert caught.value.results.stop_reason == "finished"
    assert caught.value.results.export_error == "interrupted"


def test_a_bundle_changes_no_number_of_the_run(without_verification):
    with_bundle, without = trained(), trained(export_bundle=False, run_name="without")
    assert with_bundle.loss_history == without.loss_history
    assert without.export_dir is None


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("g++", "c++", "clang++"))), reason="needs a C++ compiler")
def test_the_quality_preset_trains_and_leaves_a_bundle():
    builder = TrainingConfigBuilder.quality().with_training(epochs=1, batch_size=4).with_logging(run_name="quality")
    # Full batches of one shape, as each further one is compiled for itself.
    train, validation = TensorDataset(token_rows(16)), TensorDataset(token_rows(4, seed=2))
    trainer = Trainer(plain_lm(), training_config=builder.build(), task_spec=TaskSpec.language_modeling())
    results = trainer.train(train, validation)
    assert results.stop_reason == "finished"
    metadata = metadata_of(results.export_dir)
    assert "onnx" in metadata["runnable"]
    assert (Path(results.export_dir) / "artifacts" / "model.onnx").is_file()
    assert {"onnx", "torchscript"} <= set(metadata["formats"]) | set(metadata["not_written"])
