"""The room of tests/conftest.py: what a test leaves behind is noticed, the rest is put back, and random numbers repeat."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def outcome_of(tests: str, folder: Path, *options: str) -> tuple[dict[str, int], str]:
    """Run `tests` in a pytest of its own under a copy of the project's conftest: counts, and the whole output."""
    output = run_pytest(tests, folder, [options])
    lines = output.splitlines()
    return {word: sum(line.startswith(f"{word} ") for line in lines) for word in ("PASSED", "FAILED", "ERROR")}, output


def run_pytest(tests: str, folder: Path, runs: Sequence[Sequence[str]]) -> str:
    """As `outcome_of`, once for each of `runs`, which are options, all in one process: it imports torch."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "conftest.py")
    (folder / "test_sample.py").write_text(tests, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    always = ["-q", "-p", "no:cacheprovider", "-rA", str(folder)]
    program = f"import pytest\nfor options in {[list(options) for options in runs]!r}: pytest.main([*{always!r}, *options])"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=600,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},  # they take longer to import than torch
    )
    return done.stdout + done.stderr


def test_what_a_test_leaves_behind_fails_it_and_the_room_is_put_back(tmp_path):
    tests = """
import os, random, signal, subprocess, sys, threading
import conftest
import torch

conftest._PATIENCE_S = 0.2  # for what never ends
children = []

def test_thread():
    threading.Thread(target=threading.Event().wait, name="forgotten", daemon=True).start()

def test_child():
    children.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))

def test_handler():
    signal.signal(signal.SIGTERM, lambda *_: None)

def test_random_generator(rng_untouched):
    random.random()

def test_nothing(rng_untouched):
    conftest._PATIENCE_S = 60  # what is ending gets its time, on a loaded machine too
    thread = threading.Thread(target=print)
    thread.start()
    subprocess.run([sys.executable, "-c", ""])

def test_put_back():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

def test_first():
    random.seed(1), torch.manual_seed(1), torch.set_default_dtype(torch.float64)
    os.environ["TRAINBOOK_CANARY"] = "1"

def test_second():
    assert "TRAINBOOK_CANARY" not in os.environ
    assert torch.get_default_dtype() == torch.float32
    assert torch.initial_seed() != 1
    assert random.getstate() != random.Random(1).getstate()
"""
    counts, output = outcome_of(tests, tmp_path)
    assert counts == {"PASSED": 8, "FAILED": 0, "ERROR": 4}, output
    for leak in ("thread 'forgotten'", "child process", "a handler of SIGTERM", "generator of random was changed"):
        assert leak in output


def test_each_test_has_a_folder_of_its_own(tmp_path):
    assert Path.cwd() == tmp_path
    assert ROOT not in tmp_path.parents


def test_the_network_is_out_of_reach():
    with pytest.raises(ConnectionError, match="tests have no network"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    with pytest.raises(OSError, match="tests have no network"):
        socket.getaddrinfo("example.org", 80)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp, pytest.raises(ConnectionError):
        udp.sendto(b"x", ("192.0.2.1", 53))


def test_a_child_process_is_refused_too():
    program = "import urllib.request as u; u.urlopen('http://192.0.2.1/', timeout=30)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "refused" in done.stderr


def test_this_machine_is_within_reach():
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    left, right = socket.socketpair()
    left.close(), right.close()
    assert urllib.request.proxy_bypass("127.0.0.1")


def test_nothing_personal_is_visible():
    assert not [name for name in os.environ if name.upper().endswith(("_API_KEY", "_TOKEN"))]
    assert Path.home().name.startswith("trainbook-home-")
    assert os.environ["WANDB_MODE"] == "offline"
    assert os.environ["HF_HUB_OFFLINE"] == "1"


def test_every_test_starts_from_the_same_random_numbers_in_any_order(tmp_path):
    tests = f"""
import random
import numpy as np
import pytest
import torch

def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))

AT_IMPORT = draw()

@pytest.fixture(scope="module")
def of_the_module():
    return draw()

@pytest.mark.parametrize("number", range(3))
def test_any(number, of_the_module):
    with open({str(tmp_path / "drawn")!r}, "a") as file:
        print(AT_IMPORT, of_the_module, draw(), file=file)
"""
    for options, passed in (["--shuffle", "1"], 3), (["-k", "1"], 1):
        counts, output = outcome_of(tests, tmp_path, *options)
        assert counts["PASSED"] == passed, output
    lines = (tmp_path / "drawn").read_text().splitlines()
    assert len(lines) == 4
    assert len(set(lines)) == 1


def test_a_random_order_is_the_seeds_and_keeps_modules_together(tmp_path):
    (tmp_path / "test_other.py").write_text("\n".join(f"def test_{letter}(): pass" for letter in "abcdef"), encoding="utf-8")
    tests = "\n".join(f"def test_{letter}(): pass" for letter in "ghijkl")

    output = run_pytest(tests, tmp_path, [("--collect-only", "--shuffle", seed) for seed in ("1", "2", "1")])
    names = [line for line in output.splitlines() if "::test_" in line]
    first, second, again = names[:12], names[12:24], names[24:]
    assert sorted(first) == sorted(second)
    assert len(first) == 12
    assert second != first == again
    assert len({name.split("::")[0] for name in first[:6]}) == 1


def test_the_fixed_state_is_that_of_no_usual_seed():
    """Code that forgets to seed must be able to show it."""
    assert random.getstate() not in [random.Random(seed).getstate() for seed in (0, 1, 42, 123)]
