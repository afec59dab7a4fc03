"""Export bundles: whole or absent, and nothing of a file is believed before it was checked."""

from __future__ import annotations

import hashlib
import io
import json
import os
import resource
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest
from torch import nn

from tests.kit.bundles import bare_environment
from tests.kit.crash import file_operations, in_child, killed_before, limit_file_size
from tests.kit.toys import tiny_gpt
from utils.errors import ExportError, ModelError
from utils.models.transformers_models import with_weights
from utils.training import TaskSpec, TrainingConfig, create_export_bundle
from utils.training.export.archives import pack_bundle, unpack_bundle

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="forks, and limits that only POSIX has")

SPEC = TaskSpec("numbers", "tabular")  # no programs are run for it, so a bundle takes milliseconds


def make(folder, formats=("pytorch",), model=None):
    config = TrainingConfig(export_formats=list(formats))
    return create_export_bundle(model or nn.Linear(4, 4), None, SPEC, config, folder)


def visible(folder):
    return [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.exists() else []


def assert_whole(bundle):
    recorded = json.loads((bundle / "metadata.json").read_text())["files"]
    there = {path.relative_to(bundle).as_posix(): path for path in bundle.rglob("*") if path.is_file()}
    assert set(there) == {*recorded, "metadata.json", "trainbook_export.json", "health_report.json", "health_report.md"}
    for name, entry in recorded.items():
        assert hashlib.sha256(there[name].read_bytes()).hexdigest() == entry["sha256"], name


def test_a_bundle_that_is_killed_at_any_moment_is_whole_or_absent(tmp_path):
    make(tmp_path / "warm")  # imports and caches, which children share
    count = len(file_operations(lambda: make(tmp_path / "counted"), tmp_path / "counted"))
    whole = 0
    for k in (*range(2, count, max(1, count // 12)), count - 2, count - 1, count):
        folder = tmp_path / f"killed-{k}"
        folder.mkdir()
        assert killed_before(k, lambda folder=folder: make(folder), folder).killed
        for bundle in visible(folder):
            assert_whole(bundle)
            whole += 1
        made = make(folder)
        assert_whole(made)
        assert [path for path in folder.iterdir() if path.name.startswith(".")] == [], (
            "the next bundle clears away the rest"
        )
    assert whole, "no kill came after the rename: the last operations were not reached"


@pytest.mark.parametrize("formats", [["pytorch"], ["safetensors", "pytorch"], ["hf"]], ids="+".join)
def test_a_disk_that_is_full_leaves_no_half_bundle(formats, tmp_path):
    model = tiny_gpt()

    def full():
        limit_file_size(30_000)
        try:
            make(tmp_path / "exports", formats, model)
        except ExportError as error:
            return str(error)
        return None

    message = in_child(full).value
    assert message is not None, "a bundle was made on a full disk"
    assert "could not be written" in message
    assert list((tmp_path / "exports").iterdir()) == []


def safetensors_bomb(path):
    """A header that claims 2^63 - 1 bytes."""
    path.write_bytes(struct.pack("<Q", 2**63 - 1) + b"{}")


def huge_tensor(path):
    """A header that declares a tensor of 2^60 bytes."""
    header = json.dumps({"weight": {"dtype": "F32", "shape": [2**58], "data_offsets": [0, 2**60]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header)


READ_BUNDLE = """
import resource, sys
import inference
resource.setrlimit(resource.RLIMIT_AS, (3 * 2**30, 3 * 2**30))
try:
    inference.check_files(inference.HERE, inference.read_metadata(inference.HERE))
except inference.BundleError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("formats", "name", "damage"),
    [
        (["safetensors"], "artifacts/safetensors/model.safetensors", safetensors_bomb),
        (["safetensors"], "artifacts/safetensors/model.safetensors", huge_tensor),
        (["pytorch"], "artifacts/model.pytorch.pt", lambda path: path.write_bytes(bytes(2**20))),
    ],
    ids=["header of 2^63", "huge tensor", "another file"],
)
def test_f30_a_bomb_in_place_of_an_artifact_is_refused_before_it_is_read(formats, name, damage, tmp_path):
    bundle = make(tmp_path, formats)
    damage(bundle / name)
    done = subprocess.run(
        [sys.executable, "-B", "-c", READ_BUNDLE],
        cwd=bundle,
        env=bare_environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert f"{name} is not the file that was exported" in done.stdout, done.stderr


@pytest.mark.parametrize("bomb", [safetensors_bomb, huge_tensor])
def test_weights_that_claim_more_than_their_file_has_are_one_error_and_take_no_memory(bomb, tmp_path):
    bomb(tmp_path / "model.safetensors")

    def read():
        resource.setrlimit(resource.RLIMIT_AS, (64 * 2**30, 64 * 2**30))
        with pytest.raises(ModelError, match="model.safetensors"):
            with_weights(nn.Linear(2, 2), tmp_path / "model.safetensors")
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert in_child(read).value < before + 500_000  # KiB


# ---- Archives ----


def tar_with(path, name, **changes):
    """A tar file with one member of this name and kind, after a plain one."""
    with tarfile.open(path, "w") as archive:
        plain = tarfile.TarInfo("metadata.json")
        plain.size = 2
        archive.addfile(plain, io.BytesIO(b"{}"))
        hostile = tarfile.TarInfo(name)
        for attribute, value in changes.items():
            setattr(hostile, attribute, value)
        archive.addfile(hostile, io.BytesIO(bytes(hostile.size)))


def zip_with(path, *names, mode=0, content=b"{}"):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", b"{}")
        for name in names:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)


HOSTILE = {
    "tar ..": lambda path: tar_with(path, "../outside"),
    "tar absolute": lambda path: tar_with(path, str(path.parent / "outside")),
    "tar symlink": lambda path: tar_with(path, "link", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
    "tar hardlink": lambda path: tar_with(path, "link", type=tarfile.LNKTYPE, linkname="metadata.json"),
    "tar device": lambda path: tar_with(path, "device", type=tarfile.CHRTYPE),
    "tar pipe": lambda path: tar_with(path, "pipe", type=tarfile.FIFOTYPE),
    "zip ..": lambda path: zip_with(path, "a/../../outside"),
    "zip absolute": lambda path: zip_with(path, "/outside"),
    "zip backslash": lambda path: zip_with(path, "..\\outside"),
    "zip drive": lambda path: zip_with(path, "C:outside"),
    "zip symlink": lambda path: zip_with(path, "link", mode=stat.S_IFLNK | 0o777, content=b"/etc/passwd"),
    "zip case": lambda path: zip_with(path, "Serve.py", "serve.py"),
    "zip many": lambda path: zip_with(path, *(f"{number}" for number in range(10_001)), content=b""),
    "zip bomb": lambda path: zip_with(path, "zeros", content=bytes(50_000_000)),
    "no archive": lambda path: path.write_bytes(b"neither"),
    "cut off": lambda path: (zip_with(path, "a"), os.truncate(path, 60)),
    "no bundle": lambda path: zipfile.ZipFile(path, "w").close(),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_f32_a_hostile_archive_is_refused_and_nothing_is_written(kind, tmp_path):
    archive = tmp_path / "archive"
    HOSTILE[kind](archive)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ExportError):
        unpack_bundle(archive, tmp_path / "bundle", max_bytes=10_000_000)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_packed_bundle_comes_back_as_it_was(tmp_path):
    bundle = make(tmp_path)
    archive = pack_bundle(bundle)
    assert archive.name == f"{bundle.name}.zip"
    unpacked = unpack_bundle(archive, tmp_path / "unpacked")
    assert_whole(unpacked)
    with pytest.raises(ExportError, match="exists already"):
        unpack_bundle(archive, unpacked)
    with pytest.raises(ExportError, match="no export bundle"):
        pack_bundle(tmp_path)


def test_a_member_that_is_longer_than_its_archive_says_is_refused(tmp_path):
    zip_with(tmp_path / "archive", "a", content=bytes(100_000))
    raw = (tmp_path / "archive").read_bytes()
    (tmp_path / "archive").write_bytes(raw.replace(struct.pack("<I", 100_000), struct.pack("<I", 10)))
    with pytest.raises(ExportError):
        unpack_bundle(tmp_path / "archive", tmp_path / "bundle")
    assert not (tmp_path / "bundle").exists()
