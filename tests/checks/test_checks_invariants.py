"""Tier 1 on models with one planted fault each, and on healthy models of different make."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.kit.healthy_models import HEALTHY
from tests.kit.planted import PLANTED, Causal
from utils.checks import run_all_tier1_tests
from utils.errors import ConfigError


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_fault_is_named_by_its_check(name):
    plant = PLANTED[name]
    result = run_all_tier1_tests(plant.make(), only=[plant.check])[plant.check]
    assert {finding.cause for finding in result.findings} & set(plant.causes), result.summary
    assert result.verdict in ("warn", "fail")
    assert all(finding.remedy for finding in result.findings)


def test_the_model_that_faults_are_planted_in_is_healthy():
    assert run_all_tier1_tests(Causal()).conclusion.endswith("6 pass")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_raises_no_alarm(name):
    torch.manual_seed(0)
    report = run_all_tier1_tests(HEALTHY[name]())
    assert [(r.name, r.summary) for r in report.results if r.verdict != "pass"] == []


def test_the_document_lists_every_model():
    text = (Path(__file__).parents[2] / "docs" / "CHECKS.md").read_text(encoding="utf-8")
    assert [name for name in (*PLANTED, *HEALTHY) if f"| {name} " not in text] == []


def test_a_check_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ConfigError, match="shapess"):
        run_all_tier1_tests(Causal(), only=["shapess"])
