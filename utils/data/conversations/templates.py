"""Chat templates for tokenizers that have none, with markers around what the assistant writes."""

from __future__ import annotations

from typing import Any

from utils.errors import ConfigError
from utils.schema import nearest, shown

# `{% generation %}` marks the assistant's part, for transformers' apply_chat_template(return_assistant_tokens_mask=True).
# In both templates the end of a turn is inside: a model that is not trained on it never stops.
_CHATML = (
    "{%- for message in messages %}"
    "{{- '<|im_start|>' + message['role'] + '\\n' }}"
    "{%- if message['role'] == 'assistant' %}"
    "{% generation %}{{- message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{%- else %}{{- message['content'] + '<|im_end|>' }}{%- endif %}"
    "{{- '\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_PLAIN = (
    "{%- for message in messages %}"
    "{%- if message['role'] == 'assistant' %}"
    "{{- 'Assistant:' }}{% generation %}{{- ' ' + message['content'] + eos_token }}{% endgeneration %}{{- '\\n' }}"
    "{%- else %}{{- message['role'] | capitalize + ': ' + message['content'] + '\\n' }}{%- endif %}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- 'Assistant:' }}{%- endif %}"
)

#: Built-in templates: name -> (Jinja source, tokens that it needs beside the tokenizer's own). "chatml" is OpenAI's Chat Markup
#: Language, which Qwen and others use; "plain" needs no token but the end of text.
CHAT_TEMPLATES: dict[str, tuple[str, tuple[str, ...]]] = {
    "chatml": (_CHATML, ("<|im_start|>", "<|im_end|>")),
    "plain": (_PLAIN, ()),
}


def set_chat_template(tokenizer: Any, name: str | None = None, vocab_size: int | None = None) -> str:
    """Give `tokenizer` a chat template; it is saved and exported with the tokenizer.

    Args:
        tokenizer: a transformers tokenizer; its special tokens are extended where the template needs some, and "chatml" makes
            the end of a turn its end-of-text token.
        name: one of CHAT_TEMPLATES. None: the tokenizer's own; where it has none "chatml" if its tokens are there or fit
            the vocabulary, else "plain".
        vocab_size: token ids that the model takes; None: not limited.
    Returns:
        what the template is, in words.
    Raises:
        ConfigError: an unknown name, tokens that do not fit the vocabulary, or no end-of-text token.
    """
    if name is None and (own := getattr(tokenizer, "chat_template", None)):
        given = next((built_in for built_in, (source, _) in CHAT_TEMPLATES.items() if own == source), None)
        return "the tokenizer's own" if given is None else f"the built-in template {given!r}"
    if name is not None and name not in CHAT_TEMPLATES:
        guess = nearest(str(name), CHAT_TEMPLATES)
        hint = f" Did you mean {guess!r}?" if guess else ""
        raise ConfigError(
            f"got chat_template={shown(name)}; must be one of {', '.join(CHAT_TEMPLATES)}, or None.{hint}"
        )
    known = tokenizer.get_vocab()
    chosen = name or next(candidate for candidate in CHAT_TEMPLATES if _fits(tokenizer, candidate, known, vocab_size))
    source, tokens = CHAT_TEMPLATES[chosen]
    missing = [token for token in tokens if token not in known]
    if not _fits(tokenizer, chosen, known, vocab_size):
        raise ConfigError(
            f"chat_template={chosen!r} needs the tokens {', '.join(missing)}, but the tokenizer has {len(tokenizer):,} tokens "
            f"and the model's vocabulary holds {vocab_size:,}. Extend the model with "
            f"model.resize_token_embeddings({len(tokenizer) + len(missing)}), or use chat_template='plain'."
        )
    if chosen == "plain" and tokenizer.eos_token is None:
        raise ConfigError(
            "chat_template='plain' ends each answer with the tokenizer's end-of-text token, which is not set. Set "
            "tokenizer.eos_token."
        )
    if missing:
        tokenizer.add_special_tokens({"extra_special_tokens": missing}, replace_extra_special_tokens=False)
    tokenizer.chat_template = source
    if tokens:  # generation stops where an answer ends, so the end of a turn is the end of text
        tokenizer.eos_token = tokens[-1]
    added = f", with the new tokens {' and '.join(missing)}" if missing else ""
    return f"the built-in template {chosen!r}{added}"


def _fits(tokenizer: Any, name: str, known: dict[str, int], vocab_size: int | None) -> bool:
    missing = sum(token not in known for token in CHAT_TEMPLATES[name][1])
    # "plain" is the last resort: what it lacks is an error with a remedy of its own.
    return name == "plain" or vocab_size is None or len(tokenizer) + missing <= vocab_size
