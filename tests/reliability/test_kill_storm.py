"""A short storm of kills over all its configurations; `python -m benchmarks.kill_storm` is the long one."""

from __future__ import annotations

import random

import pytest

from tests.kit.crash import in_child
from tests.kit.storm import CONFIGURATIONS, kill_until_the_end, run, warm_up


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_a_run_that_is_killed_at_random_moments_ends_as_one_that_was_not(name):
    configuration = CONFIGURATIONS[name]
    if configuration.changes.get("finetune") == "lora":
        pytest.importorskip("peft")
        run(configuration, "warm adapters")  # imports once: the children are copies of this process
    warm_up()
    unbroken = in_child(lambda: run(configuration, "unbroken")).value
    ends = list(kill_until_the_end(configuration, "killed", random.Random(name), longest=100))
    assert len(ends) > 1, "it was never killed: the test shows nothing"
    assert ends[-1].value.differences(unbroken) == []
