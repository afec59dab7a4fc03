"""The health of an export: the score falls when a file is missing or altered, or the weights are other ones."""

from __future__ import annotations

import json
import shutil
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.kit.toys import VOCAB_SIZE, golden_config, plain_lm, tiny_gpt, train_set
from utils.errors import ConfigError
from utils.training import ExportHealthChecker, Trainer, export_model

CONFIG = SimpleNamespace(vocab_size=VOCAB_SIZE, max_seq_len=16)
FORMATS = ["hf", "onnx", "safetensors"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    config = golden_config(epochs=1, output_dir=str(tmp_path_factory.mktemp("runs")))
    results = Trainer(tiny_gpt(dropout=0.0, layers=1), training_config=config).train(train_set())
    export_model(results, formats=FORMATS, which="last")
    return results


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the exports that a test may spoil."""
    return shutil.copytree(exported.run_dir / "exports", tmp_path / "exports")


def checked(results, folder, formats=None, **options):
    return ExportHealthChecker(results.model, CONFIG, results.task_spec).run_all_checks(folder, formats, **options)


def verdicts(report, verdict):
    return [one.name for one in report.results if one.verdict == verdict]


def test_a_whole_export_has_the_full_score(exported, folder):
    report = checked(exported, folder)
    assert verdicts(report, "fail") == []
    assert report.health_score == 1.0
    assert report.all_passed
    assert [name for name in report if name.startswith("parity")] == [f"parity: {name}" for name in FORMATS]
    assert report["parity: onnx"].measured["relative_difference"] < 1e-4
    assert report["performance: hf"].measured["exported_ms"] > 0


def test_the_report_is_left_in_the_folder_and_does_not_count_as_a_change(exported, folder):
    first = checked(exported, folder)
    kept = json.loads((folder / "health_report.json").read_text())
    assert kept["health_score"] == first.health_score
    assert {one["name"] for one in kept["results"]} == set(first)
    assert "| hashes | pass |" in (folder / "health_report.md").read_text()
    checked(exported, folder / "hf", ["hf"])
    assert checked(exported, folder).health_score == 1.0


@pytest.mark.parametrize(
    "name", ["hf/model.safetensors", "onnx/model.onnx", "safetensors/model.safetensors", "hf/README.md"]
)
@pytest.mark.parametrize("damage", ["missing", "altered", "cut"])
def test_the_score_falls_when_a_file_is_missing_or_altered(name, damage, exported, folder):
    file = folder / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    else:
        content[-1] ^= 1
        file.write_bytes(content if damage == "altered" else content[: len(content) // 2])
    report = checked(exported, folder, FORMATS, write=False)
    assert report.health_score < 1.0
    assert not report.all_passed
    assert name in report["hashes"].summary
    assert (name in report["files"].summary) == (damage == "missing")


def test_a_format_that_is_not_there_fails_each_of_its_checks(exported, folder):
    shutil.rmtree(folder / "onnx")
    report = checked(exported, folder, FORMATS, write=False)
    assert verdicts(report, "fail") == ["files", "load: onnx", "shapes: onnx", "parity: onnx", "performance: onnx"]
    assert "formats=['onnx']" in report["load: onnx"].remedy


def test_an_empty_folder_and_none_at_all(exported, tmp_path):
    report = checked(exported, tmp_path)
    assert verdicts(report, "fail") == ["files"]
    absent = checked(exported, tmp_path / "none", ["hf"])
    assert absent.health_score < 0.5
    assert not (tmp_path / "none").exists()


def test_other_weights_are_a_parity_failure(exported, folder):
    other = tiny_gpt(seed=1, layers=1)
    report = ExportHealthChecker(other, CONFIG, exported.task_spec).run_all_checks(folder, write=False)
    assert [name for name in verdicts(report, "fail") if name.startswith("parity")] == [
        f"parity: {name}" for name in FORMATS
    ]
    assert report["hashes"].verdict == "pass"


def test_a_model_of_other_shape_does_not_load(exported, folder):
    report = ExportHealthChecker(plain_lm(), CONFIG).run_all_checks(folder, ["safetensors"], write=False)
    assert "other weights than PlainLM has" in report["load: safetensors"].summary


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_found(value, exported, folder):
    model = tiny_gpt(layers=1)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = value
    report = ExportHealthChecker(model, CONFIG).run_all_checks(folder, ["hf"], write=False)
    assert report["parameters"].verdict == "fail"
    assert report["parity: hf"].verdict == "fail"


@pytest.mark.parametrize(("value", "verdict"), [(float("nan"), "fail"), (float("-inf"), "pass")])
def test_a_buffer_may_hold_a_mask_of_infinities_and_nothing_that_is_no_number(value, verdict, exported, folder):
    model = tiny_gpt(layers=1)
    model.register_buffer("statistics", torch.tensor([0.0, value]))
    result = ExportHealthChecker(model, CONFIG).run_all_checks(folder, ["hf"], write=False)["parameters"]
    assert result.verdict == verdict
    assert ("statistics" in result.summary) is (verdict == "fail")


def test_a_config_of_another_model_is_found(exported, folder):
    report = ExportHealthChecker(exported.model, SimpleNamespace(vocab_size=99)).run_all_checks(
        folder, ["hf"], write=False
    )
    assert report["architecture"].verdict == "fail"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_files_of_a_bundle_are_found_and_compared_with_its_metadata(tmp_path):
    from utils.training.export.manifest import sha256

    model = plain_lm(dropout=0.0).eval()
    (tmp_path / "artifacts").mkdir()
    torch.save(model.state_dict(), tmp_path / "artifacts" / "model.pytorch.pt")
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # torch deprecates TorchScript
        example = torch.ones(1, 4, dtype=torch.long)
        torch.jit.trace(model, example).save(tmp_path / "artifacts" / "model.torchscript.pt")
    files = {
        f"artifacts/{file.name}": {"sha256": sha256(file), "bytes": file.stat().st_size}
        for file in (tmp_path / "artifacts").iterdir()
    }
    (tmp_path / "metadata.json").write_text(json.dumps({"files": files}))
    checker = ExportHealthChecker(model, CONFIG)
    report = checker.run_all_checks(tmp_path, ["torchscript", "pytorch"])
    assert report.health_score == 1.0, report.to_text()
    (tmp_path / "artifacts" / "model.pytorch.pt").write_bytes(b"")
    assert checker.run_all_checks(tmp_path, ["torchscript", "pytorch"]).health_score < 1.0


def test_without_recorded_hashes_changes_cannot_be_seen(tmp_path):
    model = plain_lm()
    torch.save(model.state_dict(), tmp_path / "model.pytorch.pt")
    report = ExportHealthChecker(model, CONFIG).run_all_checks(tmp_path, ["pytorch"])
    assert report["hashes"].verdict == "warn"
    assert report.health_score == pytest.approx(1 - 0.5 / len(report))


def test_a_damaged_record_and_an_unknown_format(exported, folder):
    (folder / "hf" / "trainbook_export.json").write_text("{")
    report = checked(exported, folder, write=False)
    assert report["hashes"].verdict == "fail"
    with pytest.raises(ConfigError, match="Did you mean 'onnx'"):
        checked(exported, folder, ["onyx"])


def test_the_model_is_left_as_it_was(exported, folder, rng_untouched):
    model = exported.model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    checked(exported, folder, ["hf"], write=False)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_model_that_cannot_be_called_is_checked_as_far_as_possible(tmp_path):
    model = nn.Bilinear(2, 3, 4)
    torch.save(model.state_dict(), tmp_path / "model.pytorch.pt")
    report = ExportHealthChecker(model).run_all_checks(tmp_path, ["pytorch"])
    assert report["load: pytorch"].verdict == "pass"
    assert report["parity: pytorch"].verdict in ("not run", "fail")
