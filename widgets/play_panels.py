"""The panels of the playground: one class for each kind of model."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets

from utils.errors import ConfigError, TrainbookError
from utils.training.playground import Attribution, Filled, Generated, Kind, Playground, Tagged
from utils.ui.background import Progress
from utils.views.html import Html, alert, bars, element, joined, number_cards, text
from utils.views.token_strip import HARDLY_SHARE, attribution_strip, share_of, token_strip
from widgets.background_task import Outcome, TaskRow, watch_cells
from widgets.enter import on_enter
from widgets.forms import (
    button,
    fill_panel,
    heading,
    markup_box,
    panel,
    paragraph,
    primary,
    row,
    set_markup,
    small,
    uploaded_files,
)
from widgets.guarded import error_details, error_sentence, guarded

# Tokens that a sentence lists at most, and the share of unknown ones from which an answer means little.
_LISTED_TOKENS, _MANY_UNKNOWN = 6, 0.2

# Contributions that miss more of the output's change than this share are shown as approximate.
_LARGEST_ERROR = 0.1


class PlayPanel(ABC):
    """The panel of one model; a subclass for each kind. Its fields are read when the work begins.

    Attributes:
        box: what is shown; job: the button that starts, and Stop; output: the widget with what the model said.
        title: what the panel is for; start: label of the button.
        example: see `example_for`; shows_samples: whether a sample of the run is the initial text where there is one.

    Args:
        prompt: initial text of the field, for a model that reads text.
    """

    title = start = example = ""
    shows_samples = False

    def __init__(self, opened: Playground, prompt: str = "") -> None:
        self._opened = opened
        self.job = TaskRow(self.start, "tb-play", self._work, self._done, self._failed)
        primary(self.job.start)
        self.job.cancel.description = "Stop"
        self.output, self._alert = markup_box("tb-play-output"), markup_box("tb-play-alert")
        self.box = panel()
        self.box.add_class("tb-play-panel")
        watch_cells()

    def _arrange(self, *widgets: ipywidgets.Widget) -> None:
        """Put these between the heading and the errors."""
        about = [markup_box(markup=small(self._opened.weights))] if self._opened.weights else []
        fill_panel(self.box, markup_box(markup=heading(self.title)), *about, *widgets, self._alert)

    @classmethod
    def example_for(cls, opened: Playground) -> str:
        """Initial text of the field where no sample is known."""
        return cls.example

    @staticmethod
    @abstractmethod
    def sample(opened: Playground, prompt: str) -> str:
        """One input with the model's output as text, for output without widgets."""

    @abstractmethod
    def _answer(self, progress: Progress) -> Any:
        """Run the model on the fields' values; called in the worker thread."""

    def _shown(self, outcome: Outcome) -> Html | None:
        """What is shown of an answer; None leaves what is there."""
        return None if outcome.cancelled else outcome.result

    def _work(self, progress: Progress) -> Any:
        with progress.undisturbed():
            return self._answer(progress)

    def _done(self, outcome: Outcome) -> None:
        set_markup(self._alert, text(""))
        if outcome.error is not None:
            self._failed(outcome.error)
        elif (shown := self._shown(outcome)) is not None:
            set_markup(self.output, shown)

    def _clear(self) -> None:
        """Remove what was answered."""
        for box in (self.output, self._alert):
            set_markup(box, text(""))

    def _failed(self, error: BaseException) -> None:
        set_markup(self._alert, alert(error_sentence(error), error_details(error)))

    def _text_field(self, title: str, value: str) -> Any:
        """A line of text; Enter starts the work."""
        field = ipywidgets.Text(value=value, description=title)
        field.layout.width = "auto"  # 100% would add the margins and overflow
        field.add_class("tb-play-prompt")
        on_enter(field, self.job.begin, self._failed)
        return field


class TextPanel(PlayPanel):
    """Continues a prompt. Stop takes effect at the next token, and what was written stays.

    Attributes:
        prompt, temperature, top_p, length: the fields.
    """

    title, start, example = "Continue a text", "Generate", "The"
    field_title, usual_temperature = "Prompt", 0.8
    what, cut_at = "prompt", "beginning"

    @staticmethod
    def sample(opened: Playground, prompt: str) -> str:
        return f"Prompt: {prompt}\nContinued: {opened.generate(prompt, max_new_tokens=40, seed=0).text}"

    def __init__(self, opened: Playground, prompt: str = "") -> None:
        super().__init__(opened, prompt)
        self._partial = self._asked = ""
        self.prompt = self._text_field(self.field_title, prompt)
        self.temperature = ipywidgets.FloatSlider(
            value=self.usual_temperature, min=0.0, max=2.0, step=0.1, description="Temperature"
        )
        self.top_p = ipywidgets.FloatSlider(value=0.95, min=0.05, max=1.0, step=0.05, description="Top-p")
        narrow = ipywidgets.Layout(width="140px")
        self.length = ipywidgets.BoundedIntText(value=100, min=1, max=4096, description="Tokens", layout=narrow)
        self._settings = row(self.temperature, self.top_p, self.length)
        for field in self._settings.children:
            field.style.description_width = "initial"
        self._arrange(self.prompt, self._settings, self.job.box, self.output)

    def _answer(self, progress: Progress) -> Generated:
        def note(so_far: str) -> None:
            self._partial = so_far
            progress.report(so_far or "Generating")

        self._partial, self._asked = "", self.prompt.value  # read once: somebody may type on while the model writes
        return self._write(
            max_new_tokens=self.length.value, temperature=self.temperature.value, top_p=self.top_p.value, on_text=note
        )

    def _write(self, **settings: Any) -> Generated:
        return self._opened.generate(self._asked, **settings)

    def _shown(self, outcome: Outcome) -> Html:
        written = Generated(self._partial) if outcome.cancelled else outcome.result
        return joined([self._written(written.text), _cut(written.cut, self.what, self.cut_at)])

    def _written(self, written: str) -> Html:
        return _block(element("strong", text(self._asked)), text(written))


class ChatPanel(TextPanel):
    """Answers in a conversation.

    Attributes:
        messages: the turns so far; renew: the button that forgets them.
    """

    title, start, example = "Chat with the model", "Send", "Hello!"
    what = "conversation"

    @staticmethod
    def sample(opened: Playground, prompt: str) -> str:
        return f"Answer to {prompt!r}: {opened.answer([_user(prompt)], max_new_tokens=40, seed=0).text}"

    def __init__(self, opened: Playground, prompt: str = "") -> None:
        super().__init__(opened, prompt)
        self.messages: list[dict[str, str]] = []
        # Kept out of the job's row, whose buttons come and go with the work.
        self.renew = button(
            "New conversation", "tb-play-new", lambda _: self._renewed(), self._failed, "Clear the conversation."
        )
        self.renew.disabled = True
        self._arrange(self.output, self.prompt, self._settings, self.job.box, row(self.renew))

    def _renewed(self) -> None:
        """Begin a conversation anew."""
        self.messages = []
        self.renew.disabled = True
        self._clear()

    def _write(self, **settings: Any) -> Generated:
        return self._opened.answer([*self.messages, _user(self._asked)], **settings)

    def _written(self, written: str) -> Html:
        self.messages += [_user(self._asked), {"role": "assistant", "content": written}]
        self.prompt.value, self.renew.disabled = "", False
        turns = [_turn(turn["role"], turn["content"].strip()) for turn in self.messages]
        most = self._opened.most_answers
        if most is not None and len(self.messages) >= 2 * most:
            answers = "one answer" if most == 1 else f"at most {most:,} answers"
            turns.append(small(f"The training conversations have {answers}: a further question is new to the model."))
        return joined(turns)


class RewritingPanel(TextPanel):
    """Writes a text for another one, with the most likely token each time unless the temperature is raised."""

    title, start, example = "Write a text for another one", "Write", "This is an example."
    field_title, usual_temperature = "Text", 0.0
    what, cut_at = "text", "end"
    shows_samples = True

    @staticmethod
    def sample(opened: Playground, prompt: str) -> str:
        return f"Text: {prompt}\nWritten: {opened.rewrite(prompt, max_new_tokens=40).text}"

    def _write(self, **settings: Any) -> Generated:
        return self._opened.rewrite(self._asked, **settings)

    def _written(self, written: str) -> Html:
        return _block(text(written)) if written.strip() else small("The model ended the text before its first token.")


class ClassesPanel(PlayPanel):
    """Shows the probability of every class of a text, and what each token contributes.

    Attributes:
        prompt: the field.
    """

    title, start, example = "Classify a text", "Classify", "This is an example."
    shows_samples = True
    explained = "the logit of “{}”"

    @staticmethod
    def sample(opened: Playground, prompt: str) -> str:
        found, _ = opened.classify(prompt)
        return "\n".join([f"Classes of {prompt!r}:", *(f"  {name}  {value:.1%}" for name, value in found)])

    def __init__(self, opened: Playground, prompt: str = "") -> None:
        super().__init__(opened, prompt)
        self.prompt = self._text_field("Text", prompt)
        self._arrange(self.prompt, self.job.box, self.output)

    def _answer(self, progress: Progress) -> Html:
        prompt = self.prompt.value
        found, cut = self._opened.classify(prompt)
        return joined([self._unknown(prompt), _classes(found), self._contributions(prompt), _cut(cut)])

    def _unknown(self, prompt: str) -> Html:
        """A sentence on tokens that the model has never seen; nothing where all are known."""
        tokens, count = self._opened.unknown_tokens(prompt)
        if not tokens:
            return text("")
        different = list(dict.fromkeys(token.strip() or token for token in tokens))
        listed = ", ".join(f"“{token}”" for token in different[:_LISTED_TOKENS])
        more = ", …" if len(different) > _LISTED_TOKENS else ""
        said = f"{len(tokens)} of {count} tokens are in no training text ({listed}{more}), so the model knows nothing of them."
        return paragraph(f"{said} Its answer means little." if len(tokens) >= _MANY_UNKNOWN * count else said)

    def _contributions(self, prompt: str) -> Html:
        """What each token adds to the answer; a sentence where it cannot be computed."""
        try:
            return contributions(self._opened.attribute(prompt), self.explained)
        except TrainbookError as error:
            return small(f"Contributions of the tokens are not shown: {error}")


class NumbersPanel(ClassesPanel):
    """Shows the numbers that a regression gives for a text, and for a single one what each token contributes."""

    title, start, explained = "Estimate a number", "Estimate", "the {}"

    @staticmethod
    def sample(opened: Playground, prompt: str) -> str:
        found, _ = opened.estimate(prompt)
        return "\n".join([f"Numbers for {prompt!r}:", *(f"  {name}  {value:.4g}" for name, value in found)])

    def _answer(self, progress: Progress) -> Html:
        prompt = self.prompt.value
        found, cut = self._opened.estimate(prompt)
        numbers = number_cards({name: f"{value:.4g}" for name, value in found})
        more = [self._contributions(prompt)] if len(found) == 1 else []
        return joined([self._unknown(prompt), numbers, *more, _cut(cut)])


class MasksPanel(ClassesPanel):
    """Shows a text with its masked tokens filled in, and the candidates for each."""

    title, start, example = "Fill in masked tokens", "Fill in", "This is a [MASK] text."

    @classmethod
    def example_for(cls, opened: Playground) -> str:
        return cls.example.replace("[MASK]", str(opened.tokenizer.mask_token))

    @staticmethod
    def sample(opened: Playground, prompt: str) -> str:
        return f"Text: {prompt}\nFilled in: {opened.fill(prompt).text}"

    def _answer(self, progress: Progress) -> Html:
        return _filled(self._opened.fill(self.prompt.value))


class TagsPanel(ClassesPanel):
    """Shows the tag of every token of a text."""

    title, start = "Tag a text", "Tag"

    @staticmethod
    def sample(opened: Playground, prompt: str) -> str:
        tagged, _ = opened.tag(prompt)
        return "\n".join(
            [f"Tags of {prompt!r}:", *(f"  {row.token}  {row.tag}  {row.probability:.1%}" for row in tagged)]
        )

    def _answer(self, progress: Progress) -> Html:
        prompt = self.prompt.value
        return joined([self._unknown(prompt), _tagged(*self._opened.tag(prompt))])


class ImagePanel(PlayPanel):
    """Shows the probability of every class of an image.

    Attributes:
        upload: the field; picture: the chosen image.
    """

    title, start = "Classify an image", "Classify"

    @staticmethod
    def sample(opened: Playground, prompt: str) -> str:
        return "Image classifier: open_playground(results).classify_image(path) gives the probability of every class."

    def __init__(self, opened: Playground, prompt: str = "") -> None:
        super().__init__(opened, prompt)
        self.upload = ipywidgets.FileUpload(accept="image/*", multiple=False, description="Choose an image")
        self.upload.layout.width = "auto"
        self.upload.add_class("tb-play-upload")
        self.upload.observe(guarded(lambda _: self._chosen(), self._failed), "value")
        self.picture = ipywidgets.Image(layout=ipywidgets.Layout(display="none", max_height="160px", width="auto"))
        self.picture.add_class("tb-play-picture")
        self._arrange(row(self.upload), self.picture, self.job.box, self.output)

    def _chosen(self) -> None:
        """Show the chosen image; what was found for another one goes."""
        self.picture.value = _uploaded(self.upload.value)
        self.picture.layout.display = None
        self._clear()

    def _answer(self, progress: Progress) -> Html:
        return _classes(self._opened.classify_image(_uploaded(self.upload.value)))


#: The panel for each kind of model.
PANELS: Mapping[Kind, type[PlayPanel]] = {
    "text": TextPanel, "chat": ChatPanel, "rewriting": RewritingPanel, "masks": MasksPanel, "classes": ClassesPanel,
    "tags": TagsPanel, "numbers": NumbersPanel, "image": ImagePanel,
}  # fmt: skip


def _user(message: str) -> dict[str, str]:
    return {"role": "user", "content": message}


def _classes(found: Sequence[tuple[str, float]]) -> Html:
    return bars("Classes", ("class", "probability"), found)


def contributions(found: Attribution, explained: str = ClassesPanel.explained) -> Html:
    """Tokens tinted by what they add to an output, with the signed numbers under them. Faint where that is next to nothing.

    Args:
        explained: what the output is, with {} for its name.
    """
    change = sum(score for _, score in found.tokens)
    said = f"What each token adds to {explained.format(found.target)} (integrated gradients, baseline: token id 0): "
    said += f"{change:+.3g} of {found.value:.4g} in all"
    if not found.error <= _LARGEST_ERROR:
        said += f"; approximate, the sum misses {found.error:.0%} of its change"
    said += "."
    if share_of(found.tokens, found.value) < HARDLY_SHARE:
        said += (
            f" The text hardly changes it: all contributions together have less than {HARDLY_SHARE:.0%} of its size."
        )
    return joined([small(said), attribution_strip(found.tokens, found.value)])


def _filled(found: Filled) -> Html:
    many = len(found.candidates) > 1
    tables = [
        bars(f"Masked token {place}" if many else "Masked token", ("token", "probability"), candidates)
        for place, candidates in enumerate(found.candidates, start=1)
    ]
    return joined([_block(text(found.text)), *tables, _cut(found.cut)])


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


def _block(*content: Html) -> Html:
    """A paragraph that keeps the text's own line breaks."""
    return element("div", *content, style="white-space: pre-wrap; overflow-wrap: anywhere; margin: 0 0 0.5em")


def _turn(role: str, content: str) -> Html:
    """A turn of a conversation, with who speaks set apart."""
    return _block(element("strong", text(f"{role}:")), text(f" {content}"))


def _cut(count: int, what: str = "text", at: str = "end") -> Html:
    """A sentence on the tokens that did not fit, which stood at one end of the input."""
    if not count:
        return text("")
    tokens = f"{count:,} token{'s were' if count > 1 else ' was'} cut at its {at}"
    return paragraph(f"The {what} is longer than the model's context: {tokens}.")
