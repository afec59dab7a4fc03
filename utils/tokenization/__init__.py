"""Text -> token ids: characters, byte-level BPE, and the choice between them. All are transformers' fast tokenizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.tokenization.adaptive import TokenizerChoice, check_fits, choose_tokenizer
    from utils.tokenization.bpe import train_bpe
    from utils.tokenization.character import build_character_tokenizer
    from utils.tokenization.encoding import encode_documents
    from utils.tokenization.special_tokens import SPECIAL_TOKENS

# Exported name -> the module that holds it, imported on first use.
_EXPORTS = {
    "TokenizerChoice": "utils.tokenization.adaptive",
    "check_fits": "utils.tokenization.adaptive",
    "choose_tokenizer": "utils.tokenization.adaptive",
    "train_bpe": "utils.tokenization.bpe",
    "build_character_tokenizer": "utils.tokenization.character",
    "encode_documents": "utils.tokenization.encoding",
    "SPECIAL_TOKENS": "utils.tokenization.special_tokens",
}

__all__ = [
    "SPECIAL_TOKENS", "TokenizerChoice", "build_character_tokenizer", "check_fits", "choose_tokenizer",
    "encode_documents", "train_bpe",
]  # fmt: skip

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
