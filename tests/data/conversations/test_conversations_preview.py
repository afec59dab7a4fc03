"""What is trained on, shown: roles and targets of each token agree with the labels, and the marks need no colour."""

from __future__ import annotations

import re

import pytest

from tests.kit.pretrained import save_llama
from utils.data import prepare_conversations, preview_batch
from utils.views.samples import samples_html, samples_text

ROWS = [
    {"messages": [
        {"role": "system", "content": "Count <b>."}, {"role": "user", "content": f"What comes after {n}?"},
        {"role": "assistant", "content": f"{n + 1}."}, {"role": "user", "content": "And then?"},
        {"role": "assistant", "content": f"{n + 2}."},
    ]}
    for n in range(12)
]  # fmt: skip


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    from utils.models import load_pretrained

    return load_pretrained(save_llama(tmp_path_factory.mktemp("pretrained") / "llama"), "causal_lm")


@pytest.fixture(scope="module", params=[True, False], ids=["packed", "one a row"])
def data(request, loaded):
    return prepare_conversations(ROWS, loaded.tokenizer, model=loaded.model, pack=request.param, max_length=96)


def test_each_token_has_the_role_of_its_turn_and_targets_are_the_assistants(data):
    for sample in preview_batch(data, 3):
        for token in sample.tokens:
            assert (token.role is None) == (not token.attended or token.role is None)
            if token.is_target:
                assert token.role == "assistant"
        roles = [token.role for token in sample.tokens if token.role is not None]
        turns = [role for place, role in enumerate(roles) if place == 0 or role != roles[place - 1]]
        conversations = sum(token.begins for token in sample.tokens)
        assert turns == ["system", "user", "assistant", "user", "assistant"] * conversations
    assert preview_batch(data, 1)[0].tokens[0].begins


def test_what_counts_is_what_the_labels_say(data):
    sample = preview_batch(data, 1)[0]
    labels = data.train[0]["labels"].tolist()
    assert [bool(token.is_target) for token in sample.tokens[: len(labels)]] == [label != -100 for label in labels]


def test_roles_and_targets_are_told_without_colour(data):
    samples = preview_batch(data, 1)
    markup, plain = samples_html(samples), samples_text(samples)
    without_styles = re.sub(r' style="[^"]*"', "", markup)
    for role in ("system", "user", "assistant"):
        assert f"<strong>{role}</strong>" in without_styles
        assert f"{role}: " in plain
    assert re.search(r"<u title=\"id \d+, trained on\">", without_styles)
    assert "&lt;" in markup
    assert "<b>" not in markup
    targets = sum(bool(token.is_target) for token in samples[0].tokens)
    assert f"{targets} of " in markup
    assert "«" in plain


def test_rewritten_turns_still_have_roles(loaded):
    """A template that drops what earlier answers thought, so that each answer is a sample of its own."""
    import copy

    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content if loop.last or m.role != 'assistant' else '' }}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    data = prepare_conversations(ROWS, tokenizer, model=loaded.model, pack=False, max_length=96)
    assert any("writes earlier turns differently" in note for note in data.report.notes)
    for sample in preview_batch(data, 2):
        assert {token.role for token in sample.tokens if token.role} == {"system", "user", "assistant"}
        assert {token.role for token in sample.tokens if token.is_target} == {"assistant"}
