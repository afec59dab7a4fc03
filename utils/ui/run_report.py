"""A run as one HTML file: what was set up and measured, how it went, and what was verified."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.environment import flat_environment
from utils.errors import ConfigError, DataNotFoundError, TrainbookError
from utils.storage import atomic_write, read_json_object
from utils.training.config_files import read_config_file
from utils.training.run_state import read_state
from utils.ui.live_picture import live_picture, sentence
from utils.ui.live_run import LiveRun
from utils.ui.run_on_disk import run_on_disk
from utils.views.design import styled
from utils.views.html import Html, element, facts, joined, pill, text
from utils.views.live import live_content
from utils.views.report import page, report_html
from utils.views.values import value_text

if TYPE_CHECKING:
    from utils.checks import CheckReport

#: The report's name in a run's folder.
REPORT_FILE = "report.html"

# Verdict of a line of "What was verified" -> icon and CSS class.
_VERDICTS = {"verified": ("✓", "tb-pass"), "failed": ("✕", "tb-fail"), "not verified": ("○", "tb-none")}

# Sections of config.yaml that the report shows, with their titles.
_SECTIONS = {"setup": "Setup", "task": "Task", "data": "Data", "model": "Model", "training": "Training"}

Verified = tuple[str, str, str]


def write_report(
    run: Any, *, output_dir: str | Path = "runs", checks: CheckReport | Sequence[CheckReport] = (),
    path: str | Path | None = None,
) -> Path:  # fmt: skip
    """Write a report of a run: setup, curves, samples, doctor, checks, exports, environment, and what was verified.

    The file is self-contained: no script, nothing from a network, readable in light and dark colours and on paper. An
    earlier report is replaced in one step.

    Args:
        run: results of a training, a run's name in `output_dir`, or its folder.
        checks: reports of model checks to include; without any the report says that none were run.
        path: where to write; None: `report.html` in the run's folder.
    Returns:
        the file's absolute path.
    Raises:
        ConfigError: there is no such run.
    """
    folder = _folder_of(run, Path(output_dir))
    reports = list(checks) if isinstance(checks, Sequence) else [checks]
    content = page(f"Run {folder.name}", run_report(folder, reports)).encode()
    target = Path(path) if path is not None else folder / REPORT_FILE
    target.parent.mkdir(parents=True, exist_ok=True)
    return atomic_write(target, lambda file: file.write(content)).resolve()


def run_report(folder: Path, checks: Sequence[CheckReport] = ()) -> Html:
    """The report of the run in `folder` as markup with its style sheet."""
    live, stop_reason = run_on_disk(folder)
    sections = _settings(folder)
    diagnosis = _diagnosis(folder)
    exports = _exports(folder)
    environment = read_json_object(folder / "environment.json")
    picture = live_picture(live, (), stop_reason)
    made = time.strftime("%Y-%m-%d %H:%M", time.localtime())
    return styled(
        element("h3", text(f"Run {folder.name}")),
        element("p", text(f"{sentence(live, stop_reason)}. Report of {made}."), class_="tb-sub"),
        element(
            "div",
            _section("What was verified", _verified_table(_verified(live, stop_reason, diagnosis, checks, exports))),
            _section("Course of the training", live_content(picture), card=False),
            *(_section(title, facts(sections[name])) for name, title in _SECTIONS.items() if sections.get(name)),
            *([] if diagnosis is None else [_section("Diagnosis", _report(diagnosis), card=False)]),
            *(_section(report.title, _report(report), card=False) for report in checks),
            *([_section("Exports", facts({name: words for name, _, words in exports}))] if exports else []),
            _section("Environment", facts(_plain(flat_environment(environment)))) if environment else text(""),
            class_="tb-stack",
        ),
        css_class="tb-report",
    )  # fmt: skip


def _folder_of(run: Any, output_dir: Path) -> Path:
    given = getattr(run, "run_dir", run)
    for folder in (output_dir / str(given), Path(str(given))):
        if folder.is_dir() and read_state(folder) is not None:
            return folder.absolute()
    listing = f"`show_runs({str(output_dir)!r})` lists those that are there"
    raise ConfigError(f"There is no run {str(given)!r} in {output_dir.absolute()}; {listing}.")


def _section(title: str, body: Html, *, card: bool = True) -> Html:
    heading = element("h2", text(title), class_="tb-title", style="margin:14px 0 6px")
    return element("section", heading, element("div", body, class_="tb-card") if card else body)


def _report(report: CheckReport) -> Html:
    rows = [(result.name, result.verdict, result.summary, result.remedy) for result in report.results]
    return report_html(report.conclusion, rows, seconds=report.seconds)


def _settings(folder: Path) -> dict[str, dict[str, str]]:
    """The sections of config.yaml in words; {} where there is no readable one."""
    try:
        found = read_config_file(folder / "config.yaml")
    except (ConfigError, DataNotFoundError):
        return {}
    return {name: _plain(values) for name, values in found.items() if isinstance(values, Mapping)}


def _plain(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(name): value_text(value) for name, value in values.items() if value not in (None, "", [], {})}


def _diagnosis(folder: Path) -> CheckReport | None:
    """The doctor's report; None for a run whose record cannot be judged."""
    from utils.training.doctor import diagnose

    try:
        return diagnose(folder)
    except TrainbookError:
        return None


def _exports(folder: Path) -> list[tuple[str, bool, str]]:
    """Format, whether it was compared with the model, and the result, of every export in the run's folder."""
    found = []
    for marker in sorted((folder / "exports").glob("*/trainbook_export.json")):
        record = read_json_object(marker)
        parity = record.get("parity")
        parity = parity if isinstance(parity, Mapping) else {}
        difference = parity.get("max_abs_diff")
        compared = isinstance(difference, (int, float)) and math.isfinite(difference)
        what = "weights" if "shapes" not in parity else "logits"
        words = (
            f"largest difference of {what} from the model: {difference:.2g}"
            if compared
            else "not compared with the model"
        )
        found.append((str(record.get("format", marker.parent.name)), compared, words))
    return found


def _verified(
    live: LiveRun, stop_reason: str | None, diagnosis: CheckReport | None, checks: Sequence[CheckReport],
    exports: Iterable[tuple[str, bool, str]],
) -> list[Verified]:  # fmt: skip
    """Certificate of the run: what was verified, what failed, and what was not checked, as (verdict, what, in words)."""
    planned = stop_reason in ("finished", "max_steps", "early_stopping", "finish_now")
    rows: list[Verified] = [
        ("verified" if planned else "failed" if live.error else "not verified", "Training reached its planned end",
         live.error or sentence(live, stop_reason)),
        ("failed" if live.nonfinite_steps else "verified", "Every recorded loss is finite",
         f"{len(live.nonfinite_steps):,} steps were NaN or infinite" if live.nonfinite_steps else f"{live.step:,} steps"),
        _against_baseline(live),
    ]  # fmt: skip
    if diagnosis is None:
        rows.append(("not verified", "Diagnosis", "the run's record cannot be judged"))
    else:
        rows.append(("verified" if diagnosis.passed else "failed", "Diagnosis finds no problem", diagnosis.conclusion))
    if not checks:
        rows.append(("not verified", "Model checks", "none were given to this report"))
    rows += [("verified" if report.passed else "failed", report.title, report.conclusion) for report in checks]
    formats = [
        ("verified" if compared else "not verified", f"Export {name}", words) for name, compared, words in exports
    ]
    return rows + (formats or [("not verified", "Exports", "nothing was exported")])


def _against_baseline(live: LiveRun) -> Verified:
    what = "Validation loss is below that of a model that ignores its inputs"
    best = min((value for _, value in live.validation.points), default=None)
    if best is None or live.baseline is None:
        return "not verified", what, "no validation" if best is None else "the baseline is not known"
    name, loss = live.baseline
    return "verified" if best < loss else "failed", what, f"best {best:.4f}, {name} {loss:.4f}"


def _verified_table(rows: Sequence[Verified]) -> Html:
    body = (
        element(
            "tr", element("td", pill(_VERDICTS[verdict][0], verdict, _VERDICTS[verdict][1])),
            element("th", text(what), scope="row"), element("td", text(words)),
        )
        for verdict, what, words in rows
    )  # fmt: skip
    return element("table", element("tbody", joined(body)), aria_label="What was verified")
