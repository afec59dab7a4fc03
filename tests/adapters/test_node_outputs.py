"""Models that take outputs of their own nodes: recognised, computed from their own layers, or refused; never made up."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.kit.toys import plain_lm, tiny_gpt, token_rows
from utils.adapters import ComputationalGraphExecutor, ModelCall, ModelSignatureInspector, UniversalModelAdapter
from utils.errors import ModelError

VOCAB_SIZE, WIDTH, LENGTH = 20, 8, 6


class PostNorm(nn.Module):
    """As a builder exports it: two additions that are nowhere computed."""

    def __init__(self, batch_first=True):
        super().__init__()
        self.embedding_0_token = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.embedding_0_pos = nn.Embedding(LENGTH, WIDTH)
        self.dropout_0 = nn.Dropout(0.5)
        self.mhsa_0 = nn.MultiheadAttention(WIDTH, 2, batch_first=batch_first)
        self.layernorm_0 = nn.LayerNorm(WIDTH)
        self.ffn_0 = nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), nn.Linear(16, WIDTH))
        self.layernorm_1 = nn.LayerNorm(WIDTH)
        self.output_0 = nn.Linear(WIDTH, VOCAB_SIZE)

    def forward(self, input_0_tokens, mhsa_0_output, residual_0_output, residual_1_output):
        return self.output_0(self.layernorm_1(residual_1_output)) + 0 * (mhsa_0_output + residual_0_output).sum()


class PreNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding_0 = nn.Embedding(VOCAB_SIZE, WIDTH)
        self.layernorm_0 = nn.LayerNorm(WIDTH)
        self.mhsa_0 = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.layernorm_1 = nn.LayerNorm(WIDTH)
        self.ffn_0 = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCAB_SIZE)

    def forward(self, tokens, add_0_output, add_1_output, scale=1.0):
        return {"logits": self.head(add_1_output) * scale + 0 * add_0_output.sum()}


def made(make, *arguments):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return make(*arguments).eval()


def ids(rows=2, length=LENGTH):
    return token_rows(rows, length, VOCAB_SIZE)


# ---- the signature ----


def test_what_forward_takes_is_told():
    inspector = ModelSignatureInspector(made(PreNorm))
    assert inspector.get_parameters() == ["tokens", "add_0_output", "add_1_output", "scale"]
    assert inspector.requires_intermediate_outputs()
    info = inspector.get_signature_info()
    assert info["required"] == ["tokens", "add_0_output", "add_1_output"]
    assert (info["optional"], info["intermediate"]) == (["scale"], ["add_0_output", "add_1_output"])
    assert info["signature"].startswith("PreNorm.forward(")


@pytest.mark.parametrize("make", [tiny_gpt, plain_lm])
def test_an_ordinary_model_is_none_of_these(make):
    inspector = ModelSignatureInspector(make())
    assert not inspector.requires_intermediate_outputs()
    assert not {"args", "kwargs"} & set(inspector.get_parameters())


def test_what_is_no_model_has_no_signature():
    with pytest.raises(ModelError, match="got a str"):
        ModelSignatureInspector("model")


# ---- the nodes ----


@pytest.mark.parametrize("batch_first", [True, False])
def test_additions_after_a_branch_are_computed_as_post_norm(batch_first):
    model = made(PostNorm, batch_first)
    found = ComputationalGraphExecutor(model)(ids())
    begin = model.embedding_0_token(ids()) + model.embedding_0_pos(torch.arange(LENGTH))
    turned = begin if batch_first else begin.transpose(0, 1)
    attended = model.mhsa_0(turned, turned, turned)[0]
    first = begin + (attended if batch_first else attended.transpose(0, 1))
    normed = model.layernorm_0(first)
    expected = model.output_0(model.layernorm_1(normed + model.ffn_0(normed)))
    torch.testing.assert_close(found, expected)


def test_a_normalisation_before_the_branch_is_not_part_of_the_sum():
    model = made(PreNorm)
    found = ComputationalGraphExecutor(model)(ids())
    begin = model.embedding_0(ids())
    normed = model.layernorm_0(begin)
    first = begin + model.mhsa_0(normed, normed, normed)[0]
    torch.testing.assert_close(found, model.head(first + model.ffn_0(model.layernorm_1(first))))


def test_nobody_looks_at_padding():
    executor, rows = ComputationalGraphExecutor(made(PostNorm)), ids()
    mask = torch.ones_like(rows)
    mask[:, -2:] = 0
    other = rows.clone()
    other[:, -2:] = (other[:, -2:] + 3) % VOCAB_SIZE
    assert not torch.allclose(executor(rows), executor(other))
    torch.testing.assert_close(executor(rows, mask)[:, :-2], executor(other, mask)[:, :-2])


def test_the_same_input_gives_the_same_output(rng_untouched):
    executor = ComputationalGraphExecutor(made(PostNorm))
    assert torch.equal(executor(ids()), executor(ids()))


@pytest.mark.parametrize(
    ("make", "begins", "wanted"),
    [
        (PostNorm, {"residual_0": "embeddings", "residual_1": "layernorm_0"},
         {"mhsa_0": "mhsa_0_output", "residual_0": "residual_0_output", "residual_1": "residual_1_output"}),
        (PreNorm, {"residual_0": "embeddings", "residual_1": "residual_0"},
         {"residual_0": "add_0_output", "residual_1": "add_1_output"}),
    ],
)  # fmt: skip
def test_the_plan_shows_which_output_goes_where(make, begins, wanted):
    executor = ComputationalGraphExecutor(made(make))
    plan = {node.name: node for node in executor.plan}
    assert {name: plan[name].takes for name in begins} == {
        "residual_0": (begins["residual_0"], "mhsa_0"), "residual_1": (begins["residual_1"], "ffn_0"),
    }  # fmt: skip
    assert {name: node.parameters[0] for name, node in plan.items() if node.parameters} == wanted
    assert list(executor.plan_frame()["node"]) == list(plan)
    assert executor.plan_frame().iloc[0]["computed by"].startswith("sum of embedding_0")
    assert all(name in str(executor) for name in plan)
    known = {"input_ids"}
    for node in executor.plan:  # nothing is taken that was not computed before
        assert set(node.takes) <= known
        known.add(node.name)


def test_an_ordinary_model_has_an_empty_plan():
    executor = ComputationalGraphExecutor(tiny_gpt())
    assert executor.plan == ()
    assert "no outputs of its own nodes" in str(executor)


def test_the_layers_are_told_by_name():
    model = made(PostNorm)
    layers = ComputationalGraphExecutor(model, ModelSignatureInspector(model)).get_layer_map()
    assert list(layers)[:4] == ["embedding_0_token", "embedding_0_pos", "dropout_0", "mhsa_0"]
    assert layers["mhsa_0"] is model.mhsa_0


def test_an_ordinary_model_is_called_as_it_is():
    model = tiny_gpt(dropout=0.0).eval()
    torch.testing.assert_close(ComputationalGraphExecutor(model)(token_rows(2)), model(token_rows(2)).logits)


def test_such_a_model_learns_inside_lightnings_adapter_and_writes():
    model = made(PostNorm)
    adapter = UniversalModelAdapter(model)
    loss = adapter(ids(), labels=ids())["loss"]
    loss.backward()
    assert model.mhsa_0.in_proj_weight.grad.abs().sum() > 0
    assert set(adapter.state_dict()) == {f"model.{name}" for name in model.state_dict()}
    assert adapter.generate(ids(1, 2), max_length=LENGTH).shape == (1, LENGTH)


# ---- what is refused ----


def test_a_call_without_them_names_the_way():
    with pytest.raises(ModelError, match=r"needs \['mhsa_0_output'.*ComputationalGraphExecutor\(model\)"):
        ModelCall(made(PostNorm))({"input_ids": ids()})


@pytest.mark.parametrize("name", ["conv_3_output", "residual_2_output", "embedding_0_output"])
def test_a_node_that_nothing_computes_is_refused(name):
    scope = {}
    exec(f"def forward(self, input_ids, {name}): return {name}", scope)  # noqa: S102 - a parameter's name is what is tested
    model = type("Odd", (PreNorm,), {"forward": scope["forward"]})()
    with pytest.raises(
        ModelError, match=f"takes the output of {name.removesuffix('_output')}, which its layers do not say"
    ):
        ComputationalGraphExecutor(model)


def test_layers_that_do_not_follow_each_other_are_refused():
    model = made(PostNorm)
    model.ffn_0 = nn.Linear(WIDTH + 1, WIDTH)
    with pytest.raises(ModelError, match=r"PostNorm\.ffn_0 does not take what comes before it, \(2, 6, 8\)"):
        ComputationalGraphExecutor(model)(ids())


def test_a_layer_that_gives_no_tensor_is_refused():
    model = made(PreNorm)
    model.ffn_0 = nn.GRU(WIDTH, WIDTH, batch_first=True)
    with pytest.raises(ModelError, match=r"PreNorm\.ffn_0 gives a tuple; expected a tensor"):
        ComputationalGraphExecutor(model)(ids())


def test_an_input_that_is_no_node_is_refused():
    class Other(PreNorm):
        def forward(self, tokens, add_0_output, images):
            return self.head(add_0_output)

    with pytest.raises(ModelError, match="needs images, which is neither an input nor the output of a node"):
        ComputationalGraphExecutor(made(Other))(ids())


def test_a_model_without_embedding_is_refused():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.ffn_0 = nn.Linear(WIDTH, WIDTH)

        def forward(self, tokens, ffn_0_output):
            return ffn_0_output

    with pytest.raises(ModelError, match="no embedding among its own layers"):
        ComputationalGraphExecutor(made(Bare))(ids())


def test_more_positions_than_there_are_is_refused():
    with pytest.raises(ModelError, match="embedding_0_pos has 6 rows, and was asked for number 6"):
        ComputationalGraphExecutor(made(PostNorm))(ids(length=LENGTH + 1))


def test_attention_of_another_make_cannot_be_told_about_padding():
    class Mean(nn.Module):
        def forward(self, hidden):
            return hidden.mean(1, keepdim=True).expand_as(hidden)

    model = made(PreNorm)
    model.mhsa_0 = Mean()
    executor, mask = ComputationalGraphExecutor(model), torch.ones(2, LENGTH)
    executor(ids(), mask)
    mask[0, -1] = 0
    with pytest.raises(ModelError, match="is a Mean, which cannot be told about padding"):
        executor(ids(), mask)
