"""What a reader of a report relies on: every number that was judged stands beside its limit and the limit's source."""

from utils.checks import CheckResult


def assert_limits(result: CheckResult) -> None:
    """Every threshold has a limit with a source, and what passes lies within the limits of what it measured."""
    assert result.limits, f"{result.name} states no limit"
    assert all(limit.source for limit in result.limits)
    named = {limit.measured for limit in result.limits}
    judged = {name for name in result.thresholds if name in result.measured}
    assert judged <= named, f"{result.name}: no limit for {sorted(judged - named)}"
    for limit in result.limits:
        value = result.measured.get(limit.measured)
        if result.verdict == "pass" and isinstance(value, (int, float)):
            assert limit.at_least is None or value >= limit.at_least, (limit, value)
            assert limit.at_most is None or value <= limit.at_most, (limit, value)
