"""What is written to a config file is read back as the same values."""

from __future__ import annotations

from pathlib import Path

import pytest

from utils.errors import ConfigError
from utils.training.config_files import read_config_file, write_config_file


@pytest.mark.parametrize("name", ["config.yaml", "config.json"])
@pytest.mark.parametrize(
    "value",
    ["1e-3", "5e5", "1.", ".5", "12", "true", "null", "0x10", "1:30", "a: b", "é ⏎", 1e-3, 5, None, [0.9, "1e3"]],
)
def test_text_that_looks_like_a_number_stays_text(value, name, tmp_path):
    path = write_config_file(tmp_path / name, {"run_name": value})
    assert read_config_file(path) == {"run_name": value}
    assert type(read_config_file(path)["run_name"]) is type(value)


def test_a_place_that_cannot_be_is_said():
    Path("file").write_text("no folder")
    with pytest.raises(ConfigError, match=r"file/job\.yaml cannot be read: Not a directory"):
        read_config_file("file/job.yaml")
