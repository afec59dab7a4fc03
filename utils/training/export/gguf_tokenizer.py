"""A tokenizer as GGUF metadata: tokens, their types, merges, special ids and the chat template.

GGUF names a pre-tokenizer instead of describing it, and readers have a fixed list of them. A tokenizer is written only where
it is byte-level BPE with one of the pre-tokenizers below: any other would split text differently in llama.cpp.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.errors import ExportError

if TYPE_CHECKING:
    from gguf import GGUFWriter

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# The regular expressions in the published tokenizer.json of Qwen2 and Llama 3, with GGUF's names for them.
_PRE_TOKENIZERS = {
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}|{_REST}": "qwen2",
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}|{_REST}": "llama-bpe",
}
# What a reader of that name does before splitting.
_NORMALIZERS = {"gpt-2": (None,), "qwen2": (None, "NFC"), "llama-bpe": (None,)}

_SPECIAL_IDS = ("bos", "eos", "unk", "sep", "pad")


@dataclass(frozen=True)
class GGUFVocabulary:
    """A tokenizer as GGUF stores it.

    Attributes:
        pre: GGUF's name of the pre-tokenizer.
        tokens: by id, one for each row of the model's embedding table.
        types: `gguf.TokenType` of each token.
        merges: "left right", most frequent first.
        special_ids: "bos", "eos", "unk", "sep", "pad" -> id.
        adds_bos: whether encoding begins with the beginning-of-text token; adds_eos likewise.
        chat_template: Jinja, or None.
    """

    pre: str
    tokens: list[str]
    types: list[int]
    merges: list[str]
    special_ids: dict[str, int]
    adds_bos: bool
    adds_eos: bool
    chat_template: str | None

    def write(self, writer: GGUFWriter) -> None:
        """Add the metadata to a GGUF file."""
        writer.add_tokenizer_model("gpt2")  # GGUF's name for byte-level BPE
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        writer.add_token_merges(self.merges)
        for name, token in self.special_ids.items():
            getattr(writer, f"add_{name}_token_id")(token)
        writer.add_add_bos_token(self.adds_bos)
        writer.add_add_eos_token(self.adds_eos)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def gguf_vocabulary(tokenizer: Any, rows: int) -> GGUFVocabulary:
    """The vocabulary of `tokenizer` for a model with `rows` embeddings.

    Raises:
        ExportError: GGUF cannot hold this tokenizer; says which part of it.
    """
    from gguf import TokenType

    definition = _definition(tokenizer)
    pre = _pre_tokenizer(tokenizer, definition)
    tokens = dict(definition["model"]["vocab"])
    kinds = dict.fromkeys(tokens.values(), TokenType.NORMAL)
    for added in definition["added_tokens"]:
        tokens[added["content"]] = added["id"]
        kinds[added["id"]] = TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED
    if max(tokens.values()) >= rows:
        raise ExportError(
            f"the tokenizer has ids up to {max(tokens.values())}, the model {rows} embeddings; resize them before exporting"
        )
    by_id = {index: token for token, index in tokens.items()}
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in definition["model"].get("merges", [])]
    special = {name: getattr(tokenizer, f"{name}_token_id", None) for name in _SPECIAL_IDS}
    encoded = tokenizer("a")["input_ids"]
    template = getattr(tokenizer, "chat_template", None)
    return GGUFVocabulary(
        pre=pre,
        # Rows beyond the tokenizer, as in embedding tables that were rounded up, need a name too.
        tokens=[by_id.get(index, f"[PAD{index}]") for index in range(rows)],
        types=[int(kinds.get(index, TokenType.UNUSED)) for index in range(rows)],
        merges=merges,
        special_ids={name: token for name, token in special.items() if isinstance(token, int)},
        adds_bos=bool(encoded) and encoded[0] == special["bos"],
        adds_eos=bool(encoded) and encoded[-1] == special["eos"],
        chat_template=template if isinstance(template, str) else None,
    )


def _definition(tokenizer: Any) -> dict[str, Any]:
    """The content of tokenizer.json, whose model is byte-level BPE."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise _refusal(tokenizer, "it is not a fast tokenizer with a tokenizer.json")
    definition: dict[str, Any] = json.loads(backend.to_str())
    model = definition["model"]
    if model["type"] != "BPE":
        raise _refusal(tokenizer, f"its model is {model['type']}")
    if model.get("byte_fallback"):
        raise _refusal(tokenizer, "its model is BPE over characters with byte fallback (SentencePiece)")
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refusal(tokenizer, "its tokens have a prefix or suffix that marks parts of words")
    if (definition.get("decoder") or {}).get("type") != "ByteLevel":
        raise _refusal(tokenizer, "its BPE is not byte-level")
    return definition


def _pre_tokenizer(tokenizer: Any, definition: dict[str, Any]) -> str:
    """GGUF's name for how the text is split before the merges."""
    steps = definition.get("pre_tokenizer") or {"type": "none"}
    parts = steps["pretokenizers"] if steps["type"] == "Sequence" else [steps]
    name = None
    if len(parts) == 1 and parts[0]["type"] == "ByteLevel" and parts[0].get("use_regex", True):
        name = "gpt-2"
    elif len(parts) == 2 and parts[0]["type"] == "Split" and parts[1]["type"] == "ByteLevel":
        name = _PRE_TOKENIZERS.get(parts[0]["pattern"].get("Regex", ""))
    if name is None:
        raise _refusal(
            tokenizer, f"its pre-tokenizer ({', '.join(part['type'] for part in parts)}) has no name in GGUF"
        )
    if parts[-1].get("add_prefix_space"):
        raise _refusal(tokenizer, "it puts a space before the text (add_prefix_space)")
    normalizer = (definition.get("normalizer") or {}).get("type")
    if normalizer not in _NORMALIZERS[name]:
        raise _refusal(tokenizer, f"it normalises text ({normalizer}) before splitting")
    # Readers look a whole word up in the vocabulary first for this pre-tokenizer, and for no other.
    if bool(definition["model"].get("ignore_merges")) != (name == "llama-bpe"):
        raise _refusal(tokenizer, "its ignore_merges is not that of its pre-tokenizer")
    return name


def _refusal(tokenizer: Any, reason: str) -> ExportError:
    return ExportError(
        f"GGUF cannot hold the tokenizer {type(tokenizer).__name__}: {reason}. It holds byte-level BPE as GPT-2, Qwen2 and "
        "Llama 3 split text. Train with a byte-level BPE tokenizer (utils.tokenization.train_bpe), or export as 'hf'."
    )
