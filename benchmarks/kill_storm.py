"""Kill runs at random moments, a thousand times, and compare what comes of them with runs that were never killed.

    python -m benchmarks.kill_storm [--kills 1000] [--seed 0]

Prints a line for each configuration. Exits with 1 when a run differs in any bit of its weights, optimizer, state, history or
results.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import random
import sys
import tempfile

import torch

from tests.kit.crash import in_child
from tests.kit.storm import CONFIGURATIONS, Configuration, Outcome, kill_until_the_end, run, warm_up

# File operations and forward passes before a kill, at most: some steps with their saves.
_LONGEST = 100


def storm(kills: int, seed: int) -> int:
    """Kill at least `kills` times, spread over all configurations. Returns how many runs differed."""
    logging.disable(logging.WARNING)  # a checkpoint that is skipped is no news here
    torch.set_num_threads(1)
    warm_up()
    each = -(-kills // len(CONFIGURATIONS))
    wrong = done = 0
    for number, (name, configuration) in enumerate(CONFIGURATIONS.items()):
        unbroken = in_child(lambda c=configuration, n=number: run(c, f"unbroken-{n}")).value
        killed, runs, differences = _killed(configuration, unbroken, f"killed-{number}", random.Random(f"{seed} {name}"), each)
        print(f"{name}: {killed} kills in {runs} runs, {', '.join(differences) or 'no difference'}", flush=True)
        wrong += bool(differences)
        done += killed
    print(f"{done} kills, {wrong} of {len(CONFIGURATIONS)} configurations with differences")
    return wrong


def _killed(
    configuration: Configuration, unbroken: Outcome, name: str, draw: random.Random, kills: int
) -> tuple[int, int, list[str]]:
    """Kills, runs, and what differed in any of them."""
    killed, differences = 0, set()
    for runs in itertools.count(1):
        ends = list(kill_until_the_end(configuration, f"{name}-{runs}", draw, _LONGEST))
        killed += len(ends) - 1
        differences.update(ends[-1].value.differences(unbroken))
        if killed >= kills:
            break
    return killed, runs, sorted(differences)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        wrong = storm(options.kills, options.seed)
        os.chdir("/")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
