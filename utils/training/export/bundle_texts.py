"""The texts of a bundle that depend on its content: README, Dockerfile, requirements, configurations of servers."""

from __future__ import annotations

import importlib.metadata
import platform
import re
from collections.abc import Mapping, Sequence
from typing import Any

from utils.training.export_formats import FORMATS

#: Versions that the server was tested with, for a machine on which it is not installed.
TESTED = {"fastapi": "0.165.0", "uvicorn": "0.54.0", "onnxruntime": "1.31.1", "pillow": "13.0.0"}


def requirements(runnable: Sequence[str], tokenizer: Mapping[str, Any] | None, vision: bool) -> str:
    """requirements.txt with the exact versions of what the bundle's formats and its server need."""
    needed = {"numpy", "fastapi", "uvicorn"} | {
        package for name in runnable for package in FORMATS[name].bundle_packages
    }
    if tokenizer is not None:
        needed.add(tokenizer["library"])
    if vision:
        needed.add("pillow")
    return "".join(f"{name}=={_version(name)}\n" for name in sorted(needed))


def _version(package: str) -> str:
    try:
        found = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return TESTED[package]
    return found.partition("+")[0]  # 2.13.0+cpu is a build of 2.13.0, and only one index has it


def dockerfile() -> str:
    """An image that serves the model as a user without rights."""
    return f"""FROM python:{platform.python_version()}-slim

# An index with smaller builds of torch, such as its CPU-only one: docker build --build-arg PIP_EXTRA_INDEX_URL=...
ARG PIP_EXTRA_INDEX_URL=""

ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 PIP_NO_CACHE_DIR=1 HF_HUB_OFFLINE=1

RUN useradd --create-home --uid 10001 inference
WORKDIR /app
COPY requirements.txt .
RUN pip install --requirement requirements.txt
COPY . .
RUN python verify.py

USER inference
EXPOSE 8080
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s --retries=3 \\
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8080/health', timeout=4)"]
CMD ["python", "serve.py", "--host", "0.0.0.0", "--port", "8080"]
"""


def torchserve_config(name: str) -> dict[str, Any]:
    """TorchServe's configuration of the model."""
    return {
        "modelName": name, "modelVersion": "1.0", "runtime": "python", "minWorkers": 1, "maxWorkers": 2, "batchSize": 8,
        "maxBatchDelay": 50, "responseTimeout": 120, "deviceType": "cpu",
        "handler": {"class": "torchserve_handler.py:BundleHandler"},
        "metrics": {"enabled": True, "mode": "prometheus"},
    }  # fmt: skip


def kserve_config(name: str) -> str:
    """A KServe InferenceService (YAML) for the image that the Dockerfile builds."""
    return f"""apiVersion: serving.kserve.io/v1beta1
kind: InferenceService
metadata:
  name: {name}
spec:
  predictor:
    containers:
      - name: kserve-container
        image: REGISTRY/{name}:1.0
        ports:
          - containerPort: 8080
            protocol: TCP
        readinessProbe:
          httpGet: {{path: /health, port: 8080}}
        securityContext:
          runAsNonRoot: true
          runAsUser: 10001
          allowPrivilegeEscalation: false
"""


def health(metadata: Mapping[str, Any], not_finite: Sequence[str]) -> dict[str, Any]:
    """Health report of a bundle: {"health_score" (the share of checks that passed), "all_passed", "checks"}."""
    found = ", ".join(not_finite[:5])
    checks = [
        ("weights are finite", not not_finite, f"NaN or infinity in {found}" if found else "all weights are finite")
    ]
    checks += [
        (f"{name} runs in another process", name in metadata["verification"], _ran(metadata["verification"].get(name)))
        for name in metadata["runnable"]
    ]
    checks += [(f"{name} was written", True, "verified by its exporter") for name in metadata["formats"]]
    checks += [(f"{name} was written", False, reason) for name, reason in metadata["not_written"].items()]
    if not metadata["runnable"]:
        checks.append(("a format runs without the model's code", False, "none does; load the weights into the model"))
    passed = [bool(one[1]) for one in checks]
    listed = [
        {"name": name, "verdict": "pass" if good else "fail", "summary": summary} for name, good, summary in checks
    ]
    return {"health_score": round(sum(passed) / len(passed), 4), "all_passed": all(passed), "checks": listed}


def _ran(verified: Mapping[str, Any] | None) -> str:
    return "not run" if verified is None else f"largest difference of logits {verified['max_abs_diff']:.3g}"


def health_markdown(report: Mapping[str, Any]) -> str:
    """The same as a table in Markdown."""
    rows = [f"| {_plain(one['name'])} | {one['verdict']} | {_plain(one['summary'])} |" for one in report["checks"]]
    head = [
        "# Health report",
        "",
        f"Health score {report['health_score']:.2f}, when the bundle was made. To check it now:",
        "",
    ]
    return "\n".join([*head, "    python verify.py", "", "| check | verdict | |", "|---|---|---|", *rows, ""])


def slug(name: str) -> str:
    """`name` as servers and image registries take it."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50].strip("-") or "model"


def _plain(text: Any) -> str:
    """Free text for a line or a table cell of Markdown, with nothing that begins markup."""
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", re.sub(r"\s+", " ", str(text)))


def readme(metadata: Mapping[str, Any], files: Sequence[str], notes: Sequence[str]) -> str:
    """The bundle's README."""
    name = slug(metadata["task_name"])
    return "\n".join(
        [
            f"# {_plain(metadata['task_name'])}", "",
            "## Overview", "",
            f"A {metadata['model']['class']} for {metadata['task_type'] or 'a task of its own'}, exported by Trainbook "
            f"{metadata['trainbook_version']} on {metadata['export_timestamp'][:10]}. This folder is all that is needed to run "
            "and serve it.", "",
            *_overview(metadata, notes),
            "## Directory Structure", "", "```text", *files, "```", "",
            "## Quick Start", "", *_quick_start(metadata),
            "## Docker Deployment", "",
            "```bash", f"docker build -t {name}:1.0 .", f"docker run --rm -p 8080:8080 {name}:1.0",
            "curl http://127.0.0.1:8080/health", "```", "",
            "The image runs as the user `inference`, without root's rights. It has no authentication and no TLS: put a reverse "
            "proxy with both in front of it. Limits on input are environment variables, listed in `serve.py`. For KServe, push "
            "the image, set its name in `configs/kserve.yaml`, and apply that file.", "",
            "## TorchServe Deployment", "",
            "```bash",
            f"torch-model-archiver --model-name {name} --version 1.0 --handler torchserve_handler.py \\",
            "    --extra-files inference.py,runners.py,metadata.json,artifacts"
            f"{',tokenizer' if metadata['tokenizer'] else ''} \\",
            "    --requirements-file requirements.txt",
            f"torchserve --start --model-store . --models {name}.mar --disable-token-auth", "```", "",
            "`configs/torchserve_config.json` holds the number of workers and the batch size. TorchServe is no longer "
            "developed; `serve.py` does not need it. Not tried with TorchServe itself, only with its handler interface.", "",
            "## Model Information", "", *_information(metadata),
            "## Troubleshooting", "",
            "- `error: ... is not the file that was exported`: a file was altered or not copied completely. Copy the folder "
            "again; `python verify.py` names the file.",
            "- `python verify.py` reports other outputs: install the versions in `requirements.txt`.",
            "- HTTP 422: the input does not fit the model; `detail` says what it takes. 413: the body is too large. 503: too "
            "many requests are waiting.", "",
            "## Citation", "",
            "```bibtex", f"@misc{{{name.replace('-', '_')}, title = {{{_bibtex(metadata['task_name'])}}}, "
            f"year = {{{metadata['export_timestamp'][:4]}}}, note = {{Trained and exported with Trainbook "
            f"{metadata['trainbook_version']}}}}}", "```", "",
        ]
    )  # fmt: skip


def with_usage(card: str, metadata: Mapping[str, Any]) -> str:
    """A model card whose section "Usage" is about the bundle."""
    usage = "## Usage\n\nIn the folder of this bundle:\n\n" + "\n".join(_quick_start(metadata)).rstrip()
    return re.sub(r"^## Usage$.*?(?=^## |\Z)", lambda _: usage + "\n\n", card, flags=re.DOTALL | re.MULTILINE)


def _bibtex(text: str) -> str:
    return re.sub(r"[{}\\\n]", " ", text)


def _overview(metadata: Mapping[str, Any], notes: Sequence[str]) -> list[str]:
    lines = [f"- Formats: {', '.join(metadata['formats'])}"]
    lines += [f"- Not written: {name}: {_plain(reason)}" for name, reason in metadata["not_written"].items()]
    lines += [f"- {_plain(note)}" for note in notes]
    return [*lines, ""]


def _quick_start(metadata: Mapping[str, Any]) -> list[str]:
    if not metadata["runnable"]:
        return [
            "No format in this bundle runs without the model's code. Create the model, then load its weights:", "",
            "```python", "import torch", "", "model = ...  # your model class, with the arguments it was created with",
            f'model.load_state_dict(torch.load("{metadata["artifacts"]["pytorch"]}", weights_only=True))',
            "model.eval()", "```", "",
        ]  # fmt: skip
    if metadata["modality"] == "vision":
        argument, value, body = "--image photo.png", '"photo.png"', '{"image": "\'$(base64 -w0 photo.png)\'"}'
    elif metadata["tokenizer"]:
        argument, value, body = '--text "Once upon a time"', '"Once upon a time"', '{"text": "Once upon a time"}'
    else:
        argument, value, body = '--ids "1 2 3"', "[1, 2, 3]", '{"input_ids": [1, 2, 3]}'
    engine = "VisionInferenceEngine" if metadata["modality"] == "vision" else "TextInferenceEngine"
    return [
        "```bash", "python -m venv .venv && .venv/bin/pip install -r requirements.txt",
        f"python inference.py {argument}", "python verify.py  # checksums, and the recorded outputs again",
        "python serve.py --port 8080",
        f"curl -H 'Content-Type: application/json' -d '{body}' http://127.0.0.1:8080/predict", "```", "",
        "```python", f"from inference import {engine}", "", f"engine = {engine}()", f"print(engine.predict({value}))",
        f"print(engine.batch_predict([{value}]))", "```", "",
    ]  # fmt: skip


def _information(metadata: Mapping[str, Any]) -> list[str]:
    model = metadata["model"]
    facts = {
        "Class": model["class"],
        "Parameters": "unknown" if model["parameters"] is None else f"{model['parameters']:,}",
        "Vocabulary": model["vocab_size"], "Longest input (tokens)": model["max_length"],
        "Labels": ", ".join(metadata["labels"][:20]) if metadata["labels"] else None,
        "Image preprocessing": metadata["preprocessing"], "Weights from": metadata["source"],
        "PyTorch": metadata["framework_version"],
    }  # fmt: skip
    rows = [f"| {name} | {_plain(value)} |" for name, value in facts.items() if value is not None]
    differences = [
        f"| {name} | {verified['max_abs_diff']:.3g} |" for name, verified in metadata["verification"].items()
    ]  # fmt: skip
    return [
        "| | |", "|---|---|", *rows, "",
        *(["Each format was run in a process of its own and compared with the trained model:", "",
           "| format | largest difference of logits |", "|---|---|", *differences, ""] if differences else []),
    ]  # fmt: skip
