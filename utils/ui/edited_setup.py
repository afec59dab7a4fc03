"""EditedSetup: a setup under edit, with refused entries, presets, undo, and the clicks to repeat in the next run of a cell."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from utils.adapters.facts import ModelFacts
from utils.data.source_kinds import SOURCE_KINDS, is_implied
from utils.errors import ConfigError, Problem
from utils.ui.new_model import for_task, head_problems, usual_description
from utils.ui.preset_fitting import (
    differences,
    find_preset,
    fitted_sizes,
    made_for,
    optimization_for,
    prepared,
    run_name_for,
)
from utils.ui.presets import PRESETS, ConfigPresets, Preset
from utils.ui.setting_values import counted, shown_value, titled, typed_value, value_text
from utils.ui.setup_config import SetupConfig, field_of
from utils.ui.wizard_fields import wizard_field
from utils.ui.wizard_model import ModelChoice
from utils.ui.wizard_records import Clicks, Entry, Replaced
from utils.ui.wizard_steps import PLACES

#: Key of the preset that a cell gave, where it is not one of PRESETS.
AS_GIVEN = "as given"
# Sizes that a model and the data share.
_SIZES = ("vocab_size", "max_length")
# Settings by which a run is named after its data.
_DATA = frozenset({"dataset_path", "dataset_name"})


class EditedSetup:
    """Settings that are valid at every moment. A refused entry is kept beside them with its message.

    Attributes:
        setup: the settings.
        choice: the model that they are for.
        notice, notice_details: the result of the last action, a sentence and what there is to add; notice_is_seen: whether the
            form shows the same elsewhere, so that only a screen reader has to say it.
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
        self.notice = self.notice_details = ""
        self.notice_is_seen = False
        self.restored: tuple[str, ...] = ()
        self._overrides = dict(overrides or {})
        self._given = self._preset = find_preset(preset)
        self._entries: dict[str, Entry] = {}
        self._clicked: set[str] = set()
        self._before: Replaced | None = None
        self._clicking = False
        self._open_changes = 0
        # Values that were set with the last change to fit the model.
        self._fitted: dict[str, Any] = {}
        self._fits_sizes = True
        # Optimizer, learning rate and epochs that suit preset, model and task: who has others has chosen them.
        self._derived = self._optimization()
        self._usual_run_name = run_name_for(setup, self._preset)
        self._observers: list[Callable[[], None]] = []
        setup.observe(self._setup_changed)

    # ---- the model ----

    @property
    def model(self) -> Any:
        """The model that the settings are compared with: the notebook's, or the pretrained one once it is loaded; None
        before that."""
        return self.choice.model

    @property
    def facts(self) -> ModelFacts | None:
        """Current facts about the model; of a pretrained one that is not loaded yet from its files."""
        return self.choice.facts

    # ---- entries ----

    @property
    def source(self) -> str:
        """The source of data that was chosen last, also while what it needs is still missing."""
        entry = self._entries.get("dataset_source")
        known = entry is not None and isinstance(entry.value, str) and entry.value in SOURCE_KINDS
        return str(entry.value) if entry is not None and known else self.setup.dataset_source

    def entry(self, name: str) -> Entry | None:
        """Refused entry for a setting; None when the setup's value is what was entered."""
        return self._entries.get(name)

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
                raise
            self._entries.pop(name, None)
            self._retry()
            said = f"{titled(name)}: {value_text(wizard_field(name), getattr(self.setup, name))}."
            sizes = ", ".join(f"{titled(size)} {shown_value(size, new)}" for size, new in self._fitted.items())
            self._say(f"{said} Set to suit it: {sizes}." if sizes else said)

    def _changes(self, name: str, value: Any) -> dict[str, Any]:
        """`name` as the change that somebody means who sees the chosen source's fields only."""
        is_place = name in PLACES and name in SOURCE_KINDS[self.source].fields
        if is_place and (value is None or not is_implied(self.source)):
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

    def _in_force(self, name: str) -> str:
        return value_text(wizard_field(name), getattr(self.setup, name))

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
        that replaced. Settings that were clicked and refused entries are replaced too: `undo` restores them. A new model
        becomes the one that another preset was made for.

        Raises:
            PresetNotFoundError: no such preset; ConfigError: what the cell gave does not fit to it.
        """
        preset = self._given if key == AS_GIVEN and AS_GIVEN in self.presets else ConfigPresets().get(key)
        fresh = prepared(preset, self.choice.given_facts, self._overrides)
        keeps_new = self.setup.new_model is not None and not fresh.names_model and preset != self._preset
        if keeps_new:  # another preset's, with its own vocabulary and length
            own = {} if preset is None else {name: value for name, value in preset.values.items() if name in _SIZES}
            fresh.update(new_model=usual_description(fresh.task, preset), **{**own, **self._sizes_of_cell()})
        before = self._snapshot()
        with self._change():
            self._entries.clear()
            self._take(fresh)
            self._clicked = {"new_model"} if keeps_new else set()
            self.restored = ()
            self._preset = preset
            self._derived = self._optimization()
            self._usual_run_name = run_name_for(self.setup, preset)
            changes = differences(before.setup, self.setup)
            self._before = before if changes or before.entries or before.preset != preset else None
            self._say(f"Preset {key} applied: {counted(len(changes), 'setting')} changed.", "; ".join(changes))

    def _sizes_of_cell(self) -> dict[str, Any]:
        """Sizes that the cell gave."""
        return {field_of(name): value for name, value in self._overrides.items() if field_of(name) in _SIZES}

    def choose_new_model(self) -> None:
        """Train a new model instead of the notebook's, as a click does: the preset's where it learns the task."""
        self.set("new_model", usual_description(self.setup.task, self._preset))

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
        if since.get("new_model") == usual_description(self.setup.task, self._preset):
            since.pop("new_model", None)  # the preset's own, which nobody has changed since
        with self._change():
            self._take(before.setup)
            self._preset, self._before, self.restored = before.preset, None, before.restored
            self._derived = self._optimization()
            self._usual_run_name = run_name_for(self.setup, before.preset)
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
        """Set sizes, optimizer, learning rate and epochs, where nobody chose them, to those of another model or task."""
        if self._replaces_model(names):
            return
        model = self.setup.new_model
        if model is not None and "new_model" not in names and (fitting := for_task(model, self.setup.task)) != model:
            self.setup.update(new_model=fitting)  # which fits the sizes too
            self._fitted = {"new_model": fitting, **self._fitted}
            return
        usual = self._usual()
        chosen = {*names, *self._clicked}
        if model is None:
            wanted = fitted_sizes(self.setup, self.facts, usual.max_length)
        else:  # which takes any
            chosen |= self._sizes_of_cell().keys()
            default = None if self.facts is None else self.facts.vocab_size
            wanted = {"vocab_size": usual.vocab_size or default, "max_length": usual.max_length}
        kept = {name for name, value in self._derived.items() if getattr(self.setup, name) == value}
        kept -= {field_of(name) for name in self._overrides}
        self._derived = self._optimization()
        wanted |= {name: value for name, value in self._derived.items() if name in kept}
        self._fitted = {
            name: value for name, value in wanted.items() if name not in chosen and value != getattr(self.setup, name)
        }
        self._update_unclicked(self._fitted)

    def _replaces_model(self, names: tuple[str, ...]) -> bool:
        """Train a new model where a task was chosen that the notebook's cannot learn, if that is the preset's own, which nobody
        designed for the data; and the notebook's again for a task that it can learn."""
        given, preset = self.choice.given_facts, self._preset
        chosen = {"new_model", "pretrained_model"} & self._chosen(names)
        if "task" not in names or given is None or preset is None or chosen:
            return False
        fits = not head_problems(given.name, self.setup.task)
        if (
            fits == (self.setup.new_model is None)
            or self.setup.pretrained_model is not None
            or not made_for(preset, given)
        ):
            return False
        wanted = None if fits else usual_description(self.setup.task, preset)
        self._update_unclicked({"new_model": wanted})  # which fits the sizes too
        self._fitted = {"new_model": wanted, **self._fitted}
        return True

    def _name_run(self, names: tuple[str, ...]) -> None:
        """Set the run name, where nobody chose one, to that of other data."""
        before, self._usual_run_name = self._usual_run_name, run_name_for(self.setup, self._preset)
        if self.setup.run_name == before != self._usual_run_name and "run_name" not in self._chosen(names):
            self._fitted = {**self._fitted, "run_name": self._usual_run_name}
            self._update_unclicked({"run_name": self._usual_run_name})

    def _chosen(self, names: tuple[str, ...]) -> frozenset[str]:
        """Settings that somebody chose: those of the change under way, of earlier clicks and of the cell."""
        return frozenset({*names, *self._clicked, *map(field_of, self._overrides)})

    def _update_unclicked(self, values: Mapping[str, Any]) -> None:
        was_clicking, self._clicking = self._clicking, False
        try:
            self.setup.update(**values)
        finally:
            self._clicking = was_clicking

    def _optimization(self) -> dict[str, Any]:
        clicked = {name: getattr(self.setup, name) for name in self._clicked}
        given = {field_of(name): value for name, value in self._overrides.items()}
        return optimization_for(self.setup, self._preset, self.choice.given_facts, {**given, **clicked})

    def _usual(self) -> SetupConfig:
        """The preset's settings, or the defaults."""
        return SetupConfig() if self._preset is None else self._preset.setup()

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

    @property
    def clicks(self) -> Clicks:
        """Settings that were changed through the wizard; changes made by code do not count."""
        chosen = None if self._preset == self._given else self.preset
        return Clicks(chosen, {name: getattr(self.setup, name) for name in sorted(self._clicked)})

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

    def _say(self, notice: str, details: str = "", *, seen: bool = False) -> None:
        self.notice, self.notice_details, self.notice_is_seen = notice, details, seen

    @contextlib.contextmanager
    def _change(self, clicking: bool = False) -> Iterator[None]:
        """One change, reported once at its end, also when it ends with an error."""
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
        fitting = {"pretrained_model", "new_model", "task", "finetune", *(["optimizer"] if self._clicking else [])}
        if self._fits_sizes and fitting & set(names):
            self._fit(names)
        if self._fits_sizes and _DATA & set(names):
            self._name_run(names)
        self._tell()


def _left_out(names: list[str]) -> str:
    return f" Left out, because it no longer fits: {', '.join(map(titled, names))}." if names else ""
