"""WizardState: the steps of the setup wizard over an edited setup. Nothing is drawn here.

The setup is valid at every moment. What was entered and refused is kept beside it, as an `Entry` with its message, so that
a form can show both until it is corrected; a refused entry blocks its step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from utils.data.file_records import Recognised
from utils.data.mixture_settings import MixtureSource
from utils.data.read.task_columns import find_columns
from utils.data.source_kinds import SOURCE_KINDS
from utils.errors import ConfigError, Problem, TrainbookError
from utils.schema import nearest
from utils.training.task_kinds import kind_of_task
from utils.ui.choice_names import choice_name
from utils.ui.edited_setup import EditedSetup
from utils.ui.preflight import Preflight, WayOut
from utils.ui.presets import Preset
from utils.ui.setting_values import counted, titled, value_text
from utils.ui.setup_config import SetupConfig, field_of
from utils.ui.wizard_fields import WizardField
from utils.ui.wizard_steps import (
    MEANT_WITH,
    MIXTURE_FIELDS,
    PLACES,
    SINGLE_FIELDS,
    STEPS,
    WizardStep,
    concerns,
    recognise_dataset,
    recognised_files,
    recognised_in_mixture,
    setup_of_source,
)

StepStatus = Literal["current", "done", "blocked", "open"]


class WizardState(EditedSetup):
    """Five steps over one setup. Steps may be visited in any order, and every call may be repeated.

    Attributes:
        preflight: the checks before training, and their results.
    """

    def __init__(
        self,
        setup: SetupConfig,
        model: Any = None,
        preset: str | Preset | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(setup, model, preset, overrides)
        self.preflight = Preflight(setup, model, self.choice.load)
        self._index = self._furthest = 0
        self._left: set[str] = set()

    # ---- where one is ----

    @property
    def current(self) -> WizardStep:
        """The step that is shown."""
        return STEPS[self._index]

    @property
    def is_first(self) -> bool:
        """Whether `back` has nowhere to go."""
        return self._index == 0

    @property
    def is_last(self) -> bool:
        """Whether `next` has nowhere to go."""
        return self._index == len(STEPS) - 1

    def next(self) -> WizardStep:
        """Show the next step when nothing blocks the current one; the last one stays. Returns the step now shown."""
        problems = self.blockers()
        if not self.is_last and not problems:
            return self._show(self._index + 1)
        with self._change():
            self._left.add(self.current.name)
            if problems:
                self._say(f"{counted(len(problems), 'problem')} to solve before the next step.")
        return self.current

    def back(self) -> WizardStep:
        """Go back; at the beginning stay there. Returns the step that is now shown."""
        return self._show(max(0, self._index - 1))

    def goto(self, step: str | int) -> WizardStep:
        """Show a step by name or position (from 0), whatever blocks others. Raises `ConfigError` for an unknown one."""
        return self._show(self._position(step))

    def _show(self, index: int) -> WizardStep:
        with self._change():
            self._left |= {step.name for step in STEPS} if index == len(STEPS) - 1 else {self.current.name}
            self._index = index
            if self.is_last:
                self.preflight.forget_run()  # a training may have ended since
            self._furthest = max(self._furthest, index)
            self._say(f"Step {index + 1} of {len(STEPS)}: {self.current.title}.", seen=True)
        return self.current

    # ---- what stands in the way ----

    @property
    def complete(self) -> bool:
        """Whether the settings fit each other and the model, whatever step is shown. `ready` says more."""
        return not self.blockers("summary")

    @property
    def ready(self) -> bool:
        """Whether the settings are complete, and every check of `preflight` passed with them."""
        return self.complete and self.preflight.ready

    @property
    def verdict(self) -> str:
        """One sentence: what is still to do before training, or that everything is ready."""
        problems = self.blockers("summary")
        return f"{counted(len(problems), 'problem')} to solve before training." if problems else self.preflight.verdict

    def blockers(self, step: str | None = None) -> list[Problem]:
        """Problems that block `step` (default: the current one)."""
        shown_step = self.current if step is None else STEPS[self._position(step)]
        return self.problems()[shown_step.name]

    def problems(self) -> dict[str, list[Problem]]:
        """Problems by step: refused entries first, then settings that do not fit. The summary has all of them."""
        facts = self.facts
        found = {s.name: [*self._refused_in(s), *s.check(self.setup, facts)] for s in STEPS[:-1]}
        return {**found, STEPS[-1].name: [problem for problems in found.values() for problem in problems]}

    def visible_problems(self) -> dict[str, list[Problem]]:
        """`problems` without those of a field that is still empty on a page that nobody has left yet.

        A form shows these: a required field is no mistake before somebody had the time to fill it in.
        """
        found = {
            name: [problem for problem in problems if name in self._left or not self._awaits(problem.field)]
            for name, problems in self.problems().items()
            if name != STEPS[-1].name
        }
        return {**found, STEPS[-1].name: [problem for problems in found.values() for problem in problems]}

    def _awaits(self, name: str) -> bool:
        """Whether a setting has no value, and nobody entered one."""
        return name in SetupConfig.field_names() and name not in self._entries and getattr(self.setup, name) is None

    def status(self, step: str | int, problems: Mapping[str, list[Problem]] | None = None) -> StepStatus:
        """How a step stands: "current" is shown, "blocked" has problems, "done" was passed, "open" was not seen yet."""
        index = self._position(step)
        if index == self._index:
            return "current"
        if (self.problems() if problems is None else problems)[STEPS[index].name]:
            return "blocked"
        return "done" if index <= self._furthest else "open"

    def _refused_in(self, step: WizardStep) -> list[Problem]:
        return [
            replace(problem, message=self._refusal(name, problem))
            for name, entry in self._entries.items()
            if step.holds(name)
            for problem in entry.problems
        ]

    def _refusal(self, name: str, problem: Problem) -> str:
        if name == "dataset_source" and self._awaits(problem.field):
            return self.hint(problem.field)
        return f"{problem.message}. Not applied: {titled(name)} stays {self._in_force(name)}."

    def hint(self, name: str) -> str:
        """Hint for a field without which the chosen data source cannot be used; else ""."""
        entry = self._entries.get("dataset_source")
        if entry is None or not self._awaits(name) or not any(problem.field == name for problem in entry.problems):
            return ""
        return f"{PLACES[name]} Until then {SOURCE_KINDS[self.setup.dataset_source].in_words} is used."

    # ---- the settings ----

    def fields(self, step: str | WizardStep | None = None) -> tuple[WizardField, ...]:
        """The settings of a step (default: the current one) that have a meaning for the chosen source of data."""
        chosen = self.current if step is None else step if isinstance(step, WizardStep) else STEPS[self._position(step)]
        return tuple(
            field for field in chosen.all_fields if concerns(field, self.source) and self._has_meaning(field.name)
        )

    def listed_fields(self, step: WizardStep) -> tuple[WizardField, ...]:
        """The settings of a step that a summary lists: those of `fields` that apply to what was chosen.

        A form offers more: where nothing is chosen yet, and where only the first of several files is known.
        """
        not_applying = {"pretrained_model", *(["text_column"] if self.recognised.is_text else [])}
        return tuple(
            field
            for field in self.fields(step)
            if field.name not in not_applying or getattr(self.setup, field.name) is not None
        )

    def _has_meaning(self, name: str) -> bool:
        """Whether a setting has a meaning beside the values of the others."""
        is_mixed = bool(self.setup.mixture)
        if name in (SINGLE_FIELDS if is_mixed else MIXTURE_FIELDS):
            return False
        if name in ("pretrained_model", "new_model"):
            return (name == "new_model") == (self.setup.new_model is not None)
        if name == "conversation_layout":
            several = self.setup.conversation_layout is not None or len(self.recognised.layouts) > 1
            return several and self._fits_others(name)
        return self._fits_others(name)

    def _fits_others(self, name: str) -> bool:
        depends = MEANT_WITH.get(name)
        return depends is None or getattr(self.setup, depends[0]) in depends[1]

    @property
    def recognised(self) -> Recognised:
        """Kind of data in the first rows of the chosen files or dataset; empty where they cannot be read or are not known."""
        chosen = self.source == self.setup.dataset_source and not self.setup.mixture
        return recognised_files(self.setup) if chosen else Recognised()

    def recognised_entry(self, entry: Mapping[str, Any]) -> Recognised:
        """As `recognised`, for a dataset of a mixture under edit; empty while it is not usable."""
        source = self._source_of(entry)
        return Recognised() if source is None else recognised_in_mixture(source, self.setup.home)

    def read_entry(self, entry: Mapping[str, Any]) -> None:
        """Read the first rows of a Hub dataset of a mixture, for `recognised_entry`. Raises as `recognise_dataset`."""
        source = self._source_of(entry)
        if source is not None and SOURCE_KINDS[source.dataset_source].reader == "hub":
            recognise_dataset(setup_of_source(source, self.setup.home))

    @staticmethod
    def _source_of(entry: Mapping[str, Any]) -> MixtureSource | None:
        # The weight may be wrong: it says nothing of the data.
        try:
            return MixtureSource.from_dict(
                {name: value for name, value in entry.items() if name not in ("name", "weight")}
            )
        except ConfigError:
            return None

    @property
    def task_sentence(self) -> str:
        """The task that the data suggest, and why; "" where they suggest none."""
        found = self.recognised
        if not found.reason:
            return ""
        word = "Task of these data" if found.task == self.setup.task else "Suggested task"
        return f"{word}: {choice_name('task', found.task)}, because {found.reason}."

    def message(self, name: str, problems: Mapping[str, list[Problem]] | None = None) -> str:
        """Message beside a setting's control: why its entry was refused, or why its value blocks; else ""."""
        known = self.problems() if problems is None else problems
        sentences = [problem.message for problem in known["summary"] if problem.field == name]
        entry = self._entries.get(name)
        # Why a source cannot be taken is said beside what it needs.
        if entry is not None and name != "dataset_source":
            sentences += [f"{titled(p.field)}: {p.message}" for p in entry.problems if p.field != name]
        return " ".join(dict.fromkeys(sentences))

    def set(self, name: str, value: Any) -> None:
        """Change one setting, exactly as a click does.

        Raises:
            ConfigError: the value is refused; the setup is unchanged, and the entry is kept with its message.
        """
        with self._asking_for_the_missing(name):
            super().set(name, value)

    def parse(self, name: str, text: str) -> None:
        """Change one setting to what was typed; nothing but spaces means None where that is allowed. As `set`."""
        with self._asking_for_the_missing(name):
            super().parse(name, text)

    @contextlib.contextmanager
    def _asking_for_the_missing(self, name: str) -> Iterator[None]:
        """A data source that is refused until its file, name or folder is given: the notice asks for that."""
        with self._change():
            try:
                yield
            except ConfigError as error:
                if field_of(name) == "dataset_source":
                    # The page asks for something else now, which nobody had the time to enter.
                    self._left.discard("dataset")
                    missing = (self.hint(problem.field) for problem in error.problems)
                    self._say(next(filter(None, missing), self.notice), seen=True)
                raise

    def set_mixture(self, entries: Sequence[Mapping[str, Any]], instead: Mapping[str, Any] | None = None) -> None:
        """Train on a mixture of datasets, as clicks do.

        Args:
            entries: as `SetupConfig.mixture`; none: `instead` has the settings of the only dataset.
        Raises:
            ConfigError: an entry is not usable; the setup is unchanged.
        """
        with self._change(clicking=True):
            self.setup.update(**{**(instead or {}), "mixture": tuple(entries)})
            self._say(f"Mixture of {counted(len(entries), 'dataset')}." if entries else "A single dataset.")

    def take(self, way_out: WayOut) -> None:
        """Change what a way out of a failed check changes, as clicks. Raises `ConfigError` when it does not fit."""
        with self._change(clicking=True):
            self.setup.update(**way_out.changes)
            self._say(f"{way_out.label}: done.")

    def upload(self, name: str, content: bytes) -> None:
        """Keep an uploaded file and train on it. Raises `DataError` when it cannot be kept."""
        from utils.data.read.uploads import UPLOADS, save_upload

        saved = save_upload(name, content, self.setup.home / UPLOADS)
        with self._change():
            self.set("dataset_path", str(saved.path.relative_to(self.setup.home)))
            self._say(saved.sentence)

    def rows(self) -> dict[str, str]:
        """Essential settings and those that are not at their defaults; what differs from the preset is marked in words."""
        changed = self.changed()
        shown_fields = [
            f for step in STEPS for f in self.listed_fields(step)
            if f not in step.advanced or f.name in changed or getattr(self.setup, f.name) != f.default
        ]  # fmt: skip
        rows = {}
        for f in shown_fields:
            mark = f" (changed; preset: {value_text(f, changed[f.name][0])})" if f.name in changed else ""
            rows[f.title] = self.shown_value(f) + mark
        if self.setup.mixture:
            weighted = [(one.label, one.weight) for one in self.setup.mixture]
            listed = [label if weight is None else f"{label} {weight:g}" for label, weight in weighted]
            rows = {titled("mixture"): ", ".join(listed), **rows}
        return rows

    def shown_value(self, field: WizardField) -> str:
        """A setting's value as a table shows it; a column that is found in the data with its name."""
        value = getattr(self.setup, field.name)
        column = self._columns.get(field.name) if value is None else None
        return value_text(field, value) if column is None else f"{column} (detected)"

    @property
    def _columns(self) -> Mapping[str, str | None]:
        """Columns of texts and labels as the training will find them, as far as the first rows say."""
        found, task = self.recognised, self.setup.task
        if not found.columns or not kind_of_task(task).labelled:
            return {}
        try:
            columns = find_columns(task, found.example, text=self.setup.text_column, label=self.setup.label_column)
        except TrainbookError:  # which the checks before training report
            return {}
        return {"text_column": columns.text, "label_column": columns.label}

    @property
    def clicks_sentence(self) -> str:
        """Describe what was changed from the preset: in the form (also before the cell ran again), by the cell, and what
        follows from model, data and task."""
        given = sorted({field_of(name) for name in self._overrides})
        if self._clicked:
            kept = " (kept from before this cell ran again)" if set(self.restored) & self._clicked else ""
            first = f"Changed from preset{kept}: {_titles(sorted(self._clicked))}."
        else:
            but = f", except those set in this cell: {_titles(given)}" if given else ""
            first = f"Preset defaults{but}."
        usual = self._usual()
        following = [
            name
            for name in SetupConfig.field_names()
            if name not in self._clicked and name not in given and getattr(usual, name) != getattr(self.setup, name)
        ]
        return f"{first} Set to suit the model, data and task: {_titles(following)}." if following else first

    def _position(self, step: str | int) -> int:
        names = [known.name for known in STEPS]
        if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < len(names):
            return step
        if step in names:
            return names.index(str(step))
        guess = nearest(str(step), names)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise ConfigError(
            f"There is no wizard step {step!r}; there are: {', '.join(names)} (0 to {len(names) - 1}).{hint}"
        )


def _titles(names: Sequence[str]) -> str:
    return ", ".join(map(titled, names))
