"""Hugging Face folders of every head, adapters alone and merged, and chat templates."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap

import pytest
import torch
import transformers as hf
from PIL import Image

from tests.kit.toys import VOCAB_SIZE, plain_lm, tiny_gpt
from utils.errors import ExportError
from utils.tokenization import build_character_tokenizer
from utils.training import TaskSpec, export_model
from utils.training.export.folders import MARKER
from utils.training.export.hf import export_hf
from utils.training.export.image_processing import save_image_processor

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
BERT = hf.BertConfig(vocab_size=VOCAB_SIZE, max_position_embeddings=12, **SMALL)
HEADS = {
    "AutoModelForMaskedLM": lambda: hf.BertForMaskedLM(BERT),
    "AutoModelForSequenceClassification": lambda: hf.BertForSequenceClassification(BERT),
    "AutoModelForTokenClassification": lambda: hf.BertForTokenClassification(BERT),
    "AutoModelForQuestionAnswering": lambda: hf.BertForQuestionAnswering(BERT),
    "AutoModel": lambda: hf.BertModel(BERT, add_pooling_layer=False),
    "AutoModelForImageClassification": lambda: hf.ViTForImageClassification(
        hf.ViTConfig(image_size=8, patch_size=4, **SMALL)
    ),
    "AutoModelForSeq2SeqLM": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(
            vocab_size=VOCAB_SIZE, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2, n_positions=12,
            decoder_start_token_id=0,
        )
    ),
    "AutoModelForCausalLM": lambda: tiny_gpt(length=8),
}  # fmt: skip
#: peft asks transformers for it by its old name.
OLD_NAME = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.mark.parametrize("loader", HEADS)
def test_the_folder_loads_with_the_auto_class_of_its_head(loader, tmp_path):
    torch.manual_seed(0)
    model = HEADS[loader]().eval()
    result = export_model(model, ["hf"], output_dir=tmp_path)["hf"]
    assert json.loads((result.path / MARKER).read_text())["loader"] == loader
    assert result.notes[-1] == f"Load it with transformers.{loader}.from_pretrained."
    loaded = getattr(hf, loader).from_pretrained(result.path, local_files_only=True)
    assert type(loaded) is type(model)
    state = loaded.state_dict()  # AutoModel adds a pooler, which this model does not have
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    writes = loader in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM")
    assert result.parity.get("greedy_tokens_equal") == (64 if writes else None)


def test_a_chat_template_comes_along(tmp_path):
    tokenizer = build_character_tokenizer(["abcdefgh ijklmnop\n"], vocab_size=VOCAB_SIZE)
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    folder = export_model(tiny_gpt(length=8), ["hf"], output_dir=tmp_path, tokenizer=tokenizer)["hf"].path
    loaded = hf.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert loaded.apply_chat_template([{"role": "user", "content": "abc"}], tokenize=False) == "abc"


@pytest.fixture
def adapted():
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    config = peft.LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    return peft.get_peft_model(tiny_gpt(length=8), config).eval()


@OLD_NAME
def test_an_adapter_is_written_alone_and_merged(adapted, tmp_path):
    from peft import PeftModel

    exported = export_model(adapted, ["hf", "peft"], output_dir=tmp_path)
    ids = torch.randint(VOCAB_SIZE, (2, 6))
    expected = adapted(ids).logits
    assert not torch.allclose(expected, tiny_gpt(length=8).eval()(ids).logits, atol=1e-3), "the adapter does nothing"
    merged = hf.AutoModelForCausalLM.from_pretrained(exported["hf"].path, local_files_only=True)
    assert torch.allclose(merged(ids).logits, expected, atol=1e-5)
    assert "adapter is merged" in " ".join(exported["hf"].notes)
    alone = PeftModel.from_pretrained(tiny_gpt(length=8), str(exported["peft"].path)).eval()
    assert torch.allclose(alone(ids).logits, expected, atol=1e-5)
    assert exported["peft"].size_bytes < exported["hf"].size_bytes / 2
    assert exported["peft"].parity["greedy_tokens_equal"] == 64


@OLD_NAME
def test_an_adapter_names_no_folder_of_this_machine(adapted, tmp_path):
    adapted.get_base_model().config.save_pretrained(tmp_path)
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path)
    folder = export_model(adapted, ["peft"], output_dir=tmp_path / "out")["peft"].path
    for path in folder.iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


@OLD_NAME
def test_a_merge_that_computes_something_else_is_not_written(adapted, tmp_path, monkeypatch):
    merge = type(adapted.base_model).merge_and_unload

    def wrong(self, *arguments, **named):
        merged = merge(self, *arguments, **named)
        with torch.no_grad():
            merged.transformer.wte.weight[0] += 1.0
        return merged

    monkeypatch.setattr(type(adapted.base_model), "merge_and_unload", wrong)
    with pytest.raises(ExportError, match="computes something else"):
        export_model(adapted, ["hf"], output_dir=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "message"), [("peft", "has no PEFT adapter"), ("hf", "is not a transformers model")])
def test_a_plain_module_is_refused(name, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_model(plain_lm(), [name], output_dir=tmp_path)


@pytest.mark.slow
def test_a_folder_works_in_another_process(tmp_path):
    model = tiny_gpt(length=8).eval()
    folder = export_model(model, ["hf"], output_dir=tmp_path)["hf"].path
    code = """
        import sys, torch
        from transformers import AutoModelForCausalLM
        model = AutoModelForCausalLM.from_pretrained(sys.argv[1], local_files_only=True)
        print(model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False, eos_token_id=None).tolist()[0])
    """
    child = subprocess.run(
        [sys.executable, "-I", "-c", textwrap.dedent(code), str(folder)], capture_output=True, text=True, timeout=300
    )
    expected = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=5, do_sample=False, eos_token_id=None)
    assert child.stdout.strip() == str(expected.tolist()[0]), child.stderr


def vit(channels):
    return hf.ViTForImageClassification(hf.ViTConfig(image_size=8, patch_size=4, num_channels=channels, **SMALL)).eval()


def image_spec(**stated):
    return TaskSpec.image_classification(num_classes=2, preprocessing_config=stated)


@pytest.mark.parametrize(("channels", "mode", "white"), [(1, "L", [2.0]), (3, "RGB", [2.0, 0.8 / 0.4, 0.5 / 0.25])])
def test_images_go_into_the_folder_as_the_model_was_trained_on_them(channels, mode, white, tmp_path):
    spec = image_spec(mean=[0.0, 0.2, 0.5][:channels], std=[0.5, 0.4, 0.25][:channels])
    folder = tmp_path / "hf"
    assert not any("image processor" in note for note in export_hf(vit(channels), None, folder, "test", task_spec=spec).notes)
    processor = hf.AutoImageProcessor.from_pretrained(folder, local_files_only=True)
    pixels = processor(Image.new(mode, (20, 12), "white"), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, channels, 8, 8)
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor(white))


@pytest.mark.parametrize(
    ("channels", "spec", "word"),
    [(3, None, "nothing says how images are normalized"), (3, image_spec(mean=[0.5]), "normalized"), (2, image_spec(mean=0, std=1), "1 or 3")],
)
def test_an_image_processor_that_nobody_described_is_not_invented(channels, spec, word, tmp_path):
    notes = save_image_processor(vit(channels), spec, tmp_path)
    assert word in notes[0]
    assert list(tmp_path.iterdir()) == []
