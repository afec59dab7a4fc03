"""Handler for TorchServe: a request's body is what POST /predict of serve.py takes, as JSON or as plain text."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from typing import Any


class BundleHandler:
    """TorchServe calls `initialize` once per worker and `handle` for each batch of requests."""

    def __init__(self) -> None:
        self.initialized = False
        self._engine: Any = None

    def initialize(self, context: Any) -> None:
        """Load the model from the archive's folder."""
        from inference import load_engine  # type: ignore[import-not-found]

        self._engine = load_engine(context.system_properties["model_dir"])
        self.initialized = True

    def handle(self, data: Sequence[dict[str, Any]], context: Any) -> list[Any]:
        """A prediction, or {"error": ...}, for each request, in order."""
        return [self._answer(one.get("body") if one.get("body") is not None else one.get("data")) for one in data]

    def _answer(self, body: Any) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._engine.predict(self._input(body))
        except ValueError as error:  # what the model cannot take; the other requests of the batch are not affected
            return {"error": str(error)}
        return answer

    def _input(self, body: Any) -> Any:
        """The text, token ids or image of a body. Raises ValueError."""
        if isinstance(body, (bytes, bytearray)):
            if self._engine.metadata["modality"] == "vision" and not body.lstrip().startswith(b"{"):
                return bytes(body)
            body = body.decode()
        if isinstance(body, str):
            if not body.lstrip().startswith("{"):
                return body
            body = json.loads(body)
        if not isinstance(body, dict):
            raise ValueError('the body must be JSON such as {"text": ...}')
        if "image" in body:
            return base64.b64decode(body["image"], validate=True)
        if "text" not in body and "input_ids" not in body:
            raise ValueError("the body has none of text, input_ids, image")
        return body.get("text", body.get("input_ids"))
