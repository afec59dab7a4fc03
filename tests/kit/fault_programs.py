"""Faults of training programs, small, each with its repaired twin: see docs/CHECKS.md."""

from __future__ import annotations

from tests.kit import fault_common, fault_data, fault_further, fault_models, fault_settings
from tests.kit.fault_tools import Program, Setup, named_by, observe

__all__ = ["COMMON", "PROGRAMS", "Program", "Setup", "named_by", "observe"]

PROGRAMS: dict[str, Program] = {
    program.name: program for program in (*fault_models.PROGRAMS, *fault_data.PROGRAMS, *fault_settings.PROGRAMS)
}
assert len(PROGRAMS) == 49, "a name occurs twice, or a program is missing"

#: Further faults, as they are asked about in forums.
COMMON: dict[str, Program] = {
    program.name: program for program in (*fault_common.PROGRAMS, *fault_further.PROGRAMS)
}
assert len(COMMON) == len(fault_common.PROGRAMS) + len(fault_further.PROGRAMS), "a name occurs twice"
assert not COMMON.keys() & PROGRAMS.keys(), "a name occurs twice"
