"""Generated text is what the model says: greedy, sampled or restricted, reproducible, and without side effects."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from utils.adapters import generate, generate_text
from utils.errors import ConfigError, ModelError, NonFiniteError
from utils.tokenization.character import build_character_tokenizer

VOCABULARY = 12


class Successor(nn.Module):
    """Every id is followed by the next one, almost surely; records what it was shown."""

    def __init__(self, max_seq_len=8, sharpness=20.0):
        super().__init__()
        self.max_seq_len = max_seq_len
        self.dropout = nn.Dropout(0.5)
        self.table = nn.Parameter(sharpness * torch.eye(VOCABULARY).roll(1, dims=1))
        self.lengths = []

    def forward(self, input_ids):
        self.lengths.append(input_ids.shape[1])
        assert not self.training
        return self.dropout(self.table[input_ids])


@pytest.fixture
def gpt():
    torch.manual_seed(0)
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0)
    )


def test_greedy_follows_the_most_likely_token():
    ids = generate(Successor(), torch.tensor([[3], [8]]), 4, temperature=0)
    assert ids.tolist() == [[3, 4, 5, 6, 7], [8, 9, 10, 11, 0]]
    assert ids.dtype == torch.int64


def test_greedy_agrees_with_transformers_own_generate(gpt):
    prompt = torch.tensor([[1, 2, 3], [4, 5, 6]])
    gpt.eval()
    expected = gpt.generate(prompt, max_new_tokens=10, do_sample=False, eos_token_id=None, pad_token_id=0)
    assert generate(gpt, prompt, 10, temperature=0).tolist() == expected.tolist()


def test_the_same_seed_gives_the_same_text_and_another_seed_another(gpt):
    prompt = torch.tensor([[1, 2]])
    first = generate(gpt, prompt, 12, seed=1)
    assert torch.equal(first, generate(gpt, prompt, 12, seed=1))
    assert not torch.equal(first, generate(gpt, prompt, 12, seed=2))


def test_sampling_follows_the_models_probabilities():
    model = Successor(sharpness=2.0)
    drawn = generate(model, torch.zeros(4000, 1, dtype=torch.long), 1, seed=0)[:, 1]
    share = (drawn == 1).double().mean().item()
    expected = torch.tensor([2.0] + [0.0] * (VOCABULARY - 1)).softmax(0)[0].item()
    assert share == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("restriction", [{"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}])
def test_the_tightest_restriction_is_greedy(restriction):
    model, prompt = Successor(sharpness=1.0), torch.tensor([[1, 2], [5, 9]])  # no two logits are nearly tied
    drawn = [generate(model, prompt, 8, **restriction, seed=seed) for seed in range(5)]
    assert all(torch.equal(ids, generate(model, prompt, 8, temperature=0)) for ids in drawn)


def test_top_k_draws_from_the_k_most_likely():
    logits = torch.arange(VOCABULARY, dtype=torch.float)
    model = Successor()
    model.table.data = logits.expand(VOCABULARY, VOCABULARY).clone()
    drawn = generate(model, torch.zeros(500, 1, dtype=torch.long), 1, temperature=10.0, top_k=3, seed=0)[:, 1]
    assert set(drawn.tolist()) == {VOCABULARY - 3, VOCABULARY - 2, VOCABULARY - 1}


def test_top_p_draws_from_the_smallest_set_with_that_probability():
    probabilities = torch.tensor([0.5, 0.3, 0.15] + [0.05 / (VOCABULARY - 3)] * (VOCABULARY - 3))
    model = Successor()
    model.table.data = probabilities.log().expand(VOCABULARY, VOCABULARY).clone()
    prompts = torch.zeros(500, 1, dtype=torch.long)
    assert set(generate(model, prompts, 1, top_p=0.7, seed=0)[:, 1].tolist()) == {0, 1}
    assert set(generate(model, prompts, 1, top_p=0.9, seed=0)[:, 1].tolist()) == {0, 1, 2}


def test_ids_beyond_the_tokenizer_are_never_drawn(gpt):
    ids = generate(gpt, torch.tensor([[1]] * 50), 10, vocab_size=5, seed=0)
    assert int(ids.max()) < 5


def test_an_ended_sequence_is_filled_and_all_ended_stops():
    ids = generate(Successor(), torch.tensor([[3], [1]]), 10, temperature=0, eos_token_id=5)
    assert ids.tolist() == [[3, 4, 5, 5, 5], [1, 2, 3, 4, 5]]


def test_no_more_is_shown_than_the_model_takes():
    model = Successor(max_seq_len=4)
    ids = generate(model, torch.tensor([[0, 1, 2]]), 5, temperature=0)
    assert model.lengths == [3, 4, 4, 4, 4]
    assert ids.tolist() == [list(range(8))], "the newest positions are shown, not the oldest"
    model.lengths.clear()
    generate(model, torch.tensor([[0, 1, 2]]), 2, temperature=0, max_context=1)
    assert model.lengths == [1, 1]


def test_a_prompt_longer_than_the_model_is_kept_whole(gpt):
    prompt = torch.arange(30)[None] % 40
    ids = generate(gpt, prompt, 3, temperature=0)
    assert ids.shape == (1, 33)
    assert torch.equal(ids[:, :30], prompt)


def test_nothing_is_left_changed(gpt):
    gpt.train()
    gpt.transformer.drop.eval()
    modes = [module.training for module in gpt.modules()]
    weights = {name: tensor.clone() for name, tensor in gpt.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    generate(gpt, torch.tensor([[1]]), 5)
    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in gpt.modules()] == modes
    assert all(torch.equal(tensor, weights[name]) for name, tensor in gpt.state_dict().items())
    assert all(parameter.grad is None for parameter in gpt.parameters())


def test_modes_come_back_after_an_error():
    model = Successor().train()
    model.table.data[0, 0] = torch.nan
    with pytest.raises(NonFiniteError, match="Successor"):
        generate(model, torch.tensor([[0]]), 1)
    assert model.training
    assert model.dropout.training


def test_forbidden_tokens_are_no_error():
    model = Successor()
    model.table.data[:, 2:] = -torch.inf
    model.table.data[:, :2] = 0.0
    assert int(generate(model, torch.zeros(50, 1, dtype=torch.long), 3, seed=0).max()) == 1


def test_nothing_to_add_gives_the_prompt_back(gpt):
    assert generate(gpt, torch.tensor([[1, 2]]), 0).tolist() == [[1, 2]]


def test_a_model_without_logits_per_position_is_named():
    class Classifier(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 3)

        def forward(self, input_ids):
            return self.table(input_ids).mean(1)

    with pytest.raises(ModelError, match=r"Classifier returned logits of shape \(1, 3\)"):
        generate(Classifier(), torch.tensor([[1, 2]]), 1)


@pytest.mark.parametrize(
    ("arguments", "field"),
    [
        ({"input_ids": torch.tensor([1, 2])}, "input_ids"),
        ({"input_ids": torch.zeros(1, 0, dtype=torch.long)}, "input_ids"),
        ({"input_ids": torch.rand(1, 2)}, "input_ids"),
        ({"input_ids": [[1, 2]]}, "input_ids"),
        ({"input_ids": torch.tensor([[40]])}, "input_ids"),
        ({"input_ids": torch.tensor([[-1]])}, "input_ids"),
        ({"max_new_tokens": -1}, "max_new_tokens"),
        ({"max_new_tokens": 1.5}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"max_context": 0}, "max_context"),
    ],
)
def test_bad_arguments_are_named(gpt, arguments, field):
    with pytest.raises(ConfigError) as error:
        generate(gpt, **{"input_ids": torch.tensor([[1]]), "max_new_tokens": 2, **arguments})
    assert [problem.field for problem in error.value.problems] == [field]


@pytest.fixture(scope="module")
def tokenizer():
    return build_character_tokenizer(["abcdefgh ijklmnopq\n"], vocab_size=40)


def test_text_goes_in_and_comes_out(gpt, tokenizer):
    text = generate_text(gpt, tokenizer, "abc def", max_new_tokens=20, seed=3)
    assert text.startswith("abc def")
    assert text == generate_text(gpt, tokenizer, "abc def", max_new_tokens=20, seed=3)


def test_text_ends_before_the_end_token(tokenizer):
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=1, n_head=2))
    with torch.no_grad():
        model.transformer.wte.weight.zero_()
        model.transformer.ln_f.weight.zero_()
        model.transformer.ln_f.bias.fill_(1.0)
        model.transformer.wte.weight[tokenizer.eos_token_id] = 1.0
    assert generate_text(model, tokenizer, "abc", temperature=0) == "abc"


def test_an_empty_prompt_begins_a_text(gpt, tokenizer):
    text = generate_text(gpt, tokenizer, "", max_new_tokens=5, seed=0)
    assert "<s>" not in text
