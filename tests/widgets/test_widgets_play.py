"""The panel to try a model: Generate, Enter, Stop, chat and classes; without widgets, text."""

from __future__ import annotations

import asyncio
import json
import re
from types import SimpleNamespace

import pytest

import widgets.play
import widgets.play_panels
from utils.errors import ConfigError, MissingPackageError
from utils.training.playground import Attribution, Filled, Generated, Tagged
from widgets.guarded import watching
from widgets.play import play_panel, playground
from widgets.play_panels import contributions


class Model:
    """A playground whose text is fixed."""

    weights = "Weights of the best checkpoint, step 2."
    most_answers: int | None = None

    def __init__(self, kind="text", cut=0):
        self.kind, self.cut, self.asked = kind, cut, []

    def generate(self, prompt, *, on_text=lambda text: None, **settings):
        if not prompt.strip():
            raise ConfigError("the prompt is empty; type at least one character")
        self.asked.append((prompt, settings))
        for text in ("one", "one\n<two>", "one\n<two> three"):
            on_text(text)
        return Generated("one\n<two> three", self.cut)

    def answer(self, messages, **settings):
        self.asked.append([dict(message) for message in messages])
        return Generated(f"answer {len(messages)}", self.cut)

    def rewrite(self, source, **settings):
        return self.generate(source, **settings)

    def fill(self, prompt):
        return Filled("a red <fox>", [[("red", 0.75), ("old", 0.25)], [("<fox>", 0.9)]], self.cut)

    def unknown_tokens(self, prompt):
        count = len(prompt.split())
        return [word for word in prompt.split() if word.startswith("un")], count

    def estimate(self, prompt):
        return [("number", 1234.5)] if prompt != "two" else [("number 1", 1.0), ("number 2", -2.0)], self.cut

    def classify(self, prompt):
        return [("glad", 0.75), ("sad", 0.25)], self.cut

    def attribute(self, prompt):
        if prompt == "without":
            raise MissingPackageError("captum", "to attribute a prediction to its tokens")
        return Attribution("glad", [("so", 1.5), ("<what>", -0.25)], 0.3 if prompt == "rough" else 0.01, 2.5)

    def tag(self, prompt):
        return [Tagged("Ada", "B-PER", 0.9), Tagged(" <sang>", "O", 0.8)], self.cut

    def classify_image(self, image):
        self.asked.append(image)
        return [("cat", 0.9), ("dog", 0.1)]


def press_enter(panel):
    panel.prompt._handle_custom_msg({"event": "submit"}, [])


@pytest.mark.parametrize("way", ["click", "enter"])
def test_text_is_generated_with_the_settings_and_shown_with_its_line_breaks(way):
    model = Model()
    panel = play_panel(model, "Once ")
    panel.temperature.value, panel.top_p.value, panel.length.value = 0.5, 0.7, 12
    press_enter(panel) if way == "enter" else panel.job.start.click()
    ((prompt, settings),) = model.asked
    assert prompt == "Once "
    assert {name: settings[name] for name in ("temperature", "top_p", "max_new_tokens")} == {
        "temperature": 0.5, "top_p": 0.7, "max_new_tokens": 12,
    }  # fmt: skip
    assert "<strong>Once </strong>one\n&lt;two&gt; three" in panel.output.value
    assert "pre-wrap" in panel.output.value


def test_stop_ends_it_at_the_next_token_and_keeps_what_was_written():
    model = Model()
    panel = play_panel(model, "Once ")
    stop = lambda change: panel.job.cancel.click() if "one" in change["new"] else None  # noqa: E731
    panel.job.line.observe(stop, "value")
    panel.job.start.click()
    assert "<strong>Once </strong>one" in panel.output.value
    assert "three" not in panel.output.value
    assert not panel.job.start.disabled


def test_an_empty_prompt_is_said_in_the_panel_and_the_next_text_removes_it():
    panel = play_panel(Model(), "")
    panel.job.start.click()
    assert "the prompt is empty" in panel._alert.value
    panel.prompt.value = "a"
    panel.job.start.click()
    assert panel._alert.value == ""


@pytest.mark.parametrize("typed", ["a new text", None], ids=["typed", "not typed"])
def test_enter_acts_on_the_text_that_arrives_right_after_it(typed, monkeypatch):
    monkeypatch.setattr("widgets.background_task.front_end", lambda: "notebook")
    monkeypatch.setattr("widgets.enter._WAIT_S", 0.01)
    model = Model()

    async def use():
        panel = play_panel(model, "an old text")
        assert not panel.prompt.continuous_update
        press_enter(panel)
        press_enter(panel)
        if typed:
            panel.prompt.value = typed
        async with asyncio.timeout(60):
            while not panel.output.value:
                await asyncio.sleep(0.01)
        panel.prompt.value = "something else, without Enter"

    asyncio.run(use())
    assert [prompt for prompt, _ in model.asked] == [typed or "an old text"]


@pytest.mark.parametrize("kind", ["text", "chat", "rewriting", "masks", "classes", "numbers"])
@pytest.mark.parametrize(("cut", "said"), [(1, "1 token was cut"), (1200, "1,200 tokens were cut")])
def test_it_says_how_many_tokens_were_cut(kind, cut, said):
    panel = play_panel(Model(kind, cut), "a")
    panel.job.start.click()
    assert said in panel.output.value


def test_a_chat_keeps_its_history_and_empties_the_box():
    model = Model("chat")
    panel = play_panel(model, "hello")
    panel.job.start.click()
    assert panel.prompt.value == ""
    panel.prompt.value = "and now?"
    panel.job.start.click()
    assert [turn["content"] for turn in model.asked[1]] == ["hello", "answer 1", "and now?"]
    assert panel.output.value.index("hello") < panel.output.value.index("and now?")
    assert not panel.renew.disabled
    panel.renew.click()
    assert (panel.messages, panel.output.value, panel.renew.disabled) == ([], "", True)


@pytest.mark.parametrize(("most", "said"), [(None, [False, False]), (1, [True, True]), (2, [False, True])])
def test_a_chat_says_when_it_goes_beyond_the_training_conversations(most, said):
    model = Model("chat")
    model.most_answers = most
    panel = play_panel(model, "hello")
    shown = []
    for _ in said:
        panel.prompt.value = "hello"
        panel.job.start.click()
        shown.append("a further question is new to the model" in panel.output.value)
    assert shown == said


def test_a_text_for_another_is_written_with_the_likeliest_tokens_and_shown_alone():
    model = Model("rewriting")
    panel = play_panel(model, "a text")
    panel.job.start.click()
    ((source, settings),) = model.asked
    assert (source, settings["temperature"]) == ("a text", 0.0)
    assert "one\n&lt;two&gt; three" in panel.output.value
    assert "a text" not in panel.output.value


def test_a_number_is_shown_with_what_each_token_adds_and_several_without():
    panel = play_panel(Model("numbers"), "a")
    panel.job.start.click()
    assert "1234" in panel.output.value
    assert "What each token adds to the glad" in panel.output.value
    panel.prompt.value = "two"
    panel.job.start.click()
    assert "number 2" in panel.output.value
    assert "What each token" not in panel.output.value


def tints(markup):
    """Strength of each token's tint in %."""
    return [int(found) for found in re.findall(r"background:color-mix\(in srgb,#\w+ (\d+)%", str(markup))]


@pytest.mark.parametrize(
    ("scale", "strongest", "hardly"),
    [(1.0, 45, False), (0.05, 45, False), (0.025, 22, False), (0.004, 4, True), (0.0003, 0, True)],
)
def test_contributions_that_are_negligible_beside_the_value_are_hardly_tinted(scale, strongest, hardly):
    # Large ones for and against say something although they cancel: their sizes count.
    found = Attribution("glad", [("a", 5.0 * scale), ("b", -5.0 * scale), ("c", 0.0)], 0.0, 5.0)
    shown = contributions(found)
    assert tints(shown) == [strongest, strongest, 0]
    assert ("The text hardly changes it" in shown) == hardly


def test_contributions_to_a_value_of_zero_are_tinted():
    shown = contributions(Attribution("number", [("a", 0.5), ("b", -0.25)], 0.0, 0.0))
    assert tints(shown) == [45, 22]
    assert "hardly" not in shown


@pytest.mark.parametrize("kind", ["classes", "numbers", "tags"])
def test_tokens_that_training_never_had_are_named_before_the_answer(kind):
    panel = play_panel(Model(kind), "one unknown in this text of very many words")
    panel.job.start.click()
    assert "1 of 9 tokens are in no training text (“unknown”), so the model knows nothing of them." in panel.output.value
    assert "means little" not in panel.output.value
    panel.prompt.value = "unlike unreal"
    panel.job.start.click()
    assert "2 of 2 tokens are in no training text (“unlike”, “unreal”)" in panel.output.value
    assert "Its answer means little." in panel.output.value
    panel.prompt.value = "known"
    panel.job.start.click()
    assert "no training text" not in panel.output.value


def test_a_filled_text_has_a_table_of_candidates_for_each_masked_token():
    panel = play_panel(Model("masks"), "a [MASK] [MASK]")
    panel.job.start.click()
    assert "a red &lt;fox&gt;" in panel.output.value
    assert "75.0%" in panel.output.value
    assert "Masked token 2" in panel.output.value


def test_classes_are_a_table_with_probabilities():
    panel = play_panel(Model("classes"), "a")
    panel.job.start.click()
    assert "75.0%" in panel.output.value
    assert panel.output.value.index("glad") < panel.output.value.index("sad")


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("text", "Continued: one"), ("chat", "answer 1"), ("classes", "glad  75.0%"), ("rewriting", "Written: one"),
        ("numbers", "number  1234"), ("masks", "Filled in: a red <fox>"),
    ],
)
def test_without_widgets_one_sample_is_printed_and_no_widget_is_made(kind, said, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(widgets.play, "open_playground", lambda source: Model(kind))
    monkeypatch.setattr(widgets.play_panels, "TaskRow", None)
    row = {"input": "a film", "true": "glad", "predicted": "glad", "score": 0.75}
    (tmp_path / "samples.jsonl").write_text(json.dumps({"step": 1, "epoch": 0, "samples": [row]}) + "\n")
    playground(SimpleNamespace(run_dir=tmp_path), ui="text")
    shown = capsys.readouterr().out
    assert said in shown
    assert ("Classes of 'a film'" in shown) == (kind == "classes")


def test_the_panel_says_which_weights_these_are():
    shown = [child.value for child in play_panel(Model(), "a").box.children if hasattr(child, "value")]
    assert any("best checkpoint, step 2" in value for value in shown if isinstance(value, str))


@pytest.mark.parametrize("ui", ["text", "widget"])
def test_a_model_without_a_playground_ends_in_a_sentence(ui, tmp_path, capsys):
    with watching() as failures:
        playground(tmp_path, ui=ui)
    assert failures == []
    assert "Nothing to play with" in capsys.readouterr().out


def test_a_class_comes_with_what_its_tokens_contribute():
    panel = play_panel(Model("classes"), "so what")
    panel.job.start.click()
    assert "75.0%" in panel.output.value
    assert "adds to the logit of “glad”" in panel.output.value
    assert "+1.5" in panel.output.value
    assert "-0.25" in panel.output.value
    assert "&lt;what&gt;" in panel.output.value
    assert "approximate" not in panel.output.value
    panel.prompt.value = "rough"
    panel.job.start.click()
    assert "approximate, the sum misses 30%" in panel.output.value
    panel.prompt.value = "without"
    panel.job.start.click()
    assert "75.0%" in panel.output.value
    assert "captum is not installed" in panel.output.value


def test_tags_are_shown_under_their_tokens():
    panel = play_panel(Model("tags", cut=2), "Ada sang")
    panel.job.start.click()
    assert "B-PER 90%" in panel.output.value
    assert "&lt;sang&gt;" in panel.output.value
    assert "2 tokens were cut" in panel.output.value


@pytest.mark.parametrize("value", [
    ({"name": "a.png", "content": memoryview(b"pixels")},), {"a.png": {"metadata": {}, "content": b"pixels"}},
], ids=["ipywidgets 8", "ipywidgets 7"])  # fmt: skip
def test_an_image_is_uploaded_and_classified(value):
    model = Model("image")
    panel = play_panel(model)
    panel.upload = SimpleNamespace(value=())
    panel.job.start.click()
    assert "no image is chosen" in panel._alert.value
    panel.upload = SimpleNamespace(value=value)
    panel._chosen()
    assert (bytes(panel.picture.value), panel.picture.layout.display, panel._alert.value) == (b"pixels", None, "")
    panel.job.start.click()
    assert model.asked == [b"pixels"]
    assert "90.0%" in panel.output.value
    assert "width:90.0%" in panel.output.value
    panel._chosen()
    assert panel.output.value == "", "classes of another image"
