"""Published tokenizers by the size of a model's vocabulary, each verified when it is loaded.

The size alone says nothing about which id is which word. The table therefore states, for each candidate, how many tokens it
has and the ids of a few of them, as its publisher's files have it; one that loads with other ids is not used. No code of a
repository is run (`trust_remote_code` is off), and repositories that ask for consent or a login are not in the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from utils.errors import HubError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from utils.tokenization.fast import TrainbookTokenizer

# Seconds for the first answer of the Hub. Later requests have the timeouts and attempts of huggingface_hub.
_ANSWER_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Candidate:
    """A published tokenizer.

    Attributes:
        name: its repository on the Hub.
        num_tokens: how many tokens it has, added ones included.
        markers: token -> id, of a few of them.
    """

    name: str
    num_tokens: int
    markers: Mapping[str, int]


_BERT = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
_FAIRSEQ = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3}
_T5 = Candidate("google-t5/t5-small", 32_100, {"<pad>": 0, "</s>": 1, "<unk>": 2, "<extra_id_0>": 32_099})
_GPT2 = Candidate("openai-community/gpt2", 50_257, {"!": 0, "Ġthe": 262, "Hello": 15_496, "<|endoftext|>": 50_256})
_NEOX = Candidate("EleutherAI/pythia-70m", 50_277, {"<|endoftext|>": 0, "<|padding|>": 1})
_QWEN2 = Candidate(
    "Qwen/Qwen2-0.5B", 151_646, {"<|endoftext|>": 151_643, "<|im_start|>": 151_644, "<|im_end|>": 151_645}
)

#: Size of a model's vocabulary -> tokenizers of published models of that size. Some models have more rows than their
#: tokenizer has tokens, as padding for the hardware (gpt-neox 50,304 for 50,277).
KNOWN: Mapping[int, tuple[Candidate, ...]] = {
    21_128: (Candidate("google-bert/bert-base-chinese", 21_128, _BERT),),
    28_996: (Candidate("google-bert/bert-base-cased", 28_996, {**_BERT, "the": 1103}),),
    30_000: (
        Candidate("albert/albert-base-v2", 30_000, {"<pad>": 0, "<unk>": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}),
    ),
    30_522: (
        Candidate("google-bert/bert-base-uncased", 30_522, {**_BERT, "the": 1996, "hello": 7592}),
        Candidate("distilbert/distilbert-base-uncased", 30_522, {**_BERT, "the": 1996, "hello": 7592}),
    ),
    32_000: (Candidate("TinyLlama/TinyLlama-1.1B-Chat-v1.0", 32_000, {"<unk>": 0, "<s>": 1, "</s>": 2, "▁the": 278}),),
    32_064: (Candidate("microsoft/Phi-3-mini-4k-instruct", 32_011, {"<s>": 1, "</s>": 2, "<|endoftext|>": 32_000}),),
    32_100: (_T5,),
    32_128: (_T5,),
    49_152: (Candidate("HuggingFaceTB/SmolLM-135M", 49_152, {"<|endoftext|>": 0, "<|im_start|>": 1, "<|im_end|>": 2}),),
    50_257: (_GPT2, Candidate("distilbert/distilgpt2", _GPT2.num_tokens, _GPT2.markers)),
    50_265: (Candidate("FacebookAI/roberta-base", 50_265, {**_FAIRSEQ, "<mask>": 50_264}),),
    50_272: (Candidate("facebook/opt-125m", 50_265, {"<pad>": 1, "</s>": 2}),),
    50_277: (_NEOX,),
    50_280: (_NEOX,),
    50_304: (_NEOX, _GPT2),
    50_400: (Candidate("EleutherAI/gpt-j-6b", 50_400, {"<|endoftext|>": 50_256, "<|extratoken_1|>": 50_257}),),
    51_200: (Candidate("microsoft/phi-2", 50_295, {"Ġthe": 262, "<|endoftext|>": 50_256}),),
    65_024: (Candidate("tiiuae/falcon-7b", 65_024, {">>TITLE<<": 0, "<|endoftext|>": 11}),),
    100_352: (Candidate("microsoft/phi-4", 100_352, {"<|endoftext|>": 100_257, "<|im_start|>": 100_264}),),
    105_879: (Candidate("google-bert/bert-base-multilingual-uncased", 105_879, _BERT),),
    119_547: (Candidate("google-bert/bert-base-multilingual-cased", 119_547, _BERT),),
    151_646: (_QWEN2,),
    151_936: (_QWEN2,),
    250_002: (Candidate("FacebookAI/xlm-roberta-base", 250_002, {**_FAIRSEQ, "<mask>": 250_001}),),
    250_880: (Candidate("bigscience/bloom-560m", 250_680, {"<unk>": 0, "<s>": 1, "</s>": 2, "<pad>": 3}),),
}


@dataclass(frozen=True)
class Found:
    """Result of looking up a published tokenizer.

    Attributes:
        tokenizer: None when none could be had or verified.
        reason: one sentence: which it is, or why none.
    """

    tokenizer: TrainbookTokenizer | None
    reason: str


def find_pretrained(vocab_size: int, candidates: Mapping[int, tuple[Candidate, ...]] = KNOWN) -> Found:
    """The first candidate for `vocab_size` that loads and is what the table says."""
    from utils.tokenization.fast import adopt

    refused: list[str] = []
    online = True
    for candidate in candidates.get(vocab_size, ()):
        try:
            loaded, online = _load(candidate.name, online)
        except HubError as error:
            refused.append(str(error))
            continue
        problem = verify(loaded, candidate)
        if problem:
            refused.append(f"{candidate.name} is not what is known of it: {problem}")
            continue
        tokenizer = adopt(loaded)
        return Found(tokenizer, _said(candidate, tokenizer, vocab_size, refused))
    if not refused:
        return Found(None, f"no published tokenizer with a vocabulary of {vocab_size:,} is known")
    return Found(None, "; ".join(refused))


def verify(tokenizer: PreTrainedTokenizerFast, candidate: Candidate) -> str | None:
    """Explain how `tokenizer` differs from the candidate in the table; None when it does not."""
    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return "it has no fast backend"
    if len(tokenizer) != candidate.num_tokens:
        return f"it has {len(tokenizer):,} tokens and not {candidate.num_tokens:,}"
    vocabulary = tokenizer.get_vocab()
    for token, number in candidate.markers.items():
        if vocabulary.get(token) != number:
            return f"its token {token!r} has the id {vocabulary.get(token)} and not {number}"
    if max(vocabulary.values()) >= len(tokenizer):
        return f"its ids reach {max(vocabulary.values()):,} with {len(tokenizer):,} tokens"
    return None


def _said(candidate: Candidate, tokenizer: TrainbookTokenizer, vocab_size: int, refused: list[str]) -> str:
    said = f"{candidate.name}, {len(tokenizer):,} tokens, verified by its size and the ids of {len(candidate.markers)} tokens"
    if len(tokenizer) < vocab_size:
        said += f" (models with {vocab_size:,} rows use it)"
    return "; ".join([said, *(f"skipped: {why}" for why in refused)])


def _load(name: str, online: bool) -> tuple[Any, bool]:
    """The tokenizer of a repository, from the Hub or from what an earlier download left; and whether the Hub answered.

    The Hub is asked once with a time limit before anything else, so that a dead line costs seconds and not minutes of retries.

    Raises:
        HubError: it can be had from neither.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import OfflineModeIsEnabled

    problem: Exception | None = None
    if online:
        try:
            HfApi().model_info(name, timeout=_ANSWER_TIMEOUT_S)
            return _from_pretrained(name, local_only=False), True
        except OfflineModeIsEnabled as error:
            problem, online = error, False
        except Exception as error:  # noqa: BLE001 - network and Hub errors have no common class; reported when no copy is there
            problem, online = error, _answered(error)
    try:
        return _from_pretrained(name, local_only=True), online
    except Exception as error:
        raise HubError(f"{name} could not be had: {_why(problem or error)}") from error


def _from_pretrained(name: str, *, local_only: bool) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=False, local_files_only=local_only)


def _answered(error: Exception) -> bool:
    """Whether the Hub itself refused this one repository, so that the next is worth asking for."""
    return getattr(getattr(error, "response", None), "status_code", None) in (401, 403, 404)


def _why(error: Exception) -> str:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is not None:
        return f"the Hub answered {status}"
    if type(error).__name__ == "OfflineModeIsEnabled":
        return "HF_HUB_OFFLINE forbids asking the Hub, and this machine has no copy"
    return f"the Hub could not be reached ({first_line(error)})"
