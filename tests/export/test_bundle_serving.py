"""A bundle's programs run without this library: predictions are the model's, and no input brings the server down."""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import re
import shutil
import sys
import types
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers as hf
from PIL import Image
from torch import nn

from tests.kit.bundles import clean_python, run_program, serving
from tests.kit.toys import LENGTH, VOCAB_SIZE, tiny_gpt
from utils.adapters import generate
from utils.tokenization.character import build_character_tokenizer
from utils.training import TaskSpec, TrainingConfig, create_export_bundle
from utils.training.export.result import ExportResult
from utils.training.export_formats import FORMATS

PROMPT = "abc "


def tokenizer():
    return build_character_tokenizer(["abcdefgh ijklmnop\n"], vocab_size=VOCAB_SIZE)


def greedy(ids, count):
    """What the trained model writes after these ids, its end-of-text token left out."""
    model, eos = tiny_gpt(layers=1).eval(), tokenizer().eos_token_id
    new = generate(model, torch.tensor([ids]), count, temperature=0, vocab_size=len(tokenizer()))[
        0, len(ids) :
    ].tolist()
    return new[: new.index(eos) + 1] if eos in new else new


class Classifier(nn.Module):
    """Ids and a mask to three classes, by the mean over what is no padding."""

    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(VOCAB_SIZE, 8), nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask):
        weight_BT1 = attention_mask[..., None].float()
        return self.head((self.embedding(input_ids) * weight_BT1).sum(1) / weight_BT1.sum(1))


class Pixels(nn.Module):
    """Images (B, 1, 6, 8) to two classes."""

    main_input_name = "pixel_values"

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 4 * 6, 2))

    def forward(self, pixel_values):
        return self.layers(pixel_values)


def scripted(*examples):
    """An exporter of TorchScript for models with these inputs."""

    def export(model, tokenizer, target, source, notes=()):
        target.mkdir()
        torch.jit.save(torch.jit.trace(model, examples, check_trace=False), str(target / "model.pt"))
        return ExportResult("torchscript", target, 0, {"max_abs_diff": 0.0})

    return export


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Python in a clean virtual environment."""
    return clean_python(tmp_path_factory.mktemp("venv"))


@pytest.fixture(scope="module")
def language_model(tmp_path_factory):
    """A GPT-2 with its tokenizer as ONNX: it runs without torch."""
    spec = TaskSpec.language_modeling("counting", vocab_size=VOCAB_SIZE)
    config = TrainingConfig(export_formats=["onnx"])
    return create_export_bundle(
        tiny_gpt(layers=1).eval(), None, spec, config, tmp_path_factory.mktemp("exports"), tokenizer=tokenizer()
    )


def made_with_torchscript(model, spec, folder, *examples):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(FORMATS, "torchscript", replace(FORMATS["torchscript"], writer=scripted(*examples)))
        return create_export_bundle(model, None, spec, TrainingConfig(export_formats=["torchscript"]), folder)


def imported(bundle, monkeypatch):
    """The bundle's inference.py as a module of this process."""
    monkeypatch.syspath_prepend(str(bundle))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("inference", "runners", "torchserve_handler"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    spec = importlib.util.spec_from_file_location("inference", bundle / "inference.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "inference", module)
    spec.loader.exec_module(module)
    return module


def test_the_clean_environment_does_not_have_this_library(python, tmp_path):
    done = run_program(tmp_path, "-c", "import numpy, utils", python=python)
    assert "No module named 'utils'" in done.stderr


def test_the_command_line_writes_what_the_model_writes(language_model, python):
    done = run_program(
        language_model, "inference.py", "--text", PROMPT, "--temperature", "0", "--max-new-tokens", "6", python=python
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["token_ids"] == greedy(tokenizer()(PROMPT)["input_ids"], 6)
    assert answer["text"].startswith(PROMPT)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--image", "x.png"), "give --text or --ids"),
        (("--ids", f"1 {VOCAB_SIZE}"), "token ids run from 0 to"),
        (("--ids", "1 " * (LENGTH + 1)), f"at most {LENGTH}"),
        (("--ids", "one"), "invalid literal"),
    ],
)
def test_the_command_line_says_what_is_wrong(language_model, arguments, reason, monkeypatch, capsys):
    module = imported(language_model, monkeypatch)
    assert module.main(arguments) == 2
    assert reason in capsys.readouterr().err


def test_only_onnx_runtime_is_needed_for_onnx(language_model, python):
    done = run_program(
        language_model,
        "-c",
        "import inference, sys; inference.load_engine(); print('torch' in sys.modules)",
        python=python,
    )
    assert done.stdout.strip() == "False", done.stderr
    assert "torch" not in (language_model / "requirements.txt").read_text()


def test_verification_names_an_altered_file(language_model, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(language_model, copy)
    (copy / "README.md").write_text("shorter")
    done = run_program(copy, "verify.py")
    assert done.returncode == 2
    assert "README.md is not the file that was exported" in json.loads(done.stdout)["error"]


def test_the_dockerfiles_steps_do_what_they_say(language_model, python):
    """Without a container engine: every file that a step names is there, and the steps' commands run in a clean environment."""
    steps = re.sub(r"\\\n", " ", (language_model / "Dockerfile").read_text()).splitlines()
    (verifying,) = [step for step in steps if step.startswith("RUN python ")]
    done = run_program(language_model, *verifying.split()[2:], python=python)
    assert done.returncode == 0, done.stdout + done.stderr
    wanted = {one.partition("==")[0] for one in (language_model / "requirements.txt").read_text().split()}
    missing = f"import importlib.metadata as m; [m.version(one) for one in {sorted(wanted)!r}]"
    assert run_program(language_model, "-c", missing, python=python).returncode == 0
    program, *arguments = json.loads(steps[-1].removeprefix("CMD "))
    assert (program, arguments[-2:]) == ("python", ["--port", "8080"])
    check = json.loads(next(step for step in steps if step.strip().startswith("HEALTHCHECK")).partition("CMD ")[2])
    with serving(language_model, python, arguments[:-2]) as client:
        code = check[2].replace(":8080/", f":{client.port}/")
        assert run_program(language_model, "-c", code, python=python).returncode == 0


def test_the_server_answers_hundreds_of_requests_and_refuses_bad_ones(language_model, python):
    ids = tokenizer()(PROMPT)["input_ids"]
    expected = greedy(ids, 4)
    good = {"text": PROMPT, "temperature": 0, "max_new_tokens": 4}
    bad = [
        ("/predict", b"{", 422), ("/predict", b"\xff\xfe", 4), ("/predict", b"[" * 100_000, 4), ("/predict", b"{}", 422),
        ("/predict", {"text": "a", "input_ids": [1]}, 422), ("/predict", {"image": "aaaa"}, 422),
        ("/predict", {"input_ids": [VOCAB_SIZE]}, 422), ("/predict", {"input_ids": [-1]}, 422),
        ("/predict", {"input_ids": [True]}, 422), ("/predict", {"input_ids": [1.5]}, 422),
        ("/predict", {"input_ids": [1] * (LENGTH + 1)}, 422), ("/predict", {"text": "a" * 50}, 422),
        ("/predict", b'{"text": "\\ud800"}', 422), ("/predict", {**good, "temperature": -1}, 422),
        ("/predict", b'{"text": "a", "temperature": NaN}', 422), ("/predict", {**good, "max_new_tokens": 10**9}, 422),
        ("/predict", {**good, "unknown": 1}, 422), ("/batch", {"inputs": []}, 422),
        ("/batch", {"inputs": [{"text": "a"}] * 5}, 422), ("/predict", b" " * 3000, 413), ("/nowhere", {}, 404),
    ]  # fmt: skip
    limits = {"MAX_BATCH": "4", "MAX_CHARACTERS": "40", "MAX_BODY_BYTES": "2000", "MAX_WAITING": "1000"}
    with serving(language_model, python, **limits) as client:
        assert client.call("GET", "/health")[1]["status"] == "ok"
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: client.post("/predict", good), range(200)))
            refused = list(pool.map(lambda one: client.post(one[0], one[1]), bad * 3))
        assert {status for status, _ in answers} == {200}
        assert all(answer["token_ids"] == expected for _, answer in answers)
        for (path, body, status), (got, answer) in zip(bad * 3, refused, strict=True):
            assert got == status or got // 100 == status, (path, str(body)[:60], got, answer)
            assert answer["detail"], "a refusal says why"
        inputs = [{"text": PROMPT}, {"input_ids": ids}]
        status, answer = client.post("/batch", {"inputs": inputs, "temperature": 0, "max_new_tokens": 4})
        assert [one["token_ids"] for one in answer["predictions"]] == [expected, expected]
        status, stream = client.post("/generate", {**good, "stream": True})
        events = [line.removeprefix("data: ") for line in stream.splitlines() if line]
        assert status == 200
        assert events[-1] == "[DONE]"
        assert [json.loads(event)["token_id"] for event in events[:-1]] == expected
        assert (
            "".join(json.loads(event)["text"] for event in events[:-1])
            == client.post("/generate", good)[1]["generated_text"]
        )
        assert client.call("GET", "/predict")[0] == 405
        metrics = client.call("GET", "/metrics")[1]
    assert 'requests_total{path="/predict",status="200"} 200' in metrics
    assert 'requests_total{path="other",status="413"} 6' in metrics  # 3 of each of two
    assert "inference_in_flight 0" in metrics


def test_a_full_queue_is_refused_with_503_and_a_later_request_is_answered(language_model, python):
    body = {"text": PROMPT, "max_new_tokens": 500}
    with serving(language_model, python, MAX_CONCURRENT="1", MAX_WAITING="1") as client:
        with ThreadPoolExecutor(12) as pool:
            statuses = {status for status, _ in pool.map(lambda _: client.post("/generate", body), range(12))}
        assert statuses <= {200, 503}
        assert 200 in statuses
        assert client.post("/generate", {**body, "max_new_tokens": 1})[0] == 200


@pytest.mark.parametrize("name", ["MAX_BATCH", "MAX_BODY_BYTES"])
def test_a_limit_that_is_no_number_is_named_at_the_start(language_model, name):
    problem = pytest.raises(AssertionError, match="(?s)limits must be positive whole numbers.*" + name.lower())
    with problem, serving(language_model, **{name: "many"}):
        pass


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_classifier_scores_texts_of_different_lengths_in_one_batch(tmp_path, monkeypatch):
    model = Classifier().eval()
    spec = TaskSpec.classification(
        "mood", num_classes=3, vocab_size=VOCAB_SIZE, preprocessing_config={"labels": ["a", "b", "c"]}
    )
    example = torch.ones(2, 5).long()
    bundle = made_with_torchscript(model, spec, tmp_path, example, example)
    engine = imported(bundle, monkeypatch).TextInferenceEngine(bundle)
    rows = [[1, 2, 3], [4], [5, 6, 7, 8, 9]]
    prepared = engine.preprocess(rows)
    assert prepared["input_ids"].shape == (3, 5)
    assert prepared["attention_mask"].sum(1).tolist() == [3, 1, 5]
    for row, answer in zip(rows, engine.batch_predict(rows), strict=True):
        scores = model(torch.tensor([row]), torch.ones(1, len(row)).long()).softmax(-1)[0]
        assert answer["label_id"] == int(scores.argmax())
        assert answer["label"] == "abc"[answer["label_id"]]
        assert answer["scores"] == pytest.approx(scores.tolist(), abs=1e-5)
    with pytest.raises(ValueError, match="generates no text"):
        next(engine.stream([1]))


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_images_are_prepared_as_the_task_says_and_scored(tmp_path, monkeypatch):
    model = Pixels().eval()
    spec = TaskSpec.image_classification(
        "shapes", num_classes=2, preprocessing_config={"image_size": (6, 8), "mean": 0.5, "std": 0.25}
    )
    bundle = made_with_torchscript(model, spec, tmp_path, torch.zeros(2, 1, 6, 8))
    assert "pillow" in (bundle / "requirements.txt").read_text()
    engine = imported(bundle, monkeypatch).load_engine(bundle)
    pixels = torch.randint(256, (6, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    expected = model(((pixels.float() / 255 - 0.5) / 0.25)[None, None]).softmax(-1)[0]
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    Path("image.png").write_bytes(file.getvalue())
    for image in (pixels.numpy(), file.getvalue(), "image.png"):
        assert engine.predict(image)["scores"] == pytest.approx(expected.tolist(), abs=1e-5)
    for wrong in (b"no image", "absent.png", file.getvalue()[:40]):
        with pytest.raises(ValueError, match="cannot be read|no image"):
            engine.predict(wrong)
    handler = importlib.import_module("torchserve_handler").BundleHandler()
    handler.initialize(types.SimpleNamespace(system_properties={"model_dir": str(bundle)}))
    encoded = base64.b64encode(file.getvalue()).decode()
    bodies = [
        {"body": file.getvalue()},
        {"data": json.dumps({"image": encoded})},
        {"body": b"{}"},
        {"body": b"no image"},
    ]
    answers = handler.handle(bodies, None)
    assert [one.get("label_id") for one in answers[:2]] == [int(expected.argmax())] * 2
    assert all("error" in one for one in answers[2:])


def test_an_encoder_decoder_answers_as_transformers_does(tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = hf.T5Config(
        vocab_size=VOCAB_SIZE, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, decoder_start_token_id=0,
        eos_token_id=VOCAB_SIZE - 1,
    )  # fmt: skip
    model, spec = hf.T5ForConditionalGeneration(config).eval(), TaskSpec.seq2seq("shorten", vocab_size=VOCAB_SIZE)
    bundle = create_export_bundle(
        model, None, spec, TrainingConfig(export_formats=["hf"]), tmp_path / "exports", tokenizer=tokenizer()
    )
    assert json.loads((bundle / "metadata.json").read_text())["task_type"] == "seq2seq"
    engine = imported(bundle, monkeypatch).load_engine(bundle)
    ids = torch.tensor([tokenizer()(PROMPT)["input_ids"]])
    expected = model.generate(ids, max_new_tokens=6, do_sample=False)[0, 1:].tolist()
    assert engine.generate(PROMPT, temperature=0, max_new_tokens=6)["token_ids"] == expected
