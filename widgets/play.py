"""A panel to try a trained model: a prompt with streamed text, a chat, a text or image with class probabilities, tags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets

from utils.environment import ui_mode
from utils.errors import ConfigError, TrainbookError
from utils.training.playground import Attribution, Generated, Playground, Tagged, open_playground
from utils.training.samples import read_samples
from utils.ui.background import Progress
from utils.views.display import LiveOutput, show_text
from utils.views.html import Html, alert, bars, element, joined, text
from utils.views.token_strip import attribution_strip, token_strip
from widgets.background_task import Outcome, TaskRow, watch_cells
from widgets.forms import button, heading, markup_box, panel, paragraph, primary, row, set_markup, small, uploaded_files
from widgets.guarded import error_details, error_sentence, guarded

if TYPE_CHECKING:
    from utils.training.engine.results import TrainingResults

# What stands in the box at first where no sample of the run is known, by kind of model.
_EXAMPLES = {
    "text": "The",
    "chat": "Hello!",
    "classes": "This is an example.",
    "tags": "This is an example.",
    "image": "",
}

# What the button says, the field is called, and the panel is for, by kind of model.
_LABELS = {
    "text": ("Generate", "Prompt", "Continue a text"), "chat": ("Send", "Prompt", "Chat with the model"),
    "classes": ("Classify", "Text", "Classify a text"), "tags": ("Tag", "Text", "Tag a text"),
    "image": ("Classify", "Image", "Classify an image"),
}  # fmt: skip

# Contributions that miss more of the logit's change than this share are shown as approximate.
_LARGEST_ERROR = 0.1


def playground(source: TrainingResults | str | Path, *, prompt: str | None = None, ui: str | None = None) -> None:
    """Show a panel to try a trained model.

    A language model continues a prompt, one with a chat template answers in a conversation, a classifier of texts or
    images shows the probability of every class, of a text also what each token contributes, and a token classifier shows
    the tag of every token. Without widgets the output for `prompt` is printed; a model without a playground is named in
    a sentence, so that the notebook continues.

    Args:
        source: a training's results, a run's folder, or a folder exported for transformers.
        prompt: initial text of the box; with None, a sample of the validation data for results that classify texts, and an
            example for others.
        ui: "auto", "widget", "html", "text" or "none" (`utils.environment.ui_mode`).
    """
    mode = ui_mode(ui)
    if mode == "none":
        return
    try:
        opened = open_playground(source)
        prompt = _example(source, opened) if prompt is None else prompt
        if mode != "widget":
            show_text(_sample(opened, prompt))
            return
    except TrainbookError as error:
        show_text(f"Nothing to play with: {error}")
        return
    played = PlayPanel(opened, prompt)
    LiveOutput(played.box, "The playground").describe("The playground: run this cell again to use it.")


def _example(source: TrainingResults | str | Path, opened: Playground) -> str:
    """A text to begin with: one that the run showed a prediction for, where there is one."""
    if opened.kind in ("classes", "tags") and not isinstance(source, (str, Path)):
        rows = read_samples(Path(source.run_dir))
        if rows and rows[-1]["samples"] and "input" in rows[-1]["samples"][0]:
            return str(rows[-1]["samples"][0]["input"])
    return _EXAMPLES[opened.kind]


def _sample(opened: Playground, prompt: str) -> str:
    if opened.kind == "classes":
        found, _ = opened.classify(prompt)
        return "\n".join([f"Classes of {prompt!r}:", *(f"  {name}  {value:.1%}" for name, value in found)])
    if opened.kind == "tags":
        tagged, _ = opened.tag(prompt)
        return "\n".join(
            [f"Tags of {prompt!r}:", *(f"  {row.token}  {row.tag}  {row.probability:.1%}" for row in tagged)]
        )
    if opened.kind == "image":
        return "Image classifier: open_playground(results).classify_image(path) gives the probability of every class."
    if opened.kind == "chat":
        return f"Answer to {prompt!r}: {opened.answer([_user(prompt)], max_new_tokens=40, seed=0).text}"
    return f"Prompt: {prompt}\nContinued: {opened.generate(prompt, max_new_tokens=40, seed=0).text}"


def _user(message: str) -> dict[str, str]:
    return {"role": "user", "content": message}


class PlayPanel:
    """The panel of one model. The fields are read when the work begins; Stop takes effect at the next token.

    Attributes:
        box: what is shown; prompt, temperature, top_p, length: its fields; upload, picture: of an image model, instead of
            `prompt`; job: Generate and Stop.
        messages, renew: of a chat, the turns so far, and the button that forgets them.
    """

    def __init__(self, opened: Playground, prompt: str = "") -> None:
        self._opened = opened
        self.messages: list[dict[str, str]] = []
        self._partial = self._asked = ""
        label, field, title = _LABELS[opened.kind]
        self.prompt = ipywidgets.Text(value=prompt, description=field)
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="Choose an image")
        self.upload.layout.width = "auto"
        self.upload.add_class("tb-play-upload")
        self.picture = ipywidgets.Image(layout=ipywidgets.Layout(display="none", max_height="160px", width="auto"))
        self.picture.add_class("tb-play-picture")
        self.upload.observe(guarded(lambda _: self._chosen(), self._failed), "value")
        self.prompt.layout.width = "auto"  # 100% would add the margins and overflow
        self.prompt.add_class("tb-play-prompt")
        self.temperature = ipywidgets.FloatSlider(value=0.8, min=0.0, max=2.0, step=0.1, description="Temperature")
        self.top_p = ipywidgets.FloatSlider(value=0.95, min=0.05, max=1.0, step=0.05, description="Top-p")
        narrow = ipywidgets.Layout(width="140px")
        self.length = ipywidgets.BoundedIntText(value=100, min=1, max=4096, description="Tokens", layout=narrow)
        for field_of_number in (self.temperature, self.top_p, self.length):
            field_of_number.style.description_width = "initial"
        self.job = TaskRow(label, "tb-play", self._work, self._done, self._failed)
        primary(self.job.start)
        self.job.cancel.description = "Stop"
        # Kept out of the job's row, whose buttons come and go with the work.
        self.renew = button(
            "New conversation", "tb-play-new", lambda _: self._renewed(), self._failed, "Clear the conversation."
        )
        self.renew.disabled = True
        self.output, self._alert = markup_box("tb-play-output"), markup_box("tb-play-alert")
        submit = guarded(lambda _: self.job.begin(), self._failed)
        # The front end's message for Enter; `on_submit` is deprecated in ipywidgets 8.
        self.prompt.on_msg(lambda _, content, __: submit(None) if content.get("event") == "submit" else None)
        writes = opened.kind in ("text", "chat")
        settings = [row(self.temperature, self.top_p, self.length)] if writes else []
        asked = [row(self.upload), self.picture] if opened.kind == "image" else [self.prompt]
        parts = [self.output, *asked] if opened.kind == "chat" else asked
        tail = [self.renew] if opened.kind == "chat" else [self.output]
        about = [markup_box(markup=small(opened.weights))] if opened.weights else []
        self.box = panel(markup_box(markup=heading(title)), *about, *parts, *settings, self.job.box, *tail, self._alert)
        self.box.add_class("tb-play-panel")
        watch_cells()

    def _renewed(self) -> None:
        """Begin a conversation anew."""
        self.messages = []
        self.renew.disabled = True
        for box in (self.output, self._alert):
            set_markup(box, text(""))

    def _chosen(self) -> None:
        """Show the chosen image; what was found for another one goes."""
        self.picture.value = _uploaded(self.upload.value)
        self.picture.layout.display = None
        for box in (self.output, self._alert):
            set_markup(box, text(""))

    def _work(self, progress: Progress) -> Any:
        # Read once: somebody may type on while the model writes.
        prompt = self._asked = self.prompt.value
        self._partial = ""
        with progress.undisturbed():
            if self._opened.kind == "classes":
                return (*self._opened.classify(prompt), self._contributions(prompt))
            if self._opened.kind == "tags":
                return self._opened.tag(prompt)
            if self._opened.kind == "image":
                return self._opened.classify_image(_uploaded(self.upload.value)), 0, text("")

            def note(so_far: str) -> None:
                self._partial = so_far
                progress.report(so_far or "Generating")

            chosen: dict[str, Any] = {
                "max_new_tokens": self.length.value,
                "temperature": self.temperature.value,
                "top_p": self.top_p.value,
                "on_text": note,
            }
            if self._opened.kind == "chat":
                return self._opened.answer([*self.messages, _user(prompt)], **chosen)
            return self._opened.generate(prompt, **chosen)

    def _contributions(self, prompt: str) -> Html:
        """What each token adds to the most likely class; a sentence where it cannot be computed."""
        try:
            return contributions(self._opened.attribute(prompt))
        except TrainbookError as error:
            return small(f"Contributions of the tokens are not shown: {error}")

    def _done(self, outcome: Outcome) -> None:
        set_markup(self._alert, text(""))
        if outcome.error is not None:
            self._failed(outcome.error)
            return
        if self._opened.kind in ("classes", "tags", "image"):
            if not outcome.cancelled:
                shown = _tagged(*outcome.result) if self._opened.kind == "tags" else _classes(*outcome.result)
                set_markup(self.output, shown)
            return
        written = Generated(self._partial) if outcome.cancelled else outcome.result
        if self._opened.kind == "chat":
            self.messages += [_user(self._asked), {"role": "assistant", "content": written.text}]
            self.prompt.value, self.renew.disabled = "", False
            turns = [_turn(turn["role"], turn["content"].strip()) for turn in self.messages]
            set_markup(self.output, joined([*turns, _cut(written.cut)]))
            return
        set_markup(self.output, joined([_block(self._asked + written.text), _cut(written.cut)]))

    def _failed(self, error: BaseException) -> None:
        set_markup(self._alert, alert(error_sentence(error), error_details(error)))


def _classes(found: Sequence[tuple[str, float]], cut: int, rest: Html) -> Html:
    return joined([bars("Classes", ("class", "probability"), found), rest, _cut(cut)])


def contributions(found: Attribution) -> Html:
    """Tokens tinted by what they add to the class, with the signed numbers under them."""
    said = f"What each token adds to the logit of “{found.target}” (integrated gradients, baseline: token id 0)"
    if not found.error <= _LARGEST_ERROR:
        said += f"; approximate, the sum misses {found.error:.0%} of its change"
    return joined([small(f"{said}."), attribution_strip(found.tokens)])


def _tagged(found: Sequence[Tagged], cut: int) -> Html:
    # "O" is what most taggings call a token outside of every entity.
    rows = [
        (row.token, f"{row.tag} {row.probability:.0%}", 0.0 if row.tag == "O" else row.probability) for row in found
    ]
    return joined([token_strip(rows, "tag of each token"), _cut(cut)])


def _uploaded(value: Any) -> bytes:
    """Content of the chosen file."""
    files = uploaded_files(value)
    if not files:
        raise ConfigError("no image is chosen; choose a PNG or JPEG file first")
    return files[-1][1]


def _block(content: str) -> Html:
    """Text with its own line breaks."""
    return element("div", text(content), style="white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 0.5em")


def _turn(role: str, content: str) -> Html:
    """A turn of a conversation, with who speaks set apart."""
    style = "white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 0.5em"
    return element("div", element("strong", text(f"{role}:")), text(f" {content}"), style=style)


def _cut(count: int) -> Html:
    if not count:
        return text("")
    return paragraph(
        f"The text is longer than the model's context: {count:,} token{'s were' if count > 1 else ' was'} cut."
    )
