"""Every Python example in the documents runs as it stands, in order, document by document."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from utils import HOME
from utils.errors import ConfigError
from utils.training import TrainingConfig

DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/**/*.md", "utils/**/*.md")
    for path in HOME.glob(pattern)
    if "```python" in path.read_text("utf-8")
)


@pytest.mark.filterwarnings("ignore:(?s).*DEPRECATION WARNING:DeprecationWarning")  # the migration guide's old calls
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(HOME)))
def test_the_examples_of_a_document_run(document: Path, capsys):
    text = document.read_text(encoding="utf-8")
    scope: dict = {"__name__": "__main__"}
    for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
        line = text[: match.start()].count("\n") + 1
        # Padded, so that a traceback names the line of the document.
        exec(compile("\n" * line + match[1], str(document), "exec"), scope)  # noqa: S102 - our own documents


def test_the_tour_shows_the_error_that_is_raised():
    with pytest.raises(ConfigError) as caught:
        TrainingConfig(learning_rat=1e-4, batch_size=-4)
    assert str(caught.value) in (HOME / "docs" / "tour.md").read_text(encoding="utf-8")


def test_links_and_images_lead_somewhere():
    for document in HOME.glob("*.md"):
        for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8")):
            assert (HOME / target).exists(), f"{document.name}: {target}"


def test_the_tours_job_file_is_a_valid_job(tmp_path, monkeypatch, capsys):
    from cli.run_training import main

    job = re.search(r"```yaml\n(.*?)```", (HOME / "docs" / "tour.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    Path("job.yaml").write_text(job, encoding="utf-8")
    Path("my.txt").write_text("a line of text\n" * 2000, encoding="utf-8")
    assert main(["--config", "job.yaml", "--dry-run"]) == 0
