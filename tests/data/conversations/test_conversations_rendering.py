"""Targets of conversations: what the assistant writes by a brute-force reference, for marked, unmarked and rewriting templates."""

from __future__ import annotations

import random

import numpy as np
import pytest

from utils.data.conversations import CHAT_TEMPLATES, Conversation, Renderer, set_chat_template
from utils.errors import ConfigError, DataError
from utils.tokenization.adaptive import choose_tokenizer
from utils.tokenization.special_tokens import SPECIAL_TOKENS

EXTRA = ("<|im_start|>", "<|im_end|>", "<|eot_id|>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]")
WORDS = [
    "a",
    "list",
    "of",
    "  two",
    "\nlines",
    "né",
    "日本",
    "🙂",
    "<tag>",
    "it's",
    "1+2",
    "",
    " ",
    "assistant",
    "user:",
]

# Shapes of published templates, written anew: header tokens, a merged system prompt, instruction brackets, white space removed.
LLAMA = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + ']\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages and messages[0].role == 'system' %}{% set first = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set first = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' }}"
    "{% if loop.first %}{{ first }}{% endif %}{{ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}{{ ' ' + m.content + eos_token }}"
    "{% else %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endif %}{% endfor %}"
)
# Removes the answers' thoughts once another question follows.
REWRITING = (
    "{% for m in messages %}<|im_start|>{{ m.role + '\n' }}"
    "{% if m.role == 'assistant' and not loop.last %}{{ m.content.split('|')[-1] }}{% else %}{{ m.content }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {"llama": LLAMA, "gemma": GEMMA, "mistral": MISTRAL, "rewriting": REWRITING}


@pytest.fixture(scope="module")
def make_tokenizer():
    texts = [
        *WORDS * 20,
        "[system] [user] [assistant] model tool Assistant: User: System:",
        "abcdefghijklmnopqrstuvwxyz\n",
    ]
    choice = choose_tokenizer(texts, 600, "bpe", (*SPECIAL_TOKENS, *EXTRA))

    def make(template):
        tokenizer = choice.tokenizer
        tokenizer.chat_template = CHAT_TEMPLATES[template][0] if template in CHAT_TEMPLATES else TEMPLATES[template]
        return tokenizer

    return make


def fuzzed(count, seed=0):
    draw = random.Random(seed)
    for row in range(count):
        messages = [{"role": "system", "content": text(draw)}] if draw.random() < 0.3 else []
        for _ in range(draw.randint(1, 4)):
            messages += [{"role": "user", "content": text(draw)}, {"role": "assistant", "content": text(draw)}]
        yield Conversation(tuple(messages), row)


def text(draw):
    return "x" + " ".join(draw.choices(WORDS, k=draw.randint(1, 8))) + draw.choice(["", "|y", "."])


def reference(tokenizer, messages):
    """For each answer: tokens of the rendering with it, that are not in the rendering of what came before."""
    samples = []
    for place, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before = tokenizer.apply_chat_template(messages[:place], tokenize=False, add_generation_prompt=True)
        until = tokenizer.apply_chat_template(messages[: place + 1], tokenize=False)
        assert until.startswith(before)
        encoded = tokenizer(until, add_special_tokens=False, return_offsets_mapping=True)
        samples.append((encoded["input_ids"], [start >= len(before) for start, _ in encoded["offset_mapping"]]))
    return samples


def joined(expected):
    """The samples of the reference as one, where each rendering continues the one before; else None."""
    ids = expected[-1][0]
    everything = np.zeros(len(ids), bool)
    for earlier, chosen in expected:
        if ids[: len(earlier)] != earlier:
            return None
        everything[: len(earlier)] |= np.array(chosen)
    return ids, everything.tolist()


@pytest.mark.parametrize("template", [*TEMPLATES, *CHAT_TEMPLATES])
def test_targets_are_those_of_the_reference(make_tokenizer, template):
    tokenizer = make_tokenizer(template)
    renderer = Renderer(tokenizer)
    num_rewritten = 0
    for conversation in fuzzed(200):
        expected = reference(tokenizer, list(conversation.messages))
        together = joined(expected)
        num_rewritten += together is None
        expected = expected if together is None else [together]
        samples = renderer(conversation)
        assert len(samples) == len(expected)
        for sample, (ids, targets) in zip(samples, expected, strict=True):
            assert sample.ids.tolist() == ids
            if not renderer.has_marks:
                assert sample.targets.tolist() == targets
            else:  # marks end with the end of the turn, the rendering with a line end
                assert not (sample.targets & ~np.array(targets)).any()
                assert set(tokenizer.decode(sample.ids[np.array(targets) & ~sample.targets])) <= {"\n"}
    assert (num_rewritten > 0) == (template == "rewriting")


@pytest.mark.parametrize("template", [*TEMPLATES, *CHAT_TEMPLATES])
def test_every_answer_has_its_end_as_a_target(make_tokenizer, template):
    tokenizer = make_tokenizer(template)
    renderer = Renderer(tokenizer)
    for conversation in fuzzed(20, seed=1):
        for sample in renderer(conversation):
            for end in sample.ends:
                tail = sample.ids[max(0, end - 2) : end][sample.targets[max(0, end - 2) : end]].tolist()
                assert set(tail) & set(tokenizer.all_special_ids + list(tokenizer.added_tokens_decoder))


def test_an_answer_without_an_end_gets_the_end_of_text(make_tokenizer):
    tokenizer = make_tokenizer("plain")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}" \
                              "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"  # fmt: skip
    renderer = Renderer(tokenizer)
    (sample,) = renderer(next(fuzzed(1)))
    assert sample.ids[-1] == tokenizer.eos_token_id
    assert sample.targets[-1]
    assert renderer.notes.appended_ends == 1


def test_marks_that_leave_the_end_out_are_extended(make_tokenizer):
    tokenizer = make_tokenizer("chatml")
    tokenizer.chat_template = CHAT_TEMPLATES["chatml"][0].replace(
        "message['content'] + '<|im_end|>' }}{% endgeneration %}",
        "message['content'] }}{% endgeneration %}{{- '<|im_end|>' }}",
    )
    (sample,) = Renderer(tokenizer)(next(fuzzed(1)))
    ends = [sample.ids[end - 1] for end in sample.ends]
    assert set(ends) == {tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert all(sample.targets[end - 1] for end in sample.ends)


@pytest.mark.parametrize("template", ["chatml", "llama"])
def test_what_counts_can_be_chosen(make_tokenizer, template):
    tokenizer = make_tokenizer(template)
    conversation = next(one for one in fuzzed(20) if one.num_answers > 1)
    every, last, everything = (
        Renderer(tokenizer, train_on)(conversation)[0] for train_on in ("assistant", "last", "all")
    )
    assert everything.targets[1:].all()
    assert not everything.targets[0]
    assert last.targets.sum() < every.targets.sum()
    assert (every.targets | last.targets).tolist() == every.targets.tolist()
    assert np.flatnonzero(last.targets)[0] >= every.ends[-2]


def test_a_conversation_that_the_template_refuses_gives_its_reason(make_tokenizer):
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(DataError, match="roles must alternate"):
        Renderer(tokenizer)(next(fuzzed(1)))


def test_a_tokenizer_without_a_template_is_refused(make_tokenizer):
    tokenizer = make_tokenizer("llama")
    tokenizer.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        Renderer(tokenizer)


# ---- giving a tokenizer a template ----


def test_the_own_template_stays(make_tokenizer):
    tokenizer = make_tokenizer("llama")
    assert set_chat_template(tokenizer) == "the tokenizer's own"
    assert tokenizer.chat_template == LLAMA
    for _ in range(2):  # given once, and then kept
        tokenizer.chat_template = tokenizer.chat_template if tokenizer.chat_template != LLAMA else None
        assert set_chat_template(tokenizer).startswith("the built-in template")


@pytest.mark.parametrize(("room", "chosen"), [(2, "chatml"), (1, "plain")])
def test_new_tokens_are_added_only_where_the_model_has_room(room, chosen):
    tokenizer = choose_tokenizer(["some text"] * 30, 400, "bpe").tokenizer
    size = len(tokenizer)
    assert repr(chosen) in set_chat_template(tokenizer, vocab_size=size + room)
    assert len(tokenizer) <= size + room
    assert tokenizer.eos_token == ("<|im_end|>" if chosen == "chatml" else "</s>")


def test_a_named_template_that_does_not_fit_says_how_it_would():
    tokenizer = choose_tokenizer(["some text"] * 30, 400, "bpe").tokenizer
    with pytest.raises(ConfigError, match=rf"resize_token_embeddings\({len(tokenizer) + 2}\)"):
        set_chat_template(tokenizer, "chatml", vocab_size=len(tokenizer))
    with pytest.raises(ConfigError, match="Did you mean 'chatml'"):
        set_chat_template(tokenizer, "chatlm")
