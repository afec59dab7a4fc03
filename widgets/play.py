"""A trained model to try out in the notebook, or as one printed sample."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from utils.environment import ui_mode
from utils.errors import TrainbookError
from utils.training.playground import Playground
from utils.training.playground_sources import open_playground
from utils.training.samples import read_samples
from utils.views.display import LiveOutput, show_text
from widgets.play_panels import PANELS, PlayPanel

if TYPE_CHECKING:
    from utils.training.engine.results import TrainingResults


def playground(source: TrainingResults | str | Path, *, prompt: str | None = None, ui: str | None = None) -> None:
    """Show a panel to try a trained model.

    A language model continues a prompt, one with a chat template answers in a conversation, an encoder-decoder writes a
    text for another one, a masked language model fills in masked tokens. A classifier of texts or images shows the
    probability of every class, a regression its numbers, both for a text also what each token contributes, and a token
    classifier shows the tag of every token. Without widgets the output for `prompt` is printed; a model without a
    playground is named in a sentence, so that the notebook continues.

    Args:
        source: a training's results, a run's folder, or a folder exported for transformers.
        prompt: initial text of the box; with None, an example: for models that continue a text or chat a fixed one, for
            others a sample of the validation data, where the results have one.
        ui: "auto", "widget", "html", "text" or "none" (`utils.environment.ui_mode`).
    """
    mode = ui_mode(ui)
    if mode == "none":
        return
    try:
        opened = open_playground(source)
        kind = PANELS[opened.kind]
        prompt = _example(source, kind, opened) if prompt is None else prompt
        if mode != "widget":
            show_text(kind.sample(opened, prompt))
            return
    except TrainbookError as error:
        show_text(f"Nothing to play with: {error}")
        return
    LiveOutput(kind(opened, prompt).box, "The playground").describe("The playground: run this cell again to use it.")


def _example(source: TrainingResults | str | Path, kind: type[PlayPanel], opened: Playground) -> str:
    """A text to begin with: one that the run showed a prediction for, where there is one."""
    if kind.shows_samples and not isinstance(source, (str, Path)):
        rows = read_samples(Path(source.run_dir))
        if rows and rows[-1]["samples"] and "input" in rows[-1]["samples"][0]:
            return str(rows[-1]["samples"][0]["input"])
    return kind.example_for(opened)


def play_panel(opened: Playground, prompt: str = "") -> PlayPanel:
    """The panel for the kind of model that `opened` holds."""
    return PANELS[opened.kind](opened, prompt)
