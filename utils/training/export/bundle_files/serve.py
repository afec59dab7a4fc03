"""Serve the model of this folder over HTTP.

    python serve.py --host 127.0.0.1 --port 8080

POST /predict    {"text": ...} or {"input_ids": [...]} or {"image": base64}: one prediction
POST /batch      {"inputs": [...]}: a prediction for each, in order
POST /generate   {"text": ..., "max_new_tokens": ..., "stream": true}: text that the model writes, also as server-sent events
GET  /health     200 once the model is loaded
GET  /metrics    counts and durations for Prometheus

Limits are environment variables, see `Limits`. A request that exceeds one gets a 4xx status, and one that finds the queue full
gets 503. There is no authentication and no TLS: put a reverse proxy with both in front of it outside of a trusted network.
"""

from __future__ import annotations

import argparse
import base64
import binascii
import collections
import contextlib
import json
import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, MutableMapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictInt

log = logging.getLogger("serve")


@dataclass(frozen=True)
class Limits:
    """Limits on requests. The environment variable of a limit is its name in capitals, such as MAX_BATCH."""

    max_body_bytes: int = 8 * 1024 * 1024
    max_batch: int = 32
    max_characters: int = 50_000
    max_new_tokens: int = 512
    max_concurrent: int = 2
    max_waiting: int = 64

    @classmethod
    def from_environment(cls) -> Limits:
        """The defaults, with what the environment sets. Raises ValueError for what is no positive number."""
        given = {one.name: os.environ[one.name.upper()] for one in fields(cls) if one.name.upper() in os.environ}
        wrong = {name: value for name, value in given.items() if not value.isdecimal() or int(value) < 1}
        if wrong:
            raise ValueError(f"limits must be positive whole numbers; got {wrong}")
        return cls(**{name: int(value) for name, value in given.items()})


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Item(_Strict):
    """One input: exactly one of text, token ids, image."""

    text: str | None = None
    input_ids: list[StrictInt] | None = None
    image: str | None = Field(None, description="base64 of an image file")


class Sampling(_Strict):
    """Sampling parameters; refused for models that generate no text."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 50
    temperature: Annotated[float, Field(ge=0, le=100)] = 0.8
    top_k: Annotated[int, Field(ge=1)] | None = 50
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class PredictRequest(Item, Sampling):
    """One input; sampling settings for models that write text."""


class GenerateRequest(PredictRequest):
    """One text to continue, or to answer."""

    stream: bool = False


class BatchRequest(Sampling):
    """Several inputs."""

    inputs: Annotated[list[Item], Field(min_length=1)]


class Metrics:
    """Counts of requests in Prometheus' text format."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: collections.Counter[tuple[str, int]] = collections.Counter()
        self._seconds: collections.Counter[str] = collections.Counter()
        self.in_flight = 0
        self.tokens = 0

    def record(self, path: str, status: int, seconds: float) -> None:
        """One answered request."""
        with self._lock:
            self._requests[path, status] += 1
            self._seconds[path] += seconds  # type: ignore[assignment]

    def text(self) -> str:
        """All metrics as text."""
        with self._lock:
            requests, seconds = sorted(self._requests.items()), sorted(self._seconds.items())
        lines = ["# HELP requests_total Requests that were answered.", "# TYPE requests_total counter"]
        lines += [f'requests_total{{path="{path}",status="{status}"}} {count}' for (path, status), count in requests]
        lines += ["# HELP request_seconds_sum Time spent on requests.", "# TYPE request_seconds_sum counter"]
        lines += [f'request_seconds_sum{{path="{path}"}} {total:.6f}' for path, total in seconds]
        lines += ["# HELP generated_tokens_total Tokens generated.", "# TYPE generated_tokens_total counter"]
        lines += [f"generated_tokens_total {self.tokens}"]
        lines += ["# HELP inference_in_flight Inferences running or waiting.", "# TYPE inference_in_flight gauge"]
        lines += [f"inference_in_flight {self.in_flight}"]
        return "\n".join(lines) + "\n"


class Worker:
    """Runs inferences in threads: so many at once, so many waiting, and no more."""

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._slots: anyio.CapacityLimiter | None = None

    def require_room(self) -> None:
        """Raise HTTP 503 when as many inferences are waiting as may."""
        if self._metrics.in_flight >= self._limits.max_concurrent + self._limits.max_waiting:
            raise HTTPException(503, "the server is busy; try again", {"Retry-After": "1"})

    @contextlib.asynccontextmanager
    async def slot(self) -> AsyncIterator[Callable[..., Any]]:
        """A turn; yields a function that runs another one in a thread. HTTP 503 when there is no room."""
        self.require_room()
        self._slots = self._slots or anyio.CapacityLimiter(self._limits.max_concurrent)  # needs a running event loop
        self._metrics.in_flight += 1
        try:
            async with self._slots:
                yield anyio.to_thread.run_sync
        finally:
            self._metrics.in_flight -= 1


class BodyLimit:
    """ASGI middleware: refuses requests whose body is longer than allowed, whatever their Content-Length says."""

    def __init__(self, app: Any, limit: int, metrics: Metrics) -> None:
        self._app, self._limit, self._metrics = app, limit, metrics

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        """Read the body up to the limit, then answer 413 or pass the request on; record what was answered."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.monotonic(), 500

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        parts: list[bytes] = []
        size, more, too_long = 0, True, False
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            size += len(message.get("body", b""))
            too_long = too_long or size > self._limit
            if not too_long:
                parts.append(message.get("body", b""))
            more = message.get("more_body", False) and size <= 4 * self._limit
        body = b"".join(parts)
        delivered = False

        async def receiving() -> Any:
            nonlocal delivered
            if delivered:
                return await receive()
            delivered = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            if too_long:
                answer = JSONResponse(
                    {"detail": f"the body has more than {self._limit:,} bytes"}, 413, {"Connection": "close"}
                )
                await answer(scope, receive, sending)
            else:
                await self._app(scope, receiving, sending)
        finally:
            route = scope.get("route")  # unknown paths share one name: they come from clients
            self._metrics.record(getattr(route, "path", "other"), status, time.monotonic() - started)


def create_app(folder: str | Path | None = None, limits: Limits | None = None) -> FastAPI:
    """The application, with the model loaded."""
    from inference import GENERATING, BundleError, InputError, load_engine  # type: ignore[import-not-found]

    limits = limits or Limits.from_environment()
    engine: Any = load_engine() if folder is None else load_engine(folder)
    vision, generating = engine.metadata["modality"] == "vision", engine.task_type in GENERATING
    metrics = Metrics()
    worker = Worker(limits, metrics)
    app = FastAPI(title=engine.metadata["task_name"], docs_url=None, redoc_url=None)
    app.add_middleware(BodyLimit, limit=limits.max_body_bytes, metrics=metrics)

    @app.exception_handler(InputError)
    async def refuse_input(request: Request, error: Exception) -> Response:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def refuse_body(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # Without the input itself, which may hold what JSON cannot.
        found = [{"field": ".".join(map(str, one["loc"][1:])), "problem": one["msg"]} for one in error.errors()[:20]]
        return Response(json.dumps({"detail": found}), 422, media_type="application/json")

    @app.exception_handler(BundleError)
    @app.exception_handler(Exception)
    async def report(request: Request, error: Exception) -> Response:
        log.error("inference failed: %s: %s", type(error).__name__, error)
        return JSONResponse({"detail": "the model failed on this input; the server's log says why"}, 500)

    def checked(item: Item) -> Any:
        """Validate an input for the engine."""
        wanted = "image" if vision else "text or input_ids"
        given = [name for name in ("text", "input_ids", "image") if getattr(item, name) is not None]
        if len(given) != 1 or (given == ["image"]) != vision:
            raise InputError(f"give exactly one of {wanted}; got {' and '.join(given) or 'neither'}")
        if item.text is not None and len(item.text) > limits.max_characters:
            raise InputError(f"the text has {len(item.text):,} characters; at most {limits.max_characters:,} are taken")
        if item.image is not None:
            try:
                return base64.b64decode(item.image, validate=True)
            except (binascii.Error, ValueError) as error:
                raise InputError("image is not valid base64") from error
        value = item.text if item.input_ids is None else item.input_ids
        if not vision:
            engine.encode(value)  # refuses it before it waits for a turn
        return value

    def options(request: Sampling) -> dict[str, Any]:
        given = request.model_dump(include=set(Sampling.model_fields), exclude_unset=not generating)
        if not generating and given:
            raise InputError(f"{', '.join(given)}: this model generates no text")
        if given.get("max_new_tokens", 1) > limits.max_new_tokens:
            raise InputError(
                f"max_new_tokens is {given['max_new_tokens']:,}; at most {limits.max_new_tokens:,} are generated"
            )
        return given

    async def run(inputs: list[Any], settings: dict[str, Any]) -> list[dict[str, Any]]:
        async with worker.slot() as in_thread:
            answers: list[dict[str, Any]] = await in_thread(lambda: engine.batch_predict(inputs, **settings))
        metrics.tokens += sum(len(one.get("token_ids", ())) for one in answers)
        return answers

    @app.post("/predict")
    async def predict(request: PredictRequest) -> Any:
        return (await run([checked(request)], options(request)))[0]

    @app.post("/batch")
    async def batch(request: BatchRequest) -> Any:
        if len(request.inputs) > limits.max_batch:
            raise InputError(f"the batch has {len(request.inputs):,} inputs; at most {limits.max_batch:,} are taken")
        return {"predictions": await run([checked(one) for one in request.inputs], options(request))}

    @app.post("/generate")
    async def generate(request: GenerateRequest) -> Any:
        if not generating:
            raise InputError(f"a model for {engine.task_type} generates no text; use /predict")
        text, settings = checked(request), options(request)
        if not request.stream:
            return (await run([text], settings))[0]
        worker.require_room()  # a full queue is a status of its own, which a stream could not send any more

        async def events() -> AsyncIterator[str]:
            steps: Iterator[dict[str, Any]] = engine.stream(text, **settings)
            try:
                async with worker.slot() as in_thread:
                    while (step := await in_thread(next, steps, None)) is not None:
                        metrics.tokens += 1
                        yield f"data: {json.dumps(step)}\n\n"
            except (BundleError, HTTPException) as error:
                log.error("a stream ended early: %s", error)
                yield f"event: error\ndata: {json.dumps({'detail': 'the model failed, or the server is busy'})}\n\n"
                return
            yield "data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    @app.get("/health")
    async def health() -> Any:
        metadata = engine.metadata
        return {"status": "ok", "task": metadata["task_name"], "task_type": engine.task_type, "backend": engine.backend}

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def main() -> None:
    """The command line. With port 0 the system chooses one, which is printed."""
    parser = argparse.ArgumentParser(description="Serve the model of this folder over HTTP.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8080)
    options = parser.parse_args()
    app = create_app()
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    listening = socket.create_server((options.host, options.port), family=family, backlog=2048)
    print(f"listening on http://{options.host}:{listening.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_keep_alive=5)).run([listening])


if __name__ == "__main__":
    main()
