"""What the site holds beside the files of docs/: documents that live elsewhere in the repository, and the reference."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent

#: Documents outside docs/ -> their place in the site.
ELSEWHERE = {
    "utils/training/engine/README.md": "engine.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md",
}  # fmt: skip

#: Each gets a page with every name of its `__all__`.
PACKAGES = (
    "utils.training", "utils.data", "utils.tokenization", "utils.models", "utils.adapters", "utils.checks", "utils.ui",
    "widgets",
)  # fmt: skip
#: Each gets a page with its public members.
MODULES = ("utils.errors",)

#: The page whose file names lead to the files, and the file names in it.
MAP = "ARCHITECTURE.md"
_FILE_NAME = re.compile(r"`((?:utils|widgets|cli)/[\w./]+\.(?:py|md))`")
#: Pages with a wide diagram, which take the place of their table of contents.
WIDE = ("engine.md",)

_CODE = re.compile(r"(?<=<code>)[^<\n]+(?=</code>)")
# Characters above which a name may break after its underscores, as names of tests do.
_LONG_NAME = 32
_LINK = re.compile(r"(\]\()(?!https?:|mailto:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the documents from elsewhere and the pages of the reference."""
    for source, page in ELSEWHERE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=_package_page(package)))
    for module in MODULES:
        content = f"# {module}\n\n::: {module}\n    options:\n      show_root_heading: false\n"
        files.append(File.generated(config, f"reference/{module}.md", content=content))
    files.append(File.generated(config, "reference/settings.md", content=settings_page()))
    for name in sorted(set(_FILE_NAME.findall((ROOT / "docs" / MAP).read_text(encoding="utf-8")))):
        # A browser shows a .txt beside the page, where it would offer to save a .py.
        content = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, f"source/{name}.txt", content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn links that are right in the repository into links that are right in the site."""
    sources = {place: source for source, place in ELSEWHERE.items()}
    source = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def in_site(match: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        place = ELSEWHERE.get(target, target.removeprefix("docs/"))
        return match[1] + posixpath.relpath(place, posixpath.dirname(page.file.src_uri) or ".")

    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    markdown = _LINK.sub(in_site, markdown)
    return _FILE_NAME.sub(r"[`\1`](source/\1.txt)", markdown) if page.file.src_uri == MAP else markdown


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let long names break at sensible places, and keep the reference's tables of contents to the exported names."""
    if page.file.src_uri.startswith("reference/"):
        for title in page.toc:
            for name in title.children:
                name.children = []
    return _CODE.sub(lambda match: _breakable(match[0]), html)


def _breakable(code: str) -> str:
    """HTML of a name that may break after slashes and, if it is long, after underscores."""
    code = code.replace("/", "/<wbr>")
    return code.replace("_", "_<wbr>") if len(code) > _LONG_NAME else code


def settings_page() -> str:
    """Every setting of `TrainingConfig` and of the wizard's data and tokenizer steps, from the schemas that validate them."""
    from utils.training.training_config import TrainingConfig
    from utils.ui.data_settings import DataSettings

    aliases: dict[str, list[str]] = {}
    for alias, name in TrainingConfig.aliases.items():
        aliases.setdefault(name, []).append(alias)
    return "\n".join(
        [
            "# Settings",
            "",
            "## Training",
            "",
            "Fields of [`TrainingConfig`](utils.training.md#utils.training.TrainingConfig): arguments in Python, keys of a",
            "config file, values of `trainbook train --set name=value`, and fields of the wizard's Training step.",
            "",
            *_settings_table(TrainingConfig.model_fields, aliases),
            "",
            "## Data and tokenizer",
            "",
            "Fields of a setup, as the wizard's Data and Tokenizer steps and `prepare_data` have them.",
            "",
            *_settings_table(DataSettings.model_fields, {}),
            "",
        ]
    )


def _settings_table(names: Iterable[str], aliases: Mapping[str, Sequence[str]]) -> list[str]:
    from utils.ui.setting_values import help_text
    from utils.ui.wizard_fields import wizard_field

    rows = ["| setting | title | default | meaning |", "| --- | --- | --- | --- |"]
    for name in names:
        field = wizard_field(name)
        default = "not set" if field.default is None else f"`{_plain(field.default)}`"
        choices = " One of " + ", ".join(f"`{choice}`" for choice in field.choices) + "." if field.choices else ""
        also = " Also: " + ", ".join(f"`{alias}`" for alias in aliases[name]) + "." if name in aliases else ""
        text = f"{help_text(field)}{choices}{also}".replace("|", "\\|")
        rows.append(f'| <span id="settings.{name}"></span>`{name}` | {field.title} | {default} | {text} |')
    return rows


def _plain(value: Any) -> str:
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _package_page(package: str) -> str:
    """The page of a package: its docstring, then each public name under the name by which it is imported."""
    module = import_module(package)
    parts = [f"# {package}", module.__doc__ or ""]
    for name in module.__all__:
        # The anchor makes the import path linkable; the object itself is documented where it is defined.
        anchor, target = f'<span id="{package}.{name}"></span>', f"{_defined_in(package, name)}.{name}"
        owner = _owner(target, name)
        if owner == package:
            parts += [anchor, f"::: {target}\n    options:\n      heading: {name}\n      toc_label: {name}"]
        else:
            parts += [anchor, f"## {name}", f"The same as [`{owner}.{name}`]({owner}.md#{owner}.{name})."]
    return "\n\n".join(parts) + "\n"


def _owner(target: str, name: str) -> str:
    """The package on whose page an object is documented: of those that export it, the one that holds it, else the first."""
    exporting = [p for p in PACKAGES if name in import_module(p).__all__ and f"{_defined_in(p, name)}.{name}" == target]
    return next((package for package in exporting if target.startswith(package + ".")), exporting[0])


def _defined_in(package: str, name: str) -> str:
    """The module that holds an export. mkdocstrings reads sources without running them, so lazy exports are followed here."""
    exports = getattr(import_module(package), "_EXPORTS", {})
    if name not in exports:
        return package
    spec = find_spec(exports[name])
    if spec is not None and spec.submodule_search_locations:
        return _defined_in(exports[name], name)
    return str(exports[name])
