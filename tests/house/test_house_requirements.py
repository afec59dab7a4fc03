"""What is installed: exactly the chosen packages, pinned by constraints that fit, with extras that exist."""

from __future__ import annotations

import ast
import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.kit.tree import ROOT, dotted, python_sources, repository_files, text_of

CHOSEN = [
    *("torch", "pytorch-lightning", "transformers", "tokenizers", "datasets", "safetensors", "pydantic", "pyyaml"),
    *("ipywidgets", "matplotlib", "pandas", "tqdm", "optuna", "sqlalchemy", "onnx", "onnxruntime", "onnxscript"),
]
PINNED_EXTRAS = ("cluster", "docs", "tracking", "notebook", "postgres", "test")


def lines_of(name: str) -> list[str]:
    lines = (line.split("#")[0].strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line]


def project() -> dict[str, object]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def extras() -> dict[str, list[Requirement]]:
    return {name: [Requirement(line) for line in lines] for name, lines in project()["optional-dependencies"].items()}


def pins() -> dict[str, Version]:
    found = {}
    for line in lines_of("constraints.txt"):
        match = re.fullmatch(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)", line)
        assert match, f"constraints.txt pins exact public versions; got {line!r}"
        found[canonicalize_name(match[1])] = Version(match[2])
    return found


def test_requirements_are_the_chosen_packages_as_ranges():
    requirements = [Requirement(line) for line in lines_of("requirements.txt")]
    assert [r.name for r in requirements] == CHOSEN
    for requirement in requirements:
        operators = {specifier.operator for specifier in requirement.specifier}
        assert ">=" in operators, f"{requirement.name} has no lowest version"
        assert "==" not in operators, f"{requirement.name} is pinned; pins belong in constraints.txt"


def test_constraints_satisfy_requirements():
    pinned = pins()
    for line in lines_of("requirements.txt"):
        requirement = Requirement(line)
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{line} is pinned to {version}"


@pytest.mark.parametrize("extra", PINNED_EXTRAS)
def test_constraints_pin_everything_that_is_tested(extra):
    wanted = {canonicalize_name(r.name) for r in extras()[extra]} - {"trainbook"}
    assert wanted - set(pins()) == set()


def test_extras_name_packages_and_pin_nothing():
    for name, requirements in extras().items():
        for requirement in requirements:
            assert not requirement.specifier, f"extra {name}: {requirement}"
            assert requirement.extras <= set(extras()), f"extra {name}: {requirement}"


@pytest.mark.parametrize("version", ["2.6.2", "2.6.3"])
def test_the_malicious_releases_are_excluded(version):
    (line,) = [line for line in lines_of("requirements.txt") if line.startswith("pytorch-lightning")]
    assert not Requirement(line).specifier.contains(version)


def test_every_extra_that_is_named_exists():
    """In an error (MissingPackageError's third argument), and wherever somebody is told to install one."""
    named = {}
    for where, tree in python_sources(naming="MissingPackageError"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and dotted(node.func).endswith("MissingPackageError"):
                values = [k.value for k in node.keywords if k.arg == "extra"] + node.args[2:3]
                named.update({v.value: where for v in values if isinstance(v, ast.Constant) and v.value is not None})
    for path in repository_files():
        for extra in re.findall(r"""(?:-e |pip install )["']?(?:\.|trainbook)\[([\w,]+)\]""", text_of(path) or ""):
            named.update(dict.fromkeys(extra.split(","), str(path)))
    assert named, "nothing was found: the search is broken"
    assert {extra: where for extra, where in named.items() if extra not in extras()} == {}


def test_the_oldest_python_is_the_same_everywhere():
    options = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert options["project"]["requires-python"] == ">=3.11"
    assert options["tool"]["mypy"]["python_version"] == "3.11"
    assert options["tool"]["ruff"]["target-version"] == "py311"
    assert "sys.version_info < (3, 11)" in (ROOT / "setup_colab.sh").read_text(encoding="utf-8")
