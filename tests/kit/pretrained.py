"""Tiny pretrained models and data files, as somebody brings them: folders of transformers, JSONL and CSV."""

from __future__ import annotations

import json
from pathlib import Path

import torch


def save_llama(folder: Path) -> Path:
    """A Llama of two layers with random weights and a tokenizer with a chat template of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM

    from utils.data.conversations.templates import set_chat_template
    from utils.tokenization import train_bpe

    tokenizer = train_bpe(["What comes after 7? 8. What comes after 12? 13. user assistant\n"] * 5, 300)
    set_chat_template(tokenizer, "chatml", len(tokenizer) + 4)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=96, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_bert(folder: Path) -> Path:
    """A BERT encoder of two layers with random weights, no head, and a WordPiece tokenizer."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "film", "was", "very", "good", "great", "fine", "bad", "dull",
             "poor"]  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = BertModel(BertConfig(vocab_size=len(words), max_position_embeddings=64, **sizes))
    model.save_pretrained(folder)
    return folder


def write_conversations(path: Path, count: int = 30) -> Path:
    """Questions and answers as `messages`."""
    rows = [
        {"messages": [
            {"role": "user", "content": f"What comes after {number}?"}, {"role": "assistant", "content": f"{number + 1}."},
        ]}
        for number in range(count)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def write_reviews(path: Path, count: int = 60) -> Path:
    """Texts of two classes that one word tells apart, as CSV with the columns `text` and `label`."""
    words = {"positive": ("good", "great", "fine"), "negative": ("bad", "dull", "poor")}
    rows = ["text,label"]
    for number in range(count):
        label = ("positive", "negative")[number % 2]
        rows.append(f"the film was {words[label][number // 2 % 3]}{' very' * (number // 6 % 4)},{label}")
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
