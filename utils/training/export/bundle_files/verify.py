"""Whether this folder is what was exported and computes what the trained model computed.

    python verify.py

Compares every checksum in metadata.json, runs each format on the input in artifacts/example.json, and compares with the
outputs that the trained model gave. Prints JSON; exit status 0 when everything agrees.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent


def verify(folder: str | Path = HERE) -> dict[str, Any]:
    """Compare checksums and recorded outputs.

    Returns:
        {"files": how many were compared, "formats": {format: {"ok", "max_abs_diff", "reason"}}}.
    Raises:
        BundleError: a file is missing or altered; nothing was run then.
    """
    from inference import check_files, load_engine, read_metadata  # type: ignore[import-not-found]

    folder = Path(folder)
    metadata = read_metadata(folder)
    files = check_files(folder, metadata)
    example = json.loads((folder / "artifacts" / "example.json").read_text(encoding="utf-8"))
    formats: dict[str, dict[str, Any]] = {}
    for name in metadata["runnable"]:
        difference: float | None = None
        try:
            difference = _difference(load_engine(folder, name), example)
            allowed = example["tolerance"].get(name, example["tolerance"]["default"])
            reason = None if difference <= allowed else f"outputs differ by {difference:.3g}, more than {allowed:.3g}"
        # Whatever a library raises while it loads or runs a file concerns this format only.
        except Exception as error:  # noqa: BLE001 - see above
            reason = f"{type(error).__name__}: {error}"[:300]
        formats[name] = {"ok": reason is None, "max_abs_diff": difference, "reason": reason}
    return {"files": files, "formats": formats}


def _difference(engine: Any, example: Mapping[str, Any]) -> float:
    """The largest difference of logits. Raises ValueError when the greedily generated tokens are others."""
    expected = np.asarray(example["logits"], dtype=np.float64)
    if example["image_shape"] is not None:
        shape = example["image_shape"]
        got = engine.logits(np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape))
    elif expected.size:
        # Of a sequence of logits, those of the last position were recorded.
        got = np.stack([one[-1] if one.ndim > 1 else one for one in engine.logits(example["input_ids"])])
    else:
        got = expected
    if expected.size:
        got = got.reshape(len(expected), -1)[:, example["columns"]]
    if example["greedy"] is not None:
        wanted = example["greedy"]
        steps = engine.stream(example["input_ids"][0], len(wanted), temperature=0.0)
        if (tokens := [one["token_id"] for one in steps]) != wanted:
            raise ValueError(f"generates other tokens, {tokens} instead of {wanted}")
    return float(np.abs(got - expected).max(initial=0.0))


def main() -> int:
    """The command line."""
    try:
        result = verify()
    except RuntimeError as error:  # BundleError is one
        print(json.dumps({"error": str(error)}))
        return 2
    print(json.dumps(result))
    return 0 if all(one["ok"] for one in result["formats"].values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
