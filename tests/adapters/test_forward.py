"""Models of any make are called with what they take, and their logits are found."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tests.kit.toys import tiny_gpt
from utils.adapters import ModelCall
from utils.adapters.facts import model_facts
from utils.errors import ModelError

IDS = torch.tensor([[1, 2, 3]])
LOGITS = torch.rand(1, 3, 5)


def model(forward):
    return type("Model", (nn.Module,), {"forward": forward})()


@pytest.mark.parametrize("forward", [
    lambda self, input_ids: LOGITS, lambda self, x: LOGITS, lambda self, *args: LOGITS, lambda self, **kw: LOGITS,
    lambda self, tokens, mask=None: (LOGITS, "cache"), lambda self, input_ids: {"logits": LOGITS, "loss": None},
    lambda self, input_ids: SimpleNamespace(logits=LOGITS), lambda self, input_ids, *, attention_mask=None: [LOGITS],
])  # fmt: skip
def test_logits_are_found(forward):
    batch = {"input_ids": IDS, "labels": IDS, "attention_mask": torch.ones_like(IDS)}
    assert ModelCall(model(forward))(batch) is LOGITS


def test_only_known_names_are_passed_and_labels_never():
    seen = {}

    def forward(self, input_ids, attention_mask=None, labels=None, use_cache=True):
        seen.update(attention_mask=attention_mask, labels=labels, use_cache=use_cache)
        return LOGITS

    mask = torch.ones_like(IDS)
    ModelCall(model(forward))({"input_ids": IDS, "labels": IDS, "attention_mask": mask, "token_type_ids": IDS})
    assert seen["attention_mask"] is mask
    assert seen["labels"] is None
    assert seen["use_cache"] is False


@pytest.mark.parametrize(("forward", "says"), [
    (lambda self: LOGITS, "takes no arguments"), (lambda self, *, image: LOGITS, "takes \\['image'\\]"),
    (lambda self, input_ids: "text", "returned a str"), (lambda self, input_ids: {"hidden": LOGITS}, "keys \\['hidden'\\]"),
])  # fmt: skip
def test_misfits_are_named(forward, says):
    with pytest.raises(ModelError, match=says):
        ModelCall(model(forward))({"input_ids": IDS})


def test_a_transformers_model_gives_its_logits():
    gpt = tiny_gpt().eval()
    assert torch.equal(ModelCall(gpt)({"input_ids": IDS, "labels": IDS}), gpt(input_ids=IDS).logits)


def test_facts_of_models_of_any_make():
    facts = model_facts(tiny_gpt())
    assert (facts.vocab_size, facts.max_length) == (32, 16)
    plain = nn.Module()
    plain.position_embedding, plain.tokens = nn.Embedding(64, 4), nn.Embedding(7, 4)
    assert model_facts(plain).vocab_size == 7
    assert model_facts(nn.Linear(2, 2)).vocab_size is None


# ---- wrappers ----

PADDED = {
    "input_ids": torch.tensor([[3, 4, 0, 0], [5, 6, 7, 1]]), "labels": torch.tensor([0, 1]),
    "attention_mask": torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
}  # fmt: skip


class Pooling(nn.Module):
    """The mean of the tokens that the mask keeps: (B, T) -> (B, 2)."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(torch.arange(16.0).reshape(8, 2))

    def forward(self, input_ids, attention_mask=None):
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        return (self.embedding(input_ids) * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


class PassesOn(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Named(PassesOn):
    def forward(self, input_ids, **kwargs):
        return self.inner(input_ids, **kwargs)


class OtherNames(PassesOn):
    def forward(self, tokens, **kwargs):
        return self.inner(tokens, **kwargs)


class WithHead(PassesOn):
    def __init__(self, inner):
        super().__init__(inner)
        self.head = nn.Identity()

    def forward(self, *args, **kwargs):
        return self.head(self.inner(*args, **kwargs))


class AdapterTuner(nn.Module):
    """The shape of PEFT's models: the base model two levels down, `get_base_model`, arguments passed on."""

    def __init__(self, inner):
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = inner
        self.dropout = nn.Identity()

    def get_base_model(self):
        return self.base_model.model

    def forward(self, *args, **kwargs):
        return self.get_base_model()(*args, **kwargs)


class TakesEverything(Pooling):
    def forward(self, **batch):
        return super().forward(batch["input_ids"], batch.get("attention_mask"))


class KeywordsOfItsOwn(Pooling):
    def forward(self, input_ids, **options):
        return super().forward(input_ids, options.get("attention_mask"))


WRAPPERS = {
    "compiled": lambda: torch.compile(Pooling(), backend="eager"),
    "data parallel": lambda: nn.DataParallel(Pooling()),
    "averaged": lambda: torch.optim.swa_utils.AveragedModel(Pooling()),
    "adapter": lambda: AdapterTuner(Pooling()),
    "compiled adapter": lambda: torch.compile(AdapterTuner(Pooling()), backend="eager"),
    "single child": lambda: PassesOn(Pooling()),
    "single child, twice": lambda: PassesOn(PassesOn(Pooling())),
    "ids by name": lambda: Named(Pooling()),
    "ids under another name": lambda: OtherNames(Pooling()),
    "one of two children": lambda: WithHead(Pooling()),
    "everything by name": TakesEverything,
    "keywords without a child": KeywordsOfItsOwn,
}


@pytest.mark.parametrize("kind", WRAPPERS)
def test_a_mask_reaches_the_model_inside_a_wrapper(kind):
    call, wanted = ModelCall(WRAPPERS[kind]()), Pooling()(PADDED["input_ids"], PADDED["attention_mask"])
    assert torch.equal(call(PADDED), wanted)
    assert call.lost_mask(PADDED) is None


def test_a_compiled_or_adapted_model_is_called_with_what_the_plain_one_is_called_with():
    gpt = tiny_gpt().eval()
    batch = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "labels": IDS, "position_ids": IDS}
    plain = ModelCall(gpt).inputs(batch)
    for wrapper in (torch.compile(gpt, backend="eager"), AdapterTuner(gpt), nn.DataParallel(gpt)):
        assert ModelCall(wrapper).inputs(batch) == plain
    assert set(plain[1]) == {"input_ids", "attention_mask", "position_ids", "use_cache"}


class TakesNoMask(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(8, 2)

    def forward(self, input_ids):
        return self.embedding(input_ids).mean(1)


class MakesItsOwnMask(PassesOn):
    def forward(self, input_ids, **kwargs):
        return self.inner(input_ids, attention_mask=(input_ids != 0).long(), **kwargs)


@pytest.mark.parametrize("make", [
    lambda: PassesOn(nn.Sequential(TakesNoMask())), lambda: TakesEverythingOn(TakesNoMask()), lambda: MakesItsOwnMask(Pooling()),
])  # fmt: skip
def test_a_wrapper_that_cannot_pass_a_mask_on_is_called_without_it(make):
    call = ModelCall(make())
    assert call(PADDED).shape == (2, 2)
    assert "takes no attention_mask" in call.lost_mask(PADDED)
    assert "attention_mask" not in call.inputs(PADDED)[1]


class TakesEverythingOn(PassesOn):
    def forward(self, **batch):
        return self.inner(**batch)


def test_a_type_error_of_the_models_own_is_not_hidden():
    class Broken(Pooling):
        def forward(self, input_ids, attention_mask=None):
            return super().forward(input_ids, mask=attention_mask)

    with pytest.raises(TypeError, match="unexpected keyword argument 'mask'"):
        ModelCall(Broken())(PADDED)


@pytest.mark.parametrize("name", ["src_key_padding_mask", "key_padding_mask"])
def test_torchs_padding_masks_are_filled_in_the_other_way_round(name):
    seen = {}

    def forward(self, tokens, src_key_padding_mask=None, key_padding_mask=None):
        seen.update(src_key_padding_mask=src_key_padding_mask, key_padding_mask=key_padding_mask)
        return LOGITS

    def only_key_padding_mask(self, tokens, key_padding_mask=None):
        return forward(self, tokens, key_padding_mask=key_padding_mask)

    call = ModelCall(model(forward if name == "src_key_padding_mask" else only_key_padding_mask))
    call(PADDED)
    assert torch.equal(seen[name], PADDED["attention_mask"] == 0)
    assert call.lost_mask(PADDED) is None


@pytest.mark.parametrize(("name", "forward"), [
    ("mask", lambda self, input_ids, mask=None: LOGITS if mask is None else None),
    ("padding_mask", lambda self, input_ids, padding_mask=None: LOGITS if padding_mask is None else None),
    ("attn_mask", lambda self, tokens, *, attn_mask=None: LOGITS if attn_mask is None else None),
])  # fmt: skip
def test_a_mask_of_uncertain_meaning_is_not_filled_in_but_named(name, forward):
    call = ModelCall(model(forward))
    assert call(PADDED | {"labels": IDS}) is LOGITS
    assert f"parameter {name!r}" in call.lost_mask(PADDED)


@pytest.mark.parametrize("outputs", [
    (torch.tensor(1.5), LOGITS), [torch.tensor(1.5), None, LOGITS], {"loss": torch.tensor(1.5), "logits": LOGITS},
    SimpleNamespace(loss=torch.tensor(1.5), logits=LOGITS),
])  # fmt: skip
def test_a_loss_in_front_of_the_logits_is_not_taken_for_them(outputs):
    assert ModelCall(model(lambda self, input_ids: outputs))({"input_ids": IDS}) is LOGITS


@pytest.mark.parametrize("outputs", [torch.tensor(1.5), (torch.tensor(1.5),), {"logits": torch.tensor(1.5)}])
def test_a_loss_alone_is_refused(outputs):
    with pytest.raises(ModelError, match=r"expected logits"):
        ModelCall(model(lambda self, input_ids: outputs))({"input_ids": IDS})
