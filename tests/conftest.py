"""The room that every test runs in: no network, its own home and folder, nothing left behind.

A test fails when it leaves a thread, a child process or a signal handler. Environment variables, the working folder and torch's
switches are put back around each test. Every test, every fixture set-up and every test module's import starts from the same
state of the global random generators, whatever ran before; `rng_untouched` makes a test fail when the code under test draws
from, or seeds, one of them.

`--shuffle SEED` runs test modules in a random order, and the tests within each as well: a test must not depend on others.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kit.databases import database_url, new_postgres  # noqa: F401 - fixtures for all tests
from tests.kit.failed_before import pytest_terminal_summary, remember_failures  # noqa: F401 - the first is a hook
from tests.kit.ray_cluster import ray_url  # noqa: F401 - a fixture

ROOT = Path(__file__).resolve().parent.parent

#: What a test must not inherit: credentials, settings of the services, a launcher's ranks, a front end.
_SCRUBBED_PREFIXES = ("HF_", "WANDB_", "TRAINBOOK_", "COLAB_", "JPY_", "MPL", "CUBLAS_", "OMP_", "MKL_", "RAY_")
_SCRUBBED_SUFFIXES = ("_API_KEY", "_TOKEN", "_SECRET", "_PASSWORD", "_PROXY")
_SCRUBBED_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", "CI", "PYTHONWARNINGS")
_LOOPBACK = ("127.0.0.1", "127.0.0.2", "localhost", "::1")  # Ray takes 127.0.0.1 for the machine's outer address

#: What third parties start or install once for the life of a process, by design: class or function, by module.
_KEPT_THREADS = ("tqdm._monitor",)
_KEPT_HANDLERS = ("torch.utils.data._utils.signal_handling",)

#: Children that live on by design: one for the whole life of a process, and those of `_readers`.
_KEPT_CHILDREN = ("multiprocessing.resource_tracker", "reader_program.py")

#: Seconds that a thread or child which is ending already may take, on a loaded machine too.
_PATIENCE_S = 60.0

#: A seed that no test and no default setting uses: code that forgets to seed does not pass for code that seeds.
_SEED = 20_611


class NetworkBlockedError(ConnectionError):
    """A test tried to reach the network."""


# ---- once a process, before any test module is imported ----


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--shuffle", type=int, metavar="SEED", help="run modules, and the tests within each, in random order")


def pytest_configure(config: pytest.Config) -> None:
    remember_failures(config)
    home = Path(tempfile.mkdtemp(prefix="trainbook-home-"))
    config.add_cleanup(lambda: shutil.rmtree(home, ignore_errors=True))
    for name in list(os.environ):
        upper = name.upper()
        if upper.startswith(_SCRUBBED_PREFIXES) or upper.endswith(_SCRUBBED_SUFFIXES) or upper in _SCRUBBED_NAMES:
            del os.environ[name]
    os.environ.update(_environment(home))
    _block_network(config)
    _leave_files_to_the_kernel(config)
    _make_hypothesis_repeatable()


def _environment(home: Path) -> dict[str, str]:
    hidden = home / "hidden"
    hidden.mkdir()
    # jsonschema, which Jupyter imports, builds a grammar for IRIs where this package is installed: two seconds of each process.
    (hidden / "rfc3987_syntax.py").write_text('raise ImportError("hidden from the tests\' processes")\n', encoding="utf-8")
    nowhere = "http://127.0.0.1:9"  # the discard port: a child process that goes out through a proxy is refused at once
    return {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / ".cache"),
        "XDG_CONFIG_HOME": str(home / ".config"),
        "XDG_DATA_HOME": str(home / ".local" / "share"),
        "HF_HOME": str(home / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_DIR": str(home),
        "WANDB_CACHE_DIR": str(home / "wandb-cache"),
        "WANDB_CONFIG_DIR": str(home / "wandb-config"),
        "WANDB_DATA_DIR": str(home / "wandb-data"),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "MPLBACKEND": "Agg",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCHINDUCTOR_CACHE_DIR": str(home / "torchinductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",  # more would be processes that live on after a test
        # torch reads these when it is imported; children of a test inherit them. Workers share few cores.
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "http_proxy": nowhere,
        "https_proxy": nowhere,
        "no_proxy": ",".join(_LOOPBACK),
        # Children run in a test's own folder and import the library from here.
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(hidden))),
    }


def _block_network(config: pytest.Config) -> None:
    """Sockets reach this machine only. Covers this process; children find a dead proxy in their environment."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)

    def guarded(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: socket.socket, *arguments: Any) -> Any:
            address = arguments[-1]  # sendto(data, [flags,] address)
            if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in _LOOPBACK:
                raise NetworkBlockedError(f"tests have no network; somebody tried to reach {address[0]}:{address[1]}")
            return real(self, *arguments)

        return call

    for name in ("connect", "connect_ex", "sendto"):
        patch.setattr(socket.socket, name, guarded(getattr(socket.socket, name)))
    real_look_up = socket.getaddrinfo

    def look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in (None, "", "0.0.0.0", socket.gethostname(), *_LOOPBACK):  # noqa: S104 - listening is local
            raise NetworkBlockedError(f"tests have no network; somebody looked up {name}")
        return real_look_up(host, *arguments, **options)

    patch.setattr(socket, "getaddrinfo", look_up)


def _leave_files_to_the_kernel(config: pytest.Config) -> None:
    """No waiting for the disk: what tests write has to survive processes, not the machine, and a small run commits some 30
    files. That and when the library asks for it is tested where `os.fsync` is replaced (tests/kit/crash.py)."""
    patch = pytest.MonkeyPatch()
    config.add_cleanup(patch.undo)
    patch.setattr(os, "fsync", lambda descriptor: None)


def _make_hypothesis_repeatable() -> None:
    from hypothesis import settings

    settings.register_profile("trainbook", derandomize=True, deadline=None, database=None, print_blob=True)
    settings.load_profile("trainbook")


def pytest_report_header(config: pytest.Config) -> list[str]:
    seed = config.getoption("shuffle")
    return [] if seed is None else [f"random order: --shuffle {seed}"]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Shuffle, where asked for. Modules stay together: a fixture that serves a whole module is set up once. First of all hooks,
    so that pytest still brings together the tests that share a parameter of such a fixture: set up once for each, not at each
    change of parameter."""
    seed = config.getoption("shuffle")
    if seed is None:
        return
    order = random.Random(seed)
    by_module: dict[str, list[pytest.Item]] = {}
    for item in sorted(items, key=lambda item: item.nodeid):  # so that the order is the seed's alone
        by_module.setdefault(item.nodeid.split("::")[0], []).append(item)
    modules = list(by_module.values())
    order.shuffle(modules)
    for module in modules:
        order.shuffle(module)
    items[:] = [item for module in modules for item in module]


# ---- around every test ----


def pytest_collectstart(collector: pytest.Collector) -> None:
    """Before a test module is imported: what it draws then does not depend on the modules before it."""
    _seed_generators()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Before the fixtures of modules and sessions, of which `_room` comes after."""
    _seed_generators()
    _keep_translations_to_onnx()


@pytest.fixture(autouse=True)
def _room(tmp_path: Path) -> Iterator[None]:
    """A folder of its own, everything put back afterwards, and a failure for what outlives the test."""
    folder, environment = Path.cwd(), dict(os.environ)
    put_back = _torch_switches()
    _freeze_what_imports_made()
    threads, children, handlers = set(threading.enumerate()), _children(), _signal_handlers()
    os.chdir(tmp_path)
    _seed_generators()  # fixtures of wider scope may have drawn, or not, if another test had set them up
    yield
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    put_back()
    left = [*_left_handlers(handlers), *_left_threads(threads), *_left_children(children)]
    if left:
        pytest.fail(f"the test left behind: {'; '.join(left)}", pytrace=False)


@pytest.fixture(scope="session", autouse=True)
def _readers() -> Iterator[None]:
    """The processes that exports are loaded in are used again by later tests: starting one takes seconds."""
    from utils.training.export.other_process import kept_processes

    with kept_processes():
        yield


@pytest.fixture
def rng_untouched() -> Iterator[None]:
    """Fail when a global random generator (random, numpy, torch) is in another state after the test than before."""
    import numpy as np
    import torch

    def states() -> dict[str, bytes]:
        name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the legacy global state is what is watched
        return {
            "random": repr(random.getstate()).encode(),
            "numpy": repr((name, keys.tobytes(), rest)).encode(),
            "torch": torch.get_rng_state().numpy().tobytes(),
        }

    before = states()
    yield
    after = states()
    changed = [name for name in before if before[name] != after[name]]
    if changed:
        pytest.fail(f"the global random generator of {', '.join(changed)} was changed", pytrace=False)


def _seed_generators() -> None:
    """Put the global generators into their fixed state. numpy and torch are imported for it: each begins with a random state
    of its own, and a test that is the first to import one would start from that."""
    import numpy as np
    import torch

    random.seed(_SEED)
    np.random.seed(_SEED)  # noqa: NPY002 - the legacy global state is what code may draw from
    # Not torch.manual_seed: for each kind of device that is not in use it takes down the whole stack, at every call.
    torch.default_generator.manual_seed(_SEED)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(_SEED)


def _torch_switches() -> Callable[[], None]:
    """Remember torch's global switches, and hold it to one thread: a worker has about one core."""
    import torch

    torch.set_num_threads(1)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()

    def restore() -> None:
        now = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        if now != (deterministic, warn_only):  # the call imports torch's compiler
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)

    return restore


_translations_kept = False


def _keep_translations_to_onnx() -> None:
    """torch makes its table of translations to ONNX anew for each graph, out of the sources of a thousand functions: a second
    of the two to ten that a small graph takes. From the first test after its import on, it is made once a process."""
    global _translations_kept  # noqa: PLW0603 - one process, one state
    module = sys.modules.get("torch.onnx._internal.exporter._registration")
    if module is None or _translations_kept:
        return
    _translations_kept = True
    table_of = functools.cache(module.ONNXRegistry.from_torchlib)

    def copied(cls: Any, *arguments: Any, **options: Any) -> Any:
        table, copy = table_of(*arguments, **options), cls()
        copy._opset_version = table._opset_version
        copy.functions = {target: list(entries) for target, entries in table.functions.items()}
        return copy

    module.ONNXRegistry.from_torchlib = classmethod(copied)


_modules_frozen = 0


def _freeze_what_imports_made() -> None:
    """Keep modules and what they define out of the garbage collector: a full collection, as after running out of memory, would
    look at millions of objects that live as long as the process."""
    global _modules_frozen  # noqa: PLW0603 - one process, one state
    if len(sys.modules) > _modules_frozen + 100:
        gc.collect()
        gc.freeze()
        _modules_frozen = len(sys.modules)


def _signal_handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals()}


def _left_handlers(before: dict[int, Any]) -> list[str]:
    left = []
    for number, handler in before.items():
        now = signal.getsignal(number)
        if now != handler and getattr(now, "__module__", None) not in _KEPT_HANDLERS:
            left.append(f"a handler of {signal.Signals(number).name}: {now!r}")
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    return left


def _left_threads(before: set[threading.Thread]) -> list[str]:
    left = []
    for thread in set(threading.enumerate()) - before:
        if type(thread).__module__ in _KEPT_THREADS:
            continue
        thread.join(_PATIENCE_S)
        if thread.is_alive():
            left.append(f"thread {thread.name!r}")
    return left


def _children() -> set[int]:
    """Ids of this process's living children. Linux lists them by thread, which is far cheaper than scanning /proc."""
    tasks = Path("/proc/self/task")
    try:
        listed = {int(pid) for task in tasks.iterdir() for pid in (task / "children").read_text().split()}
    except OSError:  # another system, a kernel without that file, or a thread that ended in between
        import psutil

        listed = {child.pid for child in psutil.Process().children()}
    return listed


def _left_children(before: set[int]) -> list[str]:
    new = _children() - before
    if not new:
        return []
    import psutil

    multiprocessing.active_children()  # reaps those that have ended
    left = []
    for pid in sorted(new):
        try:
            child = psutil.Process(pid)
            command = " ".join(child.cmdline())
            if any(name in command for name in _KEPT_CHILDREN):
                continue
            child.wait(_PATIENCE_S)
        except psutil.NoSuchProcess:
            continue
        except psutil.TimeoutExpired:
            left.append(f"child process {pid}: {command[:200]}")
            child.kill()
    return left


@pytest.fixture
def only_the_runs_own_passes(monkeypatch):
    """The passes over the first samples, before the run, are left out, so that a test can count those of the run."""
    monkeypatch.setattr("utils.training.engine.trainer.first_samples_notices", lambda *_: [])
