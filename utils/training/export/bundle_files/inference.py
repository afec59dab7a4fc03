"""Run the exported model of this folder. Needs the packages in requirements.txt and nothing else.

Usage::

    python inference.py --text "Once upon a time"     a text model
    python inference.py --ids "1 2 3"                 a text model, from token ids
    python inference.py --image photo.png             an image model
    python verify.py                                  compare checksums and recorded outputs

    from inference import load_engine
    print(load_engine().predict("Once upon a time"))
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent

#: Task types whose answer is text that the model writes.
GENERATING = ("causal_lm", "seq2seq")
# Larger images are refused before they are decoded: a small file can claim any size.
_LARGEST_IMAGE = 64_000_000
# Rows of one forward pass.
_LARGEST_BATCH = 32

Array = np.ndarray[Any, np.dtype[Any]]
TextInput = str | Sequence[int]


class BundleError(RuntimeError):
    """The bundle is incomplete or altered, or its model does not compute what it computed when it was exported."""


class InputError(ValueError):
    """An input that the model cannot take; the message says what it takes."""


# ---- The bundle ----


def read_metadata(folder: Path) -> dict[str, Any]:
    """metadata.json of a bundle. Raises BundleError."""
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        return {**metadata, "files": dict(metadata["files"]), "runnable": list(metadata["runnable"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(
            f"{folder.name}/metadata.json cannot be read ({type(error).__name__}); copy it again"
        ) from error


def check_files(folder: Path, metadata: Mapping[str, Any], below: Sequence[str] = ("",)) -> int:
    """Compare size and sha256 of the files whose paths begin with one of `below`. Returns how many there are.

    Nothing is parsed before it is known to be what was exported. Raises BundleError that names the first file that is not.
    """
    checked = 0
    for name, recorded in metadata["files"].items():
        if not name.startswith(tuple(below)):
            continue
        path = folder / name
        if not path.is_file():
            raise BundleError(f"{name} is missing from the bundle; copy it again")
        if path.stat().st_size != recorded["bytes"] or _sha256(path) != recorded["sha256"]:
            raise BundleError(f"{name} is not the file that was exported (size or sha256 differs); copy it again")
        checked += 1
    return checked


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class _Engine:
    """Base of both engines: the bundle's metadata and the runner of one artifact.

    Args:
        folder: the bundle; default: the folder of this file.
        backend: one of the formats in metadata.json's "runnable"; default: the first.
    """

    def __init__(self, folder: str | Path = HERE, backend: str | None = None) -> None:
        self.folder = Path(folder)
        self.metadata = read_metadata(self.folder)
        runnable: list[str] = self.metadata["runnable"]
        if not runnable:
            reasons = "; ".join(f"{name}: {reason}" for name, reason in self.metadata["not_written"].items())
            raise BundleError(f"this bundle holds weights only, no model that runs without its code ({reasons})")
        self.backend = runnable[0] if backend is None else backend
        if self.backend not in runnable:
            raise BundleError(f"got the backend {self.backend!r}; this bundle has: {', '.join(runnable)}")
        artifact: str = self.metadata["artifacts"][self.backend]
        check_files(self.folder, self.metadata, (artifact, "tokenizer/"))
        from runners import load_runner  # type: ignore[import-not-found]

        self.runner = load_runner(self.backend, self.folder / artifact)
        self.task_type: str | None = self.metadata["task_type"]
        self.labels: list[str] | None = self.metadata["labels"]

    def _described(self, logits: Array) -> dict[str, Any]:
        """Scores (C,) as one class, several classes, or regression values."""
        if self.task_type == "regression":
            return {"values": [float(value) for value in logits.reshape(-1)]}
        if self.metadata["multi_label"]:
            scores = 1 / (1 + np.exp(-logits.astype(np.float64)))
            chosen = [int(index) for index in np.flatnonzero(scores > 0.5)]
            return {"labels": [self._label(index) for index in chosen], "label_ids": chosen, "scores": _rounded(scores)}
        scores = _softmax(logits)
        best = int(scores.argmax())
        return {"label": self._label(best), "label_id": best, "score": float(scores[best]), "scores": _rounded(scores)}

    def _label(self, index: int) -> str:
        return self.labels[index] if self.labels and index < len(self.labels) else str(index)


def _rounded(scores: Array) -> list[float]:
    return [round(float(score), 6) for score in scores]


def _softmax(logits: Array) -> Array:
    logits = logits.astype(np.float64)
    if np.isnan(logits).any() or not np.isfinite(logits.max()):
        raise BundleError("the model returned NaN or infinite logits")
    powers = np.exp(logits - logits.max())
    return np.asarray(powers / powers.sum())


# ---- Text ----


class TextInferenceEngine(_Engine):
    """Texts, or token ids, to predictions: `preprocess`, `predict`, `batch_predict`; `generate` and `stream` for models
    that write text."""

    def __init__(self, folder: str | Path = HERE, backend: str | None = None) -> None:
        super().__init__(folder, backend)
        model = self.metadata["model"]
        self.max_length: int | None = model["max_length"]
        self.vocab_size: int | None = model["vocab_size"]
        self.special: dict[str, Any] = self.metadata["special_ids"]
        self._tokenizer, self._encode, self._decode = _load_tokenizer(self.folder, self.metadata["tokenizer"])

    def encode(self, text: TextInput) -> list[int]:
        """Token ids of a text; ids are checked and passed on. Raises InputError."""
        if isinstance(text, str):
            if self._encode is None:
                raise InputError("this bundle has no tokenizer: give token ids instead of text")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise InputError("the text holds a lone surrogate, which is no character") from error
            ids: list[int] = self._encode(text)
        else:
            ids = list(text)
        if not ids and self.task_type == "causal_lm":
            ids = [one for one in (self.special["bos"], *self.special["eos"]) if one is not None][:1]
        if not ids:
            raise InputError("the input holds no token")
        if any(isinstance(one, bool) or not isinstance(one, int) for one in ids):
            raise InputError("token ids must be whole numbers")
        if min(ids) < 0 or (self.vocab_size is not None and max(ids) >= self.vocab_size):
            raise InputError(f"token ids run from 0 to {(self.vocab_size or 0) - 1}; got {min(ids)} to {max(ids)}")
        if self.max_length is not None and len(ids) > self.max_length:
            raise InputError(f"the input has {len(ids):,} tokens; the model takes at most {self.max_length:,}")
        return ids

    def preprocess(self, texts: TextInput | Sequence[TextInput]) -> dict[str, Array]:
        """int64 arrays (B, T): `input_ids`, padded on the right, and `attention_mask`, 0 where they are."""
        if isinstance(texts, str) or (len(texts) > 0 and isinstance(texts[0], int)):
            return self._padded([self.encode(texts)])  # type: ignore[arg-type]
        return self._padded([self.encode(text) for text in texts])  # type: ignore[arg-type]

    def _padded(self, rows: Sequence[Sequence[int]]) -> dict[str, Array]:
        longest = max(map(len, rows))
        ids = np.full((len(rows), longest), self.special["pad"] or 0, dtype=np.int64)
        mask = np.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, : len(row)] = row
            mask[number, : len(row)] = 1
        return {"input_ids": ids, "main": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}

    def logits(self, rows: Sequence[Sequence[int]]) -> list[Array]:
        """Logits of each row of ids, without those of padding. Rows of different lengths share a batch only where the model
        takes a mask."""
        found: list[Array | None] = [None] * len(rows)
        groups: dict[int, list[int]] = {}
        for number, row in enumerate(rows):
            groups.setdefault(0 if "attention_mask" in self.runner.inputs else len(row), []).append(number)
        for numbers in groups.values():
            for start in range(0, len(numbers), _LARGEST_BATCH):
                part = numbers[start : start + _LARGEST_BATCH]
                logits = self.runner(self._padded([rows[number] for number in part]))
                for number, row_logits in zip(part, logits, strict=True):
                    found[number] = row_logits if logits.ndim < 3 else row_logits[: len(rows[number])]
        return [one for one in found if one is not None]

    def predict(self, text: TextInput, **options: Any) -> dict[str, Any]:
        """The prediction for one text. `options` are those of `generate`, for models that write text."""
        return self.batch_predict([text], **options)[0]

    def batch_predict(self, texts: Sequence[TextInput], **options: Any) -> list[dict[str, Any]]:
        """A prediction for each text, in order."""
        if self.task_type in GENERATING:
            return [self.generate(text, **options) for text in texts]
        rows = [self.encode(text) for text in texts]
        describe = {"token_classification": self._tagged, "masked_lm": self._filled}.get(self.task_type or "")
        if describe is None:
            return [self._described(logits) for logits in self.logits(rows)]
        return [describe(row, logits) for row, logits in zip(rows, self.logits(rows), strict=True)]

    def _tagged(self, ids: Sequence[int], logits: Array) -> dict[str, Any]:
        tags = [{**self._described(one), "token": self.decode([token])} for token, one in zip(ids, logits, strict=True)]
        return {"tokens": [{name: tag[name] for name in ("token", "label", "label_id", "score")} for tag in tags]}

    def _filled(self, ids: Sequence[int], logits: Array) -> dict[str, Any]:
        """The five most likely tokens of each masked position."""
        filled = []
        for position, token in enumerate(ids):
            if token == self.special["mask"]:
                scores = _softmax(logits[position])
                best = [int(index) for index in np.argsort(-scores)[:5]]
                options = [{"token_id": one, "token": self.decode([one]), "score": float(scores[one])} for one in best]
                filled.append({"position": position, "candidates": options})
        return {"masks": filled}

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids; the ids themselves where there is no tokenizer."""
        return self._decode(list(ids)) if self._decode is not None else " ".join(map(str, ids))

    def generate(
        self, text: TextInput, max_new_tokens: int = 50, temperature: float = 0.8, top_k: int | None = 50,
        seed: int | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """Continue a text, or answer it (seq2seq). `temperature=0`: greedy. `seed`: the same seed gives the same tokens."""
        new_ids = [one["token_id"] for one in self.stream(text, max_new_tokens, temperature, top_k, seed)]
        written = [one for one in new_ids if one not in self.special["eos"]]
        prompt = self.encode(text) if self.task_type == "causal_lm" and text else []
        return {"text": self.decode([*prompt, *written]), "generated_text": self.decode(written), "token_ids": new_ids}

    def stream(
        self, text: TextInput, max_new_tokens: int = 50, temperature: float = 0.8, top_k: int | None = 50,
        seed: int | None = None,
    ) -> Iterator[dict[str, Any]]:  # fmt: skip
        """The same, one token at a time: {"token_id", "text": what it adds to the text}."""
        if self.task_type not in GENERATING:
            raise InputError(f"a model for {self.task_type} generates no text; use predict")
        prompt = self.encode(text)
        if hasattr(self.runner, "steps"):
            step = self.runner.steps(prompt, self.max_length)
        else:
            step = self._uncached_steps(prompt)
        random = np.random.default_rng(seed)
        known = self.metadata["tokenizer"]["size"] if self.metadata["tokenizer"] else self.vocab_size
        new_ids: list[int] = []
        shown = ""
        for _ in range(max_new_tokens):
            new_ids.append(_drawn(step(new_ids)[:known], temperature, top_k, random))
            ended = new_ids[-1] in self.special["eos"]
            now = self.decode(new_ids[:-1] if ended else new_ids)
            # A character can be spread over several tokens: until its last one it is shown as U+FFFD.
            added = now[len(shown) :] if not now.endswith("\ufffd") or ended else ""
            shown += added
            yield {"token_id": new_ids[-1], "text": added}
            if ended:
                return

    def _uncached_steps(self, prompt: Sequence[int]) -> Callable[[Sequence[int]], Array]:
        def step(new_ids: Sequence[int]) -> Array:
            ids = [*prompt, *new_ids]
            visible = ids if self.max_length is None else ids[-self.max_length :]
            return np.asarray(self.logits([visible])[0][-1])

        return step


def _drawn(logits: Array, temperature: float, top_k: int | None, random: np.random.Generator) -> int:
    if temperature <= 0:
        _softmax(logits)  # refuses NaN
        return int(logits.argmax())
    logits = logits.astype(np.float64) / temperature
    if top_k is not None and top_k < len(logits):
        logits = np.where(logits < np.partition(logits, -top_k)[-top_k], -np.inf, logits)
    return int(random.choice(len(logits), p=_softmax(logits)))


def _load_tokenizer(folder: Path, described: Mapping[str, Any] | None) -> tuple[Any, Any, Any]:
    """The tokenizer, text -> ids, ids -> text; None where the bundle has none."""
    if described is None:
        return None, None, None
    if described["library"] == "tokenizers":
        fast: Any = importlib.import_module("tokenizers").Tokenizer.from_file(
            str(folder / "tokenizer" / "tokenizer.json")
        )
        fast.no_truncation()
        fast.no_padding()
        return (
            fast,
            lambda text: list(fast.encode(text).ids),
            lambda ids: str(fast.decode(ids, skip_special_tokens=True)),
        )
    auto: Any = importlib.import_module("transformers").AutoTokenizer
    loaded = auto.from_pretrained(folder / "tokenizer", local_files_only=True)
    lock = threading.Lock()  # transformers sets options of its backend in each call, which threads must not do at once

    def encode(text: str) -> list[int]:
        with lock:
            return [int(one) for one in loaded(text)["input_ids"]]

    return (
        loaded,
        encode,
        lambda ids: str(loaded.decode(ids, skip_special_tokens=True)),
    )


# ---- Images ----


def pixels_of(image: Any, settings: Mapping[str, Any]) -> Array:
    """float32 (1, C, H, W) of one image, resized, scaled to 0 … 1 and normalised.

    Args:
        image: a path, a file's bytes, a PIL image, or an array (H, W[, C]) of bytes.
        settings: "channels", "height", "width", "mean", "std".
    Raises:
        InputError: no image that can be read, or one that is too large.
    """
    from PIL import Image, UnidentifiedImageError

    if isinstance(image, (str, Path)):
        try:
            image = Path(image).read_bytes()
        except OSError as error:
            raise InputError(f"{Path(image).name} cannot be read: {error.strerror}") from error
    if isinstance(image, np.ndarray):
        image = Image.fromarray(image)
    try:
        opened = Image.open(io.BytesIO(image)) if isinstance(image, bytes) else image
        if opened.width * opened.height > _LARGEST_IMAGE:
            raise InputError(
                f"the image has {opened.width * opened.height:,} pixels; at most {_LARGEST_IMAGE:,} are taken"
            )
        resized = opened.convert("L" if settings["channels"] == 1 else "RGB").resize(
            (settings["width"], settings["height"]), Image.Resampling.BILINEAR
        )
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"this is no image that can be read ({type(error).__name__})") from error
    pixels = np.asarray(resized, dtype=np.float32).reshape(settings["height"], settings["width"], -1) / 255
    mean, std = (np.asarray(settings[name], dtype=np.float32) for name in ("mean", "std"))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1)[None])


class VisionInferenceEngine(_Engine):
    """Images to predictions: `preprocess`, `predict`, `batch_predict`. An image is a path, a file's bytes, a PIL image, or an
    array (H, W[, C]) of bytes."""

    def preprocess(self, image: Any) -> dict[str, Array]:
        """float32 (1, C, H, W), resized, scaled and normalised as metadata.json's "preprocessing" says. Raises InputError."""
        pixels = pixels_of(image, self.metadata["preprocessing"])
        return {"pixel_values": pixels, "main": pixels}

    def logits(self, pixels: Array) -> Array:
        """Logits (B, C) of images (B, channels, H, W)."""
        return np.asarray(self.runner({"pixel_values": pixels, "main": pixels}))

    def predict(self, image: Any) -> dict[str, Any]:
        """The prediction for one image."""
        return self.batch_predict([image])[0]

    def batch_predict(self, images: Sequence[Any]) -> list[dict[str, Any]]:
        """A prediction for each image, in order."""
        pixels = np.concatenate([self.preprocess(image)["pixel_values"] for image in images])
        parts = [self.logits(pixels[start : start + _LARGEST_BATCH]) for start in range(0, len(pixels), _LARGEST_BATCH)]
        return [self._described(logits) for logits in np.concatenate(parts)]


def load_engine(folder: str | Path = HERE, backend: str | None = None) -> TextInferenceEngine | VisionInferenceEngine:
    """The engine for the bundle's modality. Raises BundleError."""
    vision = read_metadata(Path(folder))["modality"] == "vision"
    return VisionInferenceEngine(folder, backend) if vision else TextInferenceEngine(folder, backend)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line. Prints JSON; errors go to standard error."""
    parser = argparse.ArgumentParser(description="Run the exported model of this folder.")
    given = parser.add_mutually_exclusive_group(required=True)
    given.add_argument("--text", help="a text")
    given.add_argument("--ids", help='token ids, such as "1 2 3"')
    given.add_argument("--image", help="an image file")
    parser.add_argument("--backend", help="the format to run; default: the first in metadata.json's runnable")
    parser.add_argument("--max-new-tokens", type=int, default=50, help="for models that write text")
    parser.add_argument("--temperature", type=float, default=0.8, help="0: greedy")
    parser.add_argument("--seed", type=int, help="the same seed gives the same tokens")
    options = parser.parse_args(arguments)
    try:
        engine = load_engine(backend=options.backend)
        if isinstance(engine, VisionInferenceEngine) != (options.image is not None):
            needed = "--image" if isinstance(engine, VisionInferenceEngine) else "--text or --ids"
            raise InputError(f"this is a model over {engine.metadata['modality']}; give {needed}")
        if isinstance(engine, VisionInferenceEngine):
            answer = engine.predict(options.image)
        else:
            text = options.text if options.ids is None else [int(one) for one in options.ids.split()]
            sampling = {
                "max_new_tokens": options.max_new_tokens,
                "temperature": options.temperature,
                "seed": options.seed,
            }
            answer = engine.predict(text, **(sampling if engine.task_type in GENERATING else {}))
        print(json.dumps(answer, ensure_ascii=False))
    except (BundleError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
