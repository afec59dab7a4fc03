"""Run a model's Python files as modules, and report what is wrong in them by file and line."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import itertools
import linecache
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import decode_source
from pathlib import Path

from utils.errors import ModelError, ModelNotFoundError, TrainbookError, first_line

# Every load gets its own module names: a file that was edited and loaded again does not replace the classes of models that
# exist already.
_numbers = itertools.count(1)


class SourcePackage:
    """Python files held in memory, importable as the modules of one package; nothing is read from disk or network again.

    Args:
        files: name, such as "model.py", -> source.
        origin: what messages call the place that the files came from.
    """

    def __init__(self, files: Mapping[str, bytes], origin: str) -> None:
        self.name = f"trainbook_model_{next(_numbers)}"
        self.origin = origin
        self._files = {name.removesuffix(".py"): source for name, source in files.items() if name.endswith(".py")}
        sys.meta_path.insert(0, _Finder(self))
        package = types.ModuleType(self.name, f"Model code of {origin}.")
        package.__path__ = []
        sys.modules[self.name] = package

    def load(self, file: str) -> types.ModuleType:
        """Run `file` and return its module.

        Raises:
            ModelError: a syntax error, a package that is not installed, or an exception while the file runs; names the line.
        """
        name = f"{self.name}.{file.removesuffix('.py')}"
        with reported(f"{self.origin}: {file}", self.paths):
            return importlib.import_module(name)

    def source(self, module: str) -> bytes | None:
        """The source of a module, by its full name."""
        package, _, name = module.rpartition(".")
        return self._files.get(name) if package == self.name else None

    def path(self, module: str) -> str:
        """The file name that tracebacks show for a module. It is no path on disk."""
        return f"<{self.origin}>/{module.rpartition('.')[2]}.py"

    @property
    def paths(self) -> Sequence[str]:
        """The file names of all modules."""
        return [self.path(f"{self.name}.{name}") for name in self._files]


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Finds the modules of one SourcePackage."""

    def __init__(self, package: SourcePackage) -> None:
        self._package = package

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if self._package.source(fullname) is None:
            return None
        spec = importlib.machinery.ModuleSpec(fullname, self, origin=self._package.path(fullname))
        spec.has_location = True
        return spec

    def get_source(self, fullname: str) -> str:
        source = self._package.source(fullname)
        if source is None:
            raise ImportError(f"no module {fullname}", name=fullname)
        return decode_source(source)

    def exec_module(self, module: types.ModuleType) -> None:
        source, path = self._package.source(module.__name__), self._package.path(module.__name__)
        assert source is not None
        code = compile(source, path, "exec", dont_inherit=True)
        text = self.get_source(module.__name__)
        linecache.cache[path] = (len(text), None, text.splitlines(keepends=True), path)
        exec(code, module.__dict__)  # noqa: S102 - only code that the caller trusts by its digest


def load_file(path: Path) -> types.ModuleType:
    """Run a Python file of the user's own disk as a module. Its folder is importable meanwhile.

    Raises:
        ModelNotFoundError: there is no such file.
        ModelError: as `SourcePackage.load`.
    """
    try:
        source = path.read_bytes()
    except OSError as error:
        raise ModelNotFoundError(f"{path} cannot be read: {error.strerror or error}. Check the path.") from None
    module = types.ModuleType(f"trainbook_model_{next(_numbers)}_{path.stem}")
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    linecache.checkcache(str(path))
    try:
        with importable(path.parent), reported(str(path), [str(path)]):
            exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - the user's own file
    except BaseException:
        del sys.modules[module.__name__]
        raise
    return module


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules in `folder` can be imported inside the block."""
    entry = str(folder)
    added = entry not in sys.path
    if added:
        sys.path.insert(0, entry)
    try:
        yield
    finally:
        if added and entry in sys.path:
            sys.path.remove(entry)


@contextmanager
def reported(what: str, files: Sequence[str] = ()) -> Iterator[None]:
    """Exceptions of a model's code as a `ModelError` that names the file, the line and the message.

    Args:
        what: the file or model, as the message begins.
        files: the line of the last frame in one of these is named; without them that of the last frame.
    """
    try:
        yield
    except TrainbookError:
        raise
    except SyntaxError as error:
        line = f" line {error.lineno}" if error.lineno else ""
        excerpt = f": {error.text.strip()[:80]!r}" if error.text and error.text.strip() else ""
        raise ModelError(f"{what}{line}: {type(error).__name__}: {error.msg}{excerpt}. Correct the file.") from None
    except ModuleNotFoundError as error:
        where = _line(error, files)
        raise ModelError(
            f"{what}{where}: the module {error.name!r} is not installed and is not beside the file. Install it, or "
            "remove the import."
        ) from None
    except (
        Exception,
        SystemExit,
    ) as error:  # somebody's code may raise anything; sys.exit() there must not end a notebook
        where = _line(error, files)
        raise ModelError(f"{what}{where}: {first_line(error, with_class=True)}") from error


def _line(error: BaseException, files: Sequence[str]) -> str:
    """Line in one of `files` that an exception came from."""
    frames = []
    traceback = error.__traceback__
    while traceback is not None:
        name = traceback.tb_frame.f_code.co_filename
        if not files or name in files:
            frames.append((name, traceback.tb_lineno))
        traceback = traceback.tb_next
    if not frames:
        return ""
    name, number = frames[-1]
    return f" line {number}" if len(files) == 1 else f" ({Path(name).name} line {number})"


def unused_classes(source: bytes, names: Sequence[str]) -> list[str]:
    """Classes among `names` that no other class of the file uses: submodules are used by the model."""
    used = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef):
            used |= {child.id for child in ast.walk(node) if isinstance(child, ast.Name) and child.id != node.name}
    return [name for name in names if name not in used]
