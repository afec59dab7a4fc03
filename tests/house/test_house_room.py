"""The room of tests/conftest.py: what a test leaves behind is noticed, and the rest is put back."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def outcome_of(tests: str, folder: Path) -> tuple[dict[str, int], str]:
    """Run `tests` in a pytest of its own under a copy of the project's conftest: counts, and the whole output."""
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "conftest.py")
    (folder / "test_sample.py").write_text(tests, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", "-rA", str(folder)],
        capture_output=True,
        text=True,
        cwd=folder,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    counts = {word: sum(line.startswith(f"{word} ") for line in lines) for word in ("PASSED", "FAILED", "ERROR")}
    return counts, done.stdout + done.stderr


def test_what_a_test_leaves_behind_fails_it(tmp_path):
    tests = """
import random, signal, subprocess, sys, threading
import conftest

conftest._PATIENCE_S = 0.2
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
    thread = threading.Thread(target=print)
    thread.start()
    subprocess.run([sys.executable, "-c", ""])

def test_put_back():
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""
    counts, output = outcome_of(tests, tmp_path)
    assert counts == {"PASSED": 6, "FAILED": 0, "ERROR": 4}, output
    for leak in ("thread 'forgotten'", "child process", "a handler of SIGTERM", "generator of random was changed"):
        assert leak in output


def test_the_room_is_put_back_between_tests(tmp_path):
    tests = """
import os, random
import torch

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
    assert counts == {"PASSED": 2, "FAILED": 0, "ERROR": 0}, output


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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
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


def test_random_numbers_differ_from_a_fixed_seed():
    """Nobody seeds the generators for all tests: code that forgets its seed must be able to show it."""
    assert random.getstate() != random.Random(0).getstate()
