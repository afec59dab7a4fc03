"""The documentation builds as a site without a warning, needs no network to be read, and its reference is complete."""

from __future__ import annotations

import html
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from tests.kit.tree import ROOT

pytest.importorskip("mkdocs")

PACKAGES = (
    "utils", "utils.training", "utils.data", "utils.tokenization", "utils.models", "utils.adapters", "utils.checks", "utils.ui",
    "widgets",
)  # fmt: skip


def build(folder: Path, config: Path = ROOT / "mkdocs.yml") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", str(config)]
    return subprocess.run([*command, "--site-dir", str(folder)], cwd=ROOT, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = build(folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def sections(page: str) -> dict[str, str]:
    """The anchors of a reference page -> the HTML from each to the next."""
    return {
        m[1]: m[2] for m in re.finditer(r'<span id="([\w.]+)"></span>(.*?)(?=<span id="|</article>)', page, re.DOTALL)
    }


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_every_public_name_is_in_the_reference(site, package):
    names = getattr(import_module(package), "__all__", [])
    path = site / "reference" / f"{package}.html"
    found = sections(path.read_text(encoding="utf-8")) if names else {}
    missing = [name for name in names if f"{package}.{name}" not in found]
    assert missing == []
    undocumented = [name for name in names if not re.search(rf"<h2[^>]*>\s*{name}\b", found[f"{package}.{name}"])]
    assert undocumented == [], "an anchor with nothing below it"


@pytest.mark.slow
def test_every_setting_is_in_the_reference_with_title_and_meaning(site):
    from utils.training import TrainingConfig
    from utils.ui.data_settings import DataSettings

    page = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    for name, field in {**TrainingConfig.model_fields, **DataSettings.model_fields}.items():
        row = re.search(rf'<tr>\s*<td><span id="settings\.{name}"></span>.*?</tr>', page, re.DOTALL)
        assert row is not None, name
        assert html.escape(str(field.title), quote=False) in row[0]
        assert field.description


@pytest.mark.slow
def test_every_page_can_be_reached_and_none_needs_the_network(site):
    pages = sorted(site.rglob("*.html"))
    assert {"index.html", "start.html", "engine.html"} <= {page.name for page in pages}
    loaded = re.compile(
        r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//|<link\b[^>]*stylesheet[^>]*(?:https?:)?//"""
    )
    assert [page.name for page in pages if loaded.search(page.read_text(encoding="utf-8"))] == []


@pytest.mark.slow
def test_a_document_that_leads_nowhere_fails_the_build(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text("# Start\n\n[nowhere](nowhere.md)\n", encoding="utf-8")
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    few = {"site_name": "one page", "plugins": [], "validation": config["validation"]}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(few), encoding="utf-8")
    done = build(tmp_path / "site", tmp_path / "mkdocs.yml")
    assert done.returncode == 1
    assert "nowhere.md" in done.stderr


@pytest.mark.slow
def test_the_map_leads_to_the_files_it_names(site):
    page = (site / "ARCHITECTURE.html").read_text(encoding="utf-8")
    targets = set(re.findall(r'href="(source/[^"]+)"', page))
    assert "source/utils/training/engine/step.py.txt" in targets
    assert [target for target in targets if not (site / target).is_file()] == []


@pytest.mark.slow
def test_the_contents_of_a_reference_page_are_the_names_of_its_package(site):
    page = (site / "reference" / "utils.training.html").read_text(encoding="utf-8")
    contents = page[page.index('data-md-component="toc"') :].partition("</nav>")[0]
    names = set(import_module("utils.training").__all__)
    linked = {name.strip() for name in re.findall(r'class="md-ellipsis">([^<]+)<', contents)}
    assert "TrainingConfig" in linked
    assert linked <= names


def navigation(entry: object) -> list[str]:
    """The pages in an entry of the navigation, in order."""
    if isinstance(entry, dict):
        return [page for value in entry.values() for page in navigation(value)]
    return [page for value in entry for page in navigation(value)] if isinstance(entry, list) else [str(entry)]


def test_the_first_page_leads_to_every_other():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    text = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").lower()
    pages = [page for page in navigation(config["nav"]) if not page.startswith("reference/") and page != "index.md"]
    assert len(pages) > 30
    elsewhere = {"engine.md": "engine/readme.md"}
    assert [page for page in pages if f"{elsewhere.get(page, page).lower()})" not in text] == []


def test_every_document_is_in_the_navigation():
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = navigation(config["nav"])
    assert len(listed) == len(set(listed))
    assert {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} <= set(listed)
