"""Fine-tuning: which parameters are trained, small checkpoints, exact resume, another base refused, merge and export."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import nn

from benchmarks.finetuning import STEPS, load_family, samples, save_family, tune, verdicts
from tests.kit.toys import assert_same_run
from utils.data import prepare_conversations
from utils.errors import CheckpointError, ConfigError, ModelError
from utils.models import extend_vocabulary
from utils.tokenization import build_character_tokenizer
from utils.training import Callback, Trainer, TrainingConfig, export_model
from utils.training.engine.checkpointing.store import read_checkpoint
from utils.training.export.peft import portable_base
from utils.training.finetuning import NEW_TOKENS, fine_tuned, linear_layers, trained_tokens, tuning_plan
from utils.training.stored_models import load_results

pytest.importorskip("peft")

# peft asks transformers for it by its old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save_family("Llama", folder)
    return folder


@pytest.fixture(scope="module")
def lora_run(llama, tmp_path_factory):
    return tune(llama, "causal_lm", "lora", tmp_path_factory.mktemp("runs"))


# The other families and modes are in docs/FINETUNING.md, by benchmarks/finetuning.py.
@pytest.mark.parametrize(
    ("name", "mode"),
    [
        ("GPT-2", "lora"),
        ("BERT", "lora"),
        ("ViT", "lora"),
        pytest.param("T5", "lora", marks=pytest.mark.slow),
        pytest.param("GPT-2", "full", marks=pytest.mark.slow),
        pytest.param("ViT", "full", marks=pytest.mark.slow),
    ],
)
def test_a_family_is_trained_resumed_merged_exported_and_reloaded(name, mode, tmp_path):
    found = verdicts(name, mode, tmp_path)
    assert found == {**dict.fromkeys(STEPS, "yes"), **({"merge": "-"} if mode == "full" else {})}


def test_a_checkpoint_of_a_lora_run_holds_only_what_was_trained(llama, lora_run):
    checkpoint = read_checkpoint(lora_run.checkpoint_path)
    assert checkpoint["model"]
    assert all("lora_" in name for name in checkpoint["model"])
    assert checkpoint["base_model"]["class"] == "LlamaForCausalLM"
    base = hf.LlamaForCausalLM.from_pretrained(llama).state_dict()
    inside = lora_run.model.get_base_model().state_dict()
    assert all(torch.equal(value, inside[name.replace(".weight", ".base_layer.weight")]) for name, value in base.items()
               if name.endswith("q_proj.weight"))  # fmt: skip


def test_the_share_and_the_memory_are_reported_and_every_trained_tensor_moved(lora_run):
    facts = lora_run.fine_tuning
    trained = sum(p.numel() for p in lora_run.model.parameters() if p.requires_grad)
    assert (facts["mode"], facts["trained"], facts["unmoved"]) == ("lora", trained, [])
    # Adam keeps two fp32 numbers a parameter and a step count a tensor.
    tensors = sum(p.requires_grad for p in lora_run.model.parameters())
    assert facts["optimizer_bytes"] == 8 * trained + 4 * tensors
    assert any(f"{trained:,} of" in sentence for sentence in lora_run.notices)
    assert any("optimizer's state takes" in sentence for sentence in lora_run.notices)


def test_a_trained_tensor_that_no_gradient_reaches_is_named(tmp_path):
    class WithUnused(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(60, 8)
            self.head = nn.Linear(8, 60)
            self.head.unused = nn.Parameter(torch.ones(3))

        def forward(self, input_ids):
            return self.head(self.embed(input_ids))

    config = TrainingConfig(finetune="head", epochs=2, batch_size=4, run_name="r", output_dir=str(tmp_path))
    model = WithUnused()
    before = model.embed.weight.detach().clone()
    results = Trainer(model, training_config=config, task_spec={"name": "x", "task_type": "causal_lm"}).train(
        samples("causal_lm")
    )
    assert results.fine_tuning["unmoved"] == ["head.unused"]
    assert any("did not change in the first steps: head.unused" in sentence for sentence in results.notices)
    assert torch.equal(model.embed.weight, before)
    assert all(p.requires_grad for p in model.parameters())


def test_another_base_is_refused_by_name(llama, lora_run, tmp_path):
    other = hf.LlamaForCausalLM.from_pretrained(llama)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    other.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="adapters of the base model LlamaForCausalLM"):
        tune(tmp_path, "causal_lm", "lora", Path(lora_run.run_dir).parent)


def test_a_finished_run_is_loaded_from_its_folder(llama, lora_run):
    found = load_results(Path(lora_run.run_dir), str(llama), {}, {"name": str(llama)})
    mine, theirs = lora_run.model.state_dict(), found.model.state_dict()
    assert mine.keys() == theirs.keys()
    best = read_checkpoint(lora_run.best_model_path)["model"]
    assert all(torch.equal(theirs[name], value) for name, value in best.items())


@pytest.mark.parametrize("chosen", [False, True])
def test_a_run_of_adapters_needs_no_description_of_its_model(llama, lora_run, tmp_path, chosen):
    run = tmp_path / "run"
    shutil.copytree(lora_run.run_dir, run)
    shutil.copytree(llama, run / "exports" / "hf", dirs_exist_ok=True)  # an export is the merged model, without adapters
    model = ("pretrained", {"source": str(llama)}, {"name": "pretrained"}) if chosen else ("gpt-small", {"vocab_size": 9})
    found = load_results(run, *model).model.state_dict()
    best = read_checkpoint(lora_run.best_model_path)["model"]
    assert all(torch.equal(found[name], value) for name, value in best.items())


@pytest.mark.parametrize("name", ["code.py", "os:system", "folder"])
def test_what_a_run_recorded_about_its_model_runs_no_code(lora_run, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    Path("code.py").write_text("raise SystemExit('run')")
    Path("folder").mkdir()
    Path("folder/model.py").write_text("raise SystemExit('run')")
    Path("folder/config.json").write_text('{"width": 8}')
    run = tmp_path / "runs" / "theirs"
    shutil.copytree(lora_run.run_dir / "checkpoints", run / "checkpoints")
    text = (lora_run.run_dir / "config.yaml").read_text().partition("\nmodel:")[0]
    (run / "config.yaml").write_text(f"{text}\nmodel: {{name: '{name}'}}\n")
    sizes = {"vocab_size": 16, "max_seq_len": 8, "n_layer": 1, "n_embd": 8, "n_head": 2}
    with pytest.raises(CheckpointError):  # of the model that was named here
        load_results(run, "gpt-small", sizes)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("models--owner--name/snapshots/" + "a1" * 20, ("owner/name", "a1" * 20, False)),
        ("tiny", ("tiny", None, True)),
        ("", (None, None, False)),
    ],
)
def test_an_adapter_names_its_base_as_others_can_find_it(tmp_path, place, expected):
    file = tmp_path / "adapter_config.json"
    base = str(tmp_path / place) if place else None
    file.write_text(json.dumps({"base_model_name_or_path": base, "revision": None}))
    name, is_folder = portable_base(tmp_path)
    found = json.loads(file.read_text())
    assert (found["base_model_name_or_path"], found["revision"], is_folder) == expected
    assert name == expected[0]


def test_the_fused_loss_and_gradient_checkpointing_give_the_same(llama, lora_run, tmp_path):
    for number, changes in enumerate(({"fused_loss": "on"}, {"gradient_checkpointing": True})):
        other = tune(llama, "causal_lm", "lora", tmp_path / str(number), **changes)
        assert other.loss_history == pytest.approx(lora_run.loss_history, rel=1e-4)
        assert other.fine_tuning["unmoved"] == []


def test_the_last_layers_and_what_follows_them_are_trained(llama):
    model = load_family(llama, "causal_lm").model
    config = TrainingConfig(finetune="last_layers", finetune_layers=1)
    with fine_tuned(model, config):
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        name for name, _ in model.named_parameters() if name.startswith(("model.layers.1.", "model.norm.", "lm_head."))
    }
    assert all(p.requires_grad for p in model.parameters())
    with pytest.raises(ConfigError, match="has 2 blocks"), fine_tuned(model, config.replace(finetune_layers=3)):
        pass


def chat_model(tied):
    """A Llama with room for new tokens, its tokenizer and conversations whose chat template adds two."""
    tokenizer = build_character_tokenizer(["0123456789 ?.systemuserassistant\nSystem: User: Assistant: Tool:"], 100)
    torch.manual_seed(0)
    config = hf.LlamaConfig(
        vocab_size=len(tokenizer) + 4, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, tie_word_embeddings=tied,
    )  # fmt: skip
    model = hf.LlamaForCausalLM(config)
    chats = [{"question": f"{n}?", "answer": f"{n + 1}."} for n in range(40)]
    data = prepare_conversations(chats, tokenizer, model=model, chat_template="chatml", max_length=64)
    return model, data


def tune_chat(tied, folder, *, stop_at=None, resume_from=None, **changes):
    class Stop(Callback):
        def on_step_end(self, step, trainer, logs=None):
            if step == stop_at:
                trainer.request_stop("test")

    model, data = chat_model(tied)
    config = TrainingConfig(
        max_steps=4, batch_size=8, learning_rate=1e-2, finetune="lora", lora_rank=2, output_dir=str(folder), run_name="chat", **changes
    )  # fmt: skip
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trainer = Trainer(model, None, config, data.task_spec, tokenizer=data.tokenizer, callbacks=[Stop()])
    return before, trainer.train(data.train, data.validation, resume_from=resume_from), data


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_lora_trains_the_rows_of_tokens_that_a_chat_template_adds_and_no_others(tied, tmp_path):
    before, results, data = tune_chat(tied, tmp_path / "unbroken")
    new = data.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert any("the embeddings of 2 new tokens" in notice for notice in results.notices)
    assert results.fine_tuning["unmoved"] == []
    merged = copy.deepcopy(results.model).merge_and_unload().state_dict()
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        moved = (merged[name] != before[name]).any(1).nonzero().flatten().tolist()
        assert moved == sorted(new), name

    export = export_model(results, formats=["hf"])["hf"]
    loaded = hf.AutoModelForCausalLM.from_pretrained(export.path).state_dict()
    assert torch.equal(loaded["model.embed_tokens.weight"], merged["model.embed_tokens.weight"])

    tune_chat(tied, tmp_path / "stopped", stop_at=2)
    continued = tune_chat(tied, tmp_path / "stopped", resume_from="auto")[1]
    assert_same_run(results, continued)


def test_rows_of_new_tokens_are_found_again_in_a_stored_run_and_missing_ones_are_named(tmp_path):
    _, results, data = tune_chat(True, tmp_path)
    ids = torch.tensor([data.train[0]["input_ids"].tolist()])
    plain = chat_model(True)[0]
    plain.__dict__.pop(NEW_TOKENS)
    base = tmp_path / "base"
    plain.save_pretrained(base)
    stored = load_results(results.run_dir, str(base), {})
    with torch.no_grad():
        assert torch.equal(stored.model.eval()(input_ids=ids).logits, results.model.eval()(input_ids=ids).logits)
    trainer = Trainer(plain, None, results.training_config.replace(max_steps=5), data.task_spec, tokenizer=data.tokenizer)
    with pytest.raises(CheckpointError, match="holds the rows of the new tokens"):
        trainer.train(data.train, data.validation, resume_from=results.checkpoint_path)


def test_extended_tokens_are_trained_too_and_counted_before_training(llama):
    model = hf.LlamaForCausalLM.from_pretrained(llama)
    tokenizer = build_character_tokenizer(["abc"], 20)
    config = TrainingConfig(finetune="lora")
    without = tuning_plan(model, config).trained
    (token,) = extend_vocabulary(model, tokenizer, ["<tool>"])
    counted = tuning_plan(model, config).trained
    assert counted > without
    with fine_tuned(model, config) as tuned:
        assert tuned.trained == counted
        assert trained_tokens(tuned.model) == (token,)


def test_targets_are_found_for_a_plain_network_and_checked_by_name(llama):
    plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))
    assert linear_layers(plain) == ["0", "2"]
    model = load_family(llama, "causal_lm").model
    assert len(linear_layers(model)) == 14
    with (
        pytest.raises(ConfigError, match=r"no linear layer 'q_prj'. Did you mean 'q_proj'"),
        fine_tuned(model, TrainingConfig(finetune="lora", lora_targets=["q_prj"])),
    ):
        pass
    with fine_tuned(model, TrainingConfig(finetune="lora", lora_targets=["q_proj"])) as tuned:
        assert sum(hasattr(module, "lora_A") for module in tuned.model.modules()) == 2
    with (
        pytest.raises(ModelError, match="adapters of an earlier run"),
        fine_tuned(model, TrainingConfig(finetune="lora")),
    ):
        pass


def test_a_cell_with_lora_can_be_run_twice(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = load_family(llama, "causal_lm").model
    config = TrainingConfig(finetune="lora", max_steps=4, batch_size=4, run_name="twice", precision="32")

    def cell(config):
        return Trainer(model, None, config).train(samples("causal_lm"), resume_from="auto")

    first, again, other = cell(config), cell(config), cell(config.replace(run_name="other"))
    assert (first.steps, again.steps, other.steps) == (4, 4, 4)
    assert first.model is again.model is other.model


def test_settings_that_exclude_each_other_are_refused():
    with pytest.raises(ConfigError, match="strategy"):
        TrainingConfig(finetune="lora", strategy="fsdp")
    assert TrainingConfig(lora_targets="q_proj, v_proj").lora_targets == ("q_proj", "v_proj")
    with pytest.raises(ConfigError, match="lora_targets"):
        TrainingConfig(lora_targets=[])
