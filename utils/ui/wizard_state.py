"""Where somebody is in the setup wizard, and what they did there. Nothing is drawn here.

The setup is valid at every moment. What was entered and refused is kept beside it, as an `Entry` with its message, so that
a form can show both until it is corrected; a refused entry blocks its step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from utils.adapters.facts import ModelFacts
from utils.errors import ConfigError, Problem
from utils.schema import nearest
from utils.ui.preflight import Preflight, WayOut
from utils.ui.preset_fitting import differences, find_preset, fitted_sizes, prepared
from utils.ui.presets import PRESETS, ConfigPresets, Preset
from utils.ui.setup_config import SetupConfig, field_of
from utils.ui.wizard_model import ModelChoice
from utils.ui.wizard_records import Clicks, Entry, Replaced
from utils.ui.wizard_steps import (
    FIELDS_OF_SOURCE,
    MEANT_WITH,
    PLACES,
    STEPS,
    WizardField,
    WizardStep,
    concerns,
    recognised_files,
    wizard_field,
)
from utils.ui.wizard_texts import counted, shown_value, titled, typed_value, value_text

if TYPE_CHECKING:
    from utils.data.file_records import Recognised

StepStatus = Literal["current", "done", "blocked", "open"]

#: Key of the preset that a cell gave, where it is none of PRESETS.
AS_GIVEN = "as given"


class WizardState:
    """Five steps over one setup. Steps may be visited in any order, and every call may be repeated.

    Attributes:
        setup: the settings that the steps edit.
        choice: the model that they are for.
        preflight: the checks before training, and their results.
        notice, notice_details: what the last action did, a sentence and what there is to add.
        restored: names of settings that `replay` took from earlier clicks.
    """

    def __init__(
        self,
        setup: SetupConfig,
        model: Any = None,
        preset: str | Preset | None = None,
        overrides: Mapping[str, Any] | None = None,
    ) -> None:
        self.setup = setup
        self.choice = ModelChoice(setup, model)
        self.preflight = Preflight(setup, model, self.choice.load)
        self.notice = self.notice_details = ""
        self.restored: tuple[str, ...] = ()
        self._overrides = dict(overrides or {})
        self._given = self._preset = find_preset(preset)
        self._index = self._furthest = 0
        self._entries: dict[str, Entry] = {}
        self._clicked: set[str] = set()
        self._left: set[str] = set()
        self._before: Replaced | None = None
        self._clicking = False
        self._open_changes = 0
        # Sizes that were set with the last change because the model has them.
        self._fitted: dict[str, Any] = {}
        self._fits_sizes = True
        self._observers: list[Callable[[], None]] = []
        setup.observe(self._setup_changed)

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
            self._say(f"Step {index + 1} of {len(STEPS)}: {self.current.title}.")
        return self.current

    # ---- the model ----

    @property
    def model(self) -> Any:
        """The model that the settings are compared with: the notebook's, or the pretrained one once it is loaded. None: there
        is none yet."""
        return self.choice.model

    @property
    def facts(self) -> ModelFacts | None:
        """Current facts about the model; of a pretrained one that is not loaded yet from its files."""
        return self.choice.facts

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

    def _in_force(self, name: str) -> str:
        return value_text(wizard_field(name), getattr(self.setup, name))

    def hint(self, name: str) -> str:
        """Hint for a field without which the chosen data source cannot be used; else ""."""
        entry = self._entries.get("dataset_source")
        if entry is None or not self._awaits(name) or not any(problem.field == name for problem in entry.problems):
            return ""
        return f"{PLACES[name]} Until then {_DATA_IN_WORDS[self.setup.dataset_source]} is used."

    # ---- the settings ----

    @property
    def source(self) -> str:
        """The source of data that was chosen last, also while what it needs is still missing."""
        entry = self._entries.get("dataset_source")
        known = entry is not None and isinstance(entry.value, str) and entry.value in FIELDS_OF_SOURCE
        return str(entry.value) if entry is not None and known else self.setup.dataset_source

    def fields(self, step: str | WizardStep | None = None) -> tuple[WizardField, ...]:
        """The settings of a step (default: the current one) that have a meaning for the chosen source of data."""
        chosen = self.current if step is None else step if isinstance(step, WizardStep) else STEPS[self._position(step)]
        return tuple(
            field for field in chosen.all_fields if concerns(field, self.source) and self._has_meaning(field.name)
        )

    def _has_meaning(self, name: str) -> bool:
        """Whether a setting has a meaning beside the values of the others."""
        if name == "conversation_layout":
            return self.setup.conversation_layout is not None or len(self.recognised.layouts) > 1
        depends = MEANT_WITH.get(name)
        return depends is None or getattr(self.setup, depends[0]) in depends[1]

    @property
    def recognised(self) -> Recognised:
        """Kind of data in the first rows of the chosen files; empty where they cannot be read."""
        return recognised_files(self.setup)

    def entry(self, name: str) -> Entry | None:
        """Refused entry for a setting; None when the setup's value is what was entered."""
        return self._entries.get(name)

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
        self._enter(name, value, None)

    def parse(self, name: str, text: str) -> None:
        """Change one setting to what was typed; nothing but spaces means None where that is allowed. As `set`."""
        known = field_of(name) in SetupConfig.field_names()
        self._enter(name, typed_value(wizard_field(field_of(name)), text) if known else text, text)

    def apply_fix(self, problem: Problem) -> None:
        """Set a problem's field to the value that it proposes. Raises `ConfigError` when it has none."""
        if problem.fix is None:
            raise ConfigError(f"{problem.field}: there is no value to propose; {problem.message}", [problem])
        self.set(problem.field, problem.fix)

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

    def _enter(self, name: str, value: Any, text: str | None) -> None:
        name = field_of(name)
        known = name in SetupConfig.field_names()
        self._fitted = {}
        with self._change(clicking=True):
            try:
                self.setup.update(**self._changes(name, value))
            except ConfigError as error:
                if known:
                    self._entries[name] = Entry(value, error.problems, text)
                    self._say(f"Not applied: {titled(name)} stays {self._in_force(name)}.")
                    if name == "dataset_source":
                        # The page asks for something else now, which nobody had the time to enter.
                        self._left.discard("dataset")
                        missing = (self.hint(problem.field) for problem in error.problems)
                        self._say(next(filter(None, missing), self.notice))
                raise
            self._entries.pop(name, None)
            self._retry()
            said = f"{titled(name)}: {value_text(wizard_field(name), getattr(self.setup, name))}."
            sizes = ", ".join(f"{titled(size)} {shown_value(size, new)}" for size, new in self._fitted.items())
            self._say(f"{said} Set to fit the model: {sizes}." if sizes else said)

    def _changes(self, name: str, value: Any) -> dict[str, Any]:
        """`name` as the change that somebody means who sees the chosen source's fields only."""
        is_place = name in PLACES and name in FIELDS_OF_SOURCE[self.source]
        if is_place and (value is None or self.source in ("drive", "upload")):
            # Else clearing the place of the data would silently mean other data, and a path alone a local one.
            return {"dataset_source": self.source, name: value}
        return {name: value}

    def _retry(self) -> None:
        """Refused entries once more: what was missing for one may be there now."""
        for name, entry in list(self._entries.items()):
            try:
                self.setup.update(**self._changes(name, entry.value))
            except ConfigError as error:
                if name in self._entries:
                    self._entries[name] = Entry(entry.value, error.problems, entry.text)
            else:
                self._entries.pop(name, None)

    # ---- presets and changes ----

    @property
    def presets(self) -> Mapping[str, Preset | None]:
        """The presets to choose from, by key: what the cell gave, where it is another, then PRESETS."""
        given = {} if self._given in PRESETS.values() else {AS_GIVEN: self._given}
        return {**given, **PRESETS}

    @property
    def preset(self) -> str:
        """Key in `presets` of the one applied last."""
        return next(key for key, preset in self.presets.items() if preset == self._preset)

    def apply_preset(self, key: str) -> None:
        """Take all settings from a preset, fitted to the model, with what the cell gave over them; `notice` says what
        that replaced. Settings that were clicked and refused entries are replaced too: `undo` restores them.

        Raises:
            PresetNotFoundError: no such preset; ConfigError: what the cell gave does not fit to it.
        """
        preset = self._given if key == AS_GIVEN and AS_GIVEN in self.presets else ConfigPresets().get(key)
        fresh = prepared(preset, self.choice.given_facts, self._overrides)
        before = self._snapshot()
        with self._change():
            self._entries.clear()
            self._take(fresh)
            self._clicked.clear()
            self.restored = ()
            self._preset = preset
            changes = differences(before.setup, self.setup)
            self._before = before if changes or before.entries or before.preset != preset else None
            self._say(f"Preset {key} applied: {counted(len(changes), 'setting')} changed.", "; ".join(changes))

    def reset(self) -> None:
        """Reset to the preset applied last: clicked settings and refused entries are replaced, as by `apply_preset`."""
        self.apply_preset(self.preset)

    @property
    def can_undo(self) -> bool:
        """Whether a preset replaced something that `undo` restores."""
        return self._before is not None

    def undo(self) -> None:
        """Bring back what the last preset replaced, with what was clicked since over it. Without one nothing happens."""
        before = self._before
        if before is None:
            return
        since = {name: getattr(self.setup, name) for name in sorted(self._clicked)}
        with self._change():
            self._take(before.setup)
            self._preset, self._before, self.restored = before.preset, None, before.restored
            self._clicked = set(before.clicked)
            self._entries = dict(before.entries)
            lost = self._click_again(since)
            self._say(f"Undone: the settings are those from before the preset.{_left_out(lost)}")

    def _snapshot(self) -> Replaced:
        clicked = frozenset(self._clicked)
        return Replaced(self.setup.copy(), self._preset, dict(self._entries), clicked, self.restored)

    def _take(self, setup: SetupConfig) -> None:
        self._fits_sizes = False
        try:
            self.setup.update(**{name: getattr(setup, name) for name in SetupConfig.field_names()})
        finally:
            self._fits_sizes = True

    def _fit(self, names: tuple[str, ...]) -> None:
        """Set the sizes that nobody chose to those of another model."""
        usual = (SetupConfig() if self._preset is None else self._preset.setup()).max_length
        chosen = {*names, *self._clicked}
        wanted = fitted_sizes(self.setup, self.facts, usual)
        self._fitted = {name: value for name, value in wanted.items() if name not in chosen}
        was_clicking, self._clicking = self._clicking, False
        try:
            self.setup.update(**self._fitted)
        finally:
            self._clicking = was_clicking

    def _click_again(self, values: Mapping[str, Any]) -> list[str]:
        """Make changes once more, as clicks. Returns the names of those that no longer fit, which are left out."""
        kept, lost = dict(values), []
        with self._change(clicking=True):
            while kept:
                try:
                    self.setup.update(**kept)
                    break
                except ConfigError as error:
                    named = {field_of(problem.field) for problem in error.problems} & kept.keys()
                    # A contradiction may name only the setting that was there before.
                    refused = named or kept.keys()
                    lost += sorted(refused)
                    kept = {name: value for name, value in kept.items() if name not in refused}
            # Also those that have the same value by now.
            self._clicked |= set(kept)
        return lost

    def changed(self) -> dict[str, tuple[Any, Any]]:
        """Settings that differ from the preset fitted to the model, as {name: (the preset's value, the value now)}."""
        base = prepared(self._preset, self.facts, {})
        values = {name: (getattr(base, name), getattr(self.setup, name)) for name in SetupConfig.field_names()}
        return {name: pair for name, pair in values.items() if pair[0] != pair[1]}

    def rows(self) -> dict[str, str]:
        """The settings as a table, those that differ from the preset marked in words."""
        changed = self.changed()
        shown_fields = [
            f for step in STEPS for f in self.fields(step) if f not in step.advanced or f.name in changed
        ]  # fmt: skip
        rows = {}
        for f in shown_fields:
            mark = f" (changed; preset: {value_text(f, changed[f.name][0])})" if f.name in changed else ""
            rows[f.title] = value_text(f, getattr(self.setup, f.name)) + mark
        return rows

    @property
    def clicks(self) -> Clicks:
        """Settings that were changed through the wizard; changes made by code do not count."""
        chosen = None if self._preset == self._given else self.preset
        return Clicks(chosen, {name: getattr(self.setup, name) for name in sorted(self._clicked)})

    @property
    def clicks_sentence(self) -> str:
        """Describe what was changed from the preset in the form, and whether that was before the cell ran again."""
        if not self._clicked:
            return "Using preset defaults."
        kept = " (kept from before this cell ran again)" if set(self.restored) & self._clicked else ""
        return f"Changed from preset{kept}: {', '.join(map(titled, sorted(self._clicked)))}."

    def replay(self, clicks: Clicks) -> None:
        """Make the changes of `clicks` again; `restored` then names them. What no longer fits is left out and named."""
        with self._change():
            lost = []
            if clicks.preset is not None:
                try:
                    self.apply_preset(clicks.preset)
                except ConfigError:
                    lost.append(f"preset {clicks.preset}")
            self._before = None  # nobody clicked this preset just now
            refused = self._click_again(clicks.values)
            self.restored = tuple(name for name in clicks.values if name not in refused)
            kept = [] if clicks.preset is None or lost else [f"preset {clicks.preset}"]
            kept += map(titled, self.restored)
            restored = f"Kept from before: {', '.join(kept)}." if kept else ""
            self._say(f"{restored}{_left_out([*lost, *refused])}".strip())

    # ---- telling others ----

    def observe(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call `callback()` after everything that changed what there is to show, whoever changed it.

        Returns:
            A function that ends it; calling it twice is harmless.
        """
        self._observers.append(callback)

        def unobserve() -> None:
            if callback in self._observers:
                self._observers.remove(callback)

        return unobserve

    def _say(self, notice: str, details: str = "") -> None:
        self.notice, self.notice_details = notice, details

    @contextlib.contextmanager
    def _change(self, clicking: bool = False) -> Iterator[None]:
        """One change, told once at its end, also when it ends with an error."""
        was_clicking, self._clicking = self._clicking, clicking or self._clicking
        self._open_changes += 1
        try:
            yield
        finally:
            self._open_changes -= 1
            self._clicking = was_clicking
            self._tell()

    def _tell(self) -> None:
        if not self._open_changes:
            # A copy: an observer may end its own observation.
            for callback in list(self._observers):
                callback()

    def _setup_changed(self, names: tuple[str, ...]) -> None:
        for name in names:
            self._entries.pop(name, None)
        self._clicked = self._clicked | set(names) if self._clicking else self._clicked - set(names)
        if self._fits_sizes and {"pretrained_model", "task"} & set(names):
            self._fit(names)
        self._tell()

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


# What is trained on, in the middle of a sentence.
_DATA_IN_WORDS = {
    "builtin": "the built-in text",
    "local": "the file or folder that was given",
    "huggingface": "the dataset that was given",
    "drive": "the file on your Drive that was given",
    "upload": "the file that was uploaded",
}


def _left_out(names: list[str]) -> str:
    return f" Left out, because it no longer fits: {', '.join(map(titled, names))}." if names else ""
