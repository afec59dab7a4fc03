"""The files that image datasets come in: IDX (MNIST) and the pickled batches of CIFAR-10. Nothing in them is run."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from utils.errors import DataError, DataNotFoundError

Bytes = NDArray[np.uint8]

# "The IDX file format" (LeCun, Cortes, Burges: the MNIST database): two zero bytes, the type of the numbers, how many
# dimensions; then each dimension as a big-endian 32-bit number; then the numbers.
_UNSIGNED_BYTE = 0x08

_CIFAR_SHAPE = (3, 32, 32)


def read_idx(path: Path, dimensions: int) -> Bytes:
    """An IDX file of unsigned bytes, plain or gzipped (by its content, not its name).

    Args:
        dimensions: 3 for images (N, H, W), 1 for labels (N,).
    Returns:
        uint8, in the file's own shape.
    Raises:
        DataNotFoundError: no such file.
        DataError: another kind of file, other dimensions, or not as many bytes as the header says; gives both numbers.
    """
    what = "images" if dimensions == 3 else "labels"
    raw = _unpacked(path)
    wanted = bytes((0, 0, _UNSIGNED_BYTE, dimensions))
    if raw[:4] != wanted:
        found = f"0x{raw[:4].hex()}" if raw else "nothing (the file is empty)"
        raise DataError(
            f"{path}: is no IDX file of {what}: it begins with {found}, not 0x{wanted.hex()}. {_again(path)}"
        )
    start = 4 + 4 * dimensions
    if len(raw) < start:
        raise DataError(f"{path}: is cut off: {len(raw)} bytes, and the header alone has {start}. {_again(path)}")
    shape = struct.unpack(f">{dimensions}I", raw[4:start])
    expected = int(np.prod(shape, dtype=object))
    if len(raw) - start != expected:
        fault = "is cut off" if len(raw) - start < expected else "has more than its header says"
        raise DataError(
            f"{path}: {fault}: {_shown(shape)} {what} are {expected:,} bytes, and {len(raw) - start:,} follow the header. "
            f"{_again(path)}"
        )
    return np.frombuffer(raw, np.uint8, offset=start).reshape(shape)


def _unpacked(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except OSError as error:
        kind = DataNotFoundError if isinstance(error, FileNotFoundError) else DataError
        raise kind(f"{path}: cannot be read: {error.strerror or error}.") from error
    if raw[:2] != b"\x1f\x8b":  # gzip's own mark: RFC 1952, 2.3.1
        return raw
    try:
        return gzip.decompress(raw)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: is a damaged gzip file of {len(raw):,} bytes: {error}. {_again(path)}") from error


def _shown(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def _again(path: Path) -> str:
    return f"Put a whole {path.name} there again."


def read_cifar_batch(path: Path) -> tuple[Bytes, NDArray[np.int64]]:
    """One of CIFAR-10's batches (Krizhevsky 2009, the "python version").

    Its format is Python's pickle, which can run any code. What is read here can only make dicts, lists, numbers, texts and
    arrays of bytes: anything else in the file is refused.
    Returns:
        images uint8 (N, 3, 32, 32) and labels int64 (N,).
    Raises:
        DataNotFoundError: no such file.
        DataError: damaged, asks for something else to be loaded, or no batch of CIFAR-10; says what was found.
    """
    raw = _unpacked(path)
    try:
        batch = _BytesUnpickler(io.BytesIO(raw), encoding="bytes").load()
    except DataError as error:
        raise DataError(f"{path}: {error} {_again(path)}") from error
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise DataError(
            f"{path}: is a damaged batch of CIFAR-10 ({len(raw):,} bytes): {type(error).__name__}: {error}. {_again(path)}"
        ) from error
    named = {_text(name): value for name, value in batch.items()} if isinstance(batch, dict) else {}
    images, labels = named.get("data"), named.get("labels")
    size = int(np.prod(_CIFAR_SHAPE))
    if not isinstance(images, np.ndarray) or images.ndim != 2 or images.shape[1] != size:
        found = f"shape {images.shape}" if isinstance(images, np.ndarray) else f"a {type(images).__name__}"
        raise DataError(f"{path}: data must be bytes of shape (N, {size}); got {found}. {_again(path)}")
    if not isinstance(labels, list) or len(labels) != len(images) or not all(type(label) is int for label in labels):
        found = f"{len(labels)}" if isinstance(labels, list) else f"a {type(labels).__name__}"
        raise DataError(f"{path}: labels must be {len(images):,} whole numbers; got {found}. {_again(path)}")
    return images.reshape(-1, *_CIFAR_SHAPE), np.array(labels, dtype=np.int64)


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class _PickledArray:
    """Stands for numpy's array while a pickle is read: takes its state, and makes an array of bytes of it or refuses."""

    def __init__(self, *_: object) -> None:
        self.array: Bytes = np.zeros(0, np.uint8)

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, in_fortran_order, data = state
        if not isinstance(dtype, _PickledDtype):
            raise DataError(f"holds an array of a {type(dtype).__name__} where numbers were expected.")
        content = data.encode("latin-1") if isinstance(data, str) else bytes(data)
        order = "F" if in_fortran_order else "C"
        # A copy: what is read must not be a window of a buffer that is let go.
        self.array = np.frombuffer(content, np.uint8).reshape(tuple(shape), order=cast(Any, order)).copy()


class _PickledDtype:
    """Stands for numpy's dtype: of all there are, bytes."""

    def __init__(self, code: Any, *_: object) -> None:
        if _text(code) not in ("u1", "uint8"):
            raise DataError(f"holds an array of {_text(code)[:20]!r}; only bytes (u1) are expected.")

    def __setstate__(self, _: object) -> None:
        """Byte order and the like mean nothing for bytes."""


def _encoded(text: str, encoding: str = "latin-1") -> bytes:
    """Encode bytes as pickles of protocol 2 do."""
    if encoding not in ("latin1", "latin-1"):
        raise DataError(f"holds bytes in {encoding[:20]!r}; only latin-1 is expected.")
    return text.encode("latin-1")


class _BytesUnpickler(pickle.Unpickler):
    """Reads a pickle without ever importing what it names: three names are known, and each stands for something of ours."""

    _KNOWN: ClassVar[dict[tuple[str, str], Callable[..., Any]]] = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledDtype,
        ("_codecs", "encode"): _encoded,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._KNOWN:
            raise DataError(
                f"asks for {module}.{name} to be loaded, which no batch of CIFAR-10 does; it is not opened."
            )
        return self._KNOWN[module, name]

    def load(self) -> Any:
        return _plain(super().load())


def _plain(value: Any) -> Any:
    """Replace placeholders in a loaded value by their arrays."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items() if not isinstance(key, _PickledArray)}
    return value.array if isinstance(value, _PickledArray) else value
