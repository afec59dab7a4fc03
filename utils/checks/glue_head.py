"""A copy of a model over tokens with an output layer of another size, for classifying texts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from utils.adapters.facts import model_facts
from utils.adapters.forward import ModelCall
from utils.adapters.output_layer import find_output_layer
from utils.adapters.special_ids import set_special_ids
from utils.errors import ModelError


def glue_model(model: nn.Module | Callable[[int], nn.Module], outputs: int, tokenizer: Any) -> nn.Module:
    """A model that gives `outputs` scores for each text; `model` itself is not changed.

    A factory is called with the number. A transformers model becomes the class of its family for sequence classification, with
    all weights that both have. Of any other module the output layer is replaced in a copy, and the scores of positions are
    pooled (see `PooledClassifier`). Raises:
        ModelError: the module has no linear output layer, or the factory returns something else.
    """
    if not isinstance(model, nn.Module):
        made = model(outputs)
        if not isinstance(made, nn.Module):
            raise ModelError(
                f"the factory returned a {type(made).__name__}; expected an nn.Module with {outputs} outputs."
            )
        return made
    family = _of_family(model, outputs)
    made = PooledClassifier(model, outputs, tokenizer) if family is None else family
    set_special_ids(made, tokenizer)
    return made


def _of_family(model: nn.Module, outputs: int) -> nn.Module | None:
    """The transformers class for sequence classification with this model's body, or None."""
    from transformers import AutoModelForSequenceClassification, PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return None
    config = copy.deepcopy(model.config)
    if type(config) not in AutoModelForSequenceClassification._model_mapping:
        return None
    config.num_labels = outputs
    config.problem_type = "regression" if outputs == 1 else "single_label_classification"
    made: nn.Module = AutoModelForSequenceClassification.from_config(config)  # type: ignore[no-untyped-call]
    body: Any = made.base_model
    # Parts that only one of the two has, such as a pooler, keep their initial weights.
    body.load_state_dict(model.base_model.state_dict(), strict=False)
    return made.to(next(model.parameters()).device)


class PooledClassifier(nn.Module):
    """A copy of a module over token ids whose output layer gives `outputs` scores: those of the last token of each text.

    The last token is the one position that a causal model and one that sees both sides have both read the whole text at. Models
    that give one row of scores a text are taken as they are.

    Raises:
        ModelError: no linear layer makes the logits.
    """

    def __init__(self, model: nn.Module, outputs: int, tokenizer: Any) -> None:
        super().__init__()
        self.body = copy.deepcopy(model)
        self.pad_id = getattr(tokenizer, "pad_token_id", None)
        self.vocab_size, self.max_seq_len = model_facts(model).vocab_size, model_facts(model).max_length
        self._call = [ModelCall(self.body)]  # in a list: the module is registered once
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        ids = torch.zeros(2, 4, dtype=torch.long, device=device)
        mode = self.body.training
        self.body.eval()
        layer, reason = find_output_layer(self.body, lambda: self._call[0]({"input_ids": ids}))
        self.body.train(mode)
        if layer is None:
            raise ModelError(
                f"{type(model).__name__} cannot be given {outputs} outputs: {reason}. Give a factory, "
                "lambda outputs: MyModel(outputs)."
            )
        new = nn.Linear(layer.in_features, outputs, bias=layer.bias is not None).to(device)
        for module in list(self.body.modules()):
            for child, value in list(module.named_children()):
                if value is layer:
                    setattr(module, child, new)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Scores (B, outputs) for texts (B, T); padding is on the right."""
        batch = {"input_ids": input_ids}
        if attention_mask is not None:
            batch["attention_mask"] = attention_mask
        scores: Tensor = self._call[0].uncounted(batch)
        if scores.dim() == 2:
            return scores
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids) if self.pad_id is None else (input_ids != self.pad_id).long()
        last = (attention_mask.sum(1) - 1).clamp_min(0)
        return scores[torch.arange(len(scores), device=scores.device), last]
