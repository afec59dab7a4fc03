"""Each family of models becomes ONNX files that another program can run, from the names and shapes that the files state."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from tests.kit.task_toys import PAD, VOCAB, PlainEncoderDecoder, tiny_bert, tiny_t5
from utils.adapters import ComputationalGraphExecutor
from utils.errors import ExportError
from utils.models.images import LeNet
from utils.training import export_model
from utils.training.export import onnx_measures
from utils.training.export.onnx import OnnxOptions, export_onnx, export_onnx_int8, write_onnx

STEPS = 64


def table():
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))


def table_with_lora():
    from peft import LoraConfig, get_peft_model

    return get_peft_model(table(), LoraConfig(target_modules=["0"], r=2, init_lora_weights=False))


class Built(nn.Module):
    """As a visual builder exports it: outputs of earlier nodes are arguments of forward."""

    def __init__(self):
        super().__init__()
        self.embedding_0_token = nn.Embedding(VOCAB, 8)
        self.mhsa_0 = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layernorm_0 = nn.LayerNorm(8)
        self.output_0 = nn.Linear(8, VOCAB)

    def forward(self, input_0_tokens, mhsa_0_output, residual_0_output):
        return self.output_0(self.layernorm_0(residual_0_output) + 0 * mhsa_0_output)


def tiny_vit():
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(
        ViTConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            image_size=16,
            patch_size=8,
        )
    )


def ids_of(*shape):
    return torch.randint(2, VOCAB, shape, generator=torch.Generator().manual_seed(5))


#: Family -> (model, inputs that differ from the traced ones in every size that may vary).
FAMILIES = {
    "masked lm": (
        lambda: tiny_bert("ForMaskedLM", layers=1),
        {"input_ids": ids_of(4, 9), "attention_mask": torch.ones(4, 9).long()},
    ),
    "text classifier": (
        lambda: tiny_bert("ForSequenceClassification", layers=1),
        {"input_ids": ids_of(3, 7), "attention_mask": torch.ones(3, 7).long()},
    ),
    "token classifier": (
        lambda: tiny_bert("ForTokenClassification", layers=1),
        {"input_ids": ids_of(1, 11), "attention_mask": torch.ones(1, 11).long()},
    ),
    "vit": (tiny_vit, {"pixel_values": torch.randn(4, 3, 16, 16)}),
    "lenet": (LeNet, {"pixel_values": torch.randn(5, 1, 28, 28)}),
    "table": (table, {"inputs": torch.randn(7, 5)}),
    "lora": (table_with_lora, {"inputs": torch.randn(7, 5)}),
    "visual builder": (Built, {"input_ids": ids_of(3, 9)}),
    "plain encoder-decoder": (
        PlainEncoderDecoder,
        {"input_ids": ids_of(3, 9), "decoder_input_ids": ids_of(3, 6), "attention_mask": torch.ones(3, 9).long()},
    ),
}
SLOW = {"masked lm", "text classifier", "token classifier", "vit"}
PARAMETERS = [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in FAMILIES]


def run(file, inputs, outputs=None):
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return session.run(outputs, {name: np.asarray(value) for name, value in inputs.items()})


@pytest.fixture(scope="module", params=PARAMETERS)
def family(request, tmp_path_factory):
    make, inputs = FAMILIES[request.param]
    model = make().eval()
    result = export_onnx(model, None, tmp_path_factory.mktemp("family") / "onnx", "test")
    return SimpleNamespace(name=request.param, model=model, inputs=inputs, result=result)


def test_other_batches_and_lengths_give_the_models_logits(family):
    arguments = tuple(family.inputs.values()) if len(family.inputs) == 1 else ()
    named = {} if arguments else family.inputs
    model = ComputationalGraphExecutor(family.model) if family.name == "visual builder" else family.model
    with torch.no_grad():
        expected = model(*arguments, **named)
    expected = getattr(expected, "logits", expected)
    file = family.result.path / "model.onnx"
    mask = {"attention_mask": torch.ones(3, 9).long()} if family.name == "visual builder" else {}
    (logits,) = run(file, {**family.inputs, **mask}, ["logits"])
    torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=1e-4, atol=1e-5)


def test_the_result_states_inputs_parity_and_times_by_batch_size(family):
    note = next(note for note in family.result.notes if "Inputs" in note)
    assert all(name in note for name in family.inputs)
    assert len(family.result.parity["shapes"]) == 3
    assert family.result.parity["max_abs_diff"] <= family.result.parity["tolerance"]
    assert list(family.result.benchmark["by_batch_size"]) == [1, 4, 8]
    assert ("greedy_tokens_equal" in family.result.parity) == (family.name == "plain encoder-decoder")


@pytest.mark.slow
def test_an_encoder_and_a_decoder_write_the_models_own_tokens(tmp_path):
    model = tiny_t5(layers=1).eval()
    result = export_onnx(model, None, tmp_path / "onnx", "test")
    assert result.parity["greedy_tokens_equal"] == STEPS
    ids, mask = ids_of(2, 9), torch.ones(2, 9).long()
    (state,) = run(result.path / "encoder_model.onnx", {"input_ids": ids, "attention_mask": mask})
    decoder = onnxruntime.InferenceSession(result.path / "decoder_model.onnx", providers=["CPUExecutionProvider"])
    written = np.full((2, 1), PAD)
    given = {"encoder_hidden_states": state, "encoder_attention_mask": mask.numpy()}
    for _ in range(12):
        (logits,) = decoder.run(["logits"], {"input_ids": written, **given})
        written = np.concatenate([written, logits[:, -1:].argmax(-1)], axis=1)
    own = model.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=12,
        min_new_tokens=12,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=PAD,
    )
    assert written.tolist() == own.tolist()


# int8

INT8 = {"lenet": "argmax_agreement", "table": "argmax_agreement", "plain encoder-decoder": "perplexity_ratio"}


@pytest.mark.parametrize("family", list(INT8), indirect=True)
def test_int8_weights_keep_the_predictions_and_the_measure_is_stated(family, tmp_path):
    name, model, inputs = family.name, family.model, family.inputs
    traced = None if name == "table" else family.result.path  # the one is traced in seconds, and once more here
    result = export_onnx_int8(model, None, tmp_path / "onnx-int8", "test", traced=traced)
    assert result.format == "onnx-int8"
    measured, limit = result.parity[INT8[name]], result.parity["limit"]
    assert measured >= limit if INT8[name] == "argmax_agreement" else measured <= limit
    (logits,) = run(result.path / "model.onnx", inputs, ["logits"])
    assert np.isfinite(logits).all()
    if name == "lenet":
        assert result.size_bytes < 0.4 * sum(4 * parameter.numel() for parameter in model.parameters())


def test_int8_weights_that_change_predictions_are_not_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_measures, "LEAST_AGREEMENT", 1.01)
    with pytest.raises(
        ExportError, match=r"int8 weights change the model too much: .*% of its predictions.*\['onnx'\]"
    ):
        export_onnx_int8(table().eval(), None, tmp_path / "onnx-int8", "test")
    assert list(tmp_path.iterdir()) == []


class Recurrent(nn.Module):
    """Ids (B, T) -> logits (B, T, V) by a recurrent layer, which the exporter writes as a loop over T."""

    def __init__(self, layer: type[nn.Module]) -> None:
        super().__init__()
        self.embedding, self.layer, self.head = nn.Embedding(9, 8), layer(8, 8, batch_first=True), nn.Linear(8, 9)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(self.layer(self.embedding(input_ids))[0])


@pytest.mark.parametrize("layer", [nn.GRU, nn.LSTM])
def test_a_recurrent_model_is_exported_a_second_time_as_well(layer, tmp_path):
    once = tmp_path / "once"
    once.mkdir()
    write_onnx(Recurrent(layer).eval(), once, OnnxOptions(validate=False, benchmark=False))
    result = export_model(Recurrent(layer), ["onnx"], output_dir=tmp_path)["onnx"]
    assert result.other_process["greedy_tokens_equal"] == 64
