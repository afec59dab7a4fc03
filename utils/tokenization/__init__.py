"""Text -> token ids: characters, byte-level BPE, published ones, and the choice between them. All are transformers' fast
tokenizers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from utils.lazy import lazy_exports

if TYPE_CHECKING:
    from utils.tokenization.adaptive import TokenizerChoice, check_fits, choose_tokenizer
    from utils.tokenization.adaptive_tokenizer import AdaptiveTokenizer
    from utils.tokenization.bpe import train_bpe
    from utils.tokenization.bpe_trainer import BPETrainerConfig, FastBPETrainer
    from utils.tokenization.character import build_character_tokenizer
    from utils.tokenization.character_level import CharacterLevelTokenizer
    from utils.tokenization.corpus_file import encode_corpus
    from utils.tokenization.data_module import AdaptiveTokenizerDataModule
    from utils.tokenization.encoding import encode_documents
    from utils.tokenization.fast import TrainbookTokenizer
    from utils.tokenization.special_tokens import SPECIAL_TOKENS
    from utils.tokenization.validator import TokenizerValidator

# Exported name -> the module that holds it, imported on first use.
_EXPORTS = {
    "AdaptiveTokenizer": "utils.tokenization.adaptive_tokenizer",
    "BPETrainerConfig": "utils.tokenization.bpe_trainer",
    "FastBPETrainer": "utils.tokenization.bpe_trainer",
    "CharacterLevelTokenizer": "utils.tokenization.character_level",
    "TokenizerValidator": "utils.tokenization.validator",
    "AdaptiveTokenizerDataModule": "utils.tokenization.data_module",
    "encode_corpus": "utils.tokenization.corpus_file",
    "TrainbookTokenizer": "utils.tokenization.fast",
    "TokenizerChoice": "utils.tokenization.adaptive",
    "check_fits": "utils.tokenization.adaptive",
    "choose_tokenizer": "utils.tokenization.adaptive",
    "train_bpe": "utils.tokenization.bpe",
    "build_character_tokenizer": "utils.tokenization.character",
    "encode_documents": "utils.tokenization.encoding",
    "SPECIAL_TOKENS": "utils.tokenization.special_tokens",
}

__all__ = [
    "SPECIAL_TOKENS",
    "AdaptiveTokenizer",
    "AdaptiveTokenizerDataModule",
    "BPETrainerConfig",
    "CharacterLevelTokenizer",
    "FastBPETrainer",
    "TokenizerChoice",
    "TokenizerValidator",
    "TrainbookTokenizer",
    "build_character_tokenizer",
    "check_fits",
    "choose_tokenizer",
    "encode_corpus",
    "encode_documents",
    "train_bpe",
]

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
