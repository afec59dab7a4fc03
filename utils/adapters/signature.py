"""Inputs that a model's forward takes, and outputs of its own nodes that a visual builder turned into arguments."""

from __future__ import annotations

import inspect
import re
from typing import Any

from torch import nn

from utils.errors import ModelError

# What builders call a node's output: kind, number, "output", such as "mhsa_0_output". `attention_mask` is not one.
_NODE_OUTPUT = re.compile(r"(?P<node>[A-Za-z]\w*_\d+)_output")


class ModelSignatureInspector:
    """The parameters of a model's forward.

    Args:
        model: any `nn.Module`.
    Raises:
        ModelError: no module.
    """

    def __init__(self, model: nn.Module) -> None:
        if not isinstance(model, nn.Module):
            raise ModelError(f"ModelSignatureInspector takes an nn.Module; got a {type(model).__name__}.")
        self.model = model
        kinds = inspect.Parameter
        self._parameters = {
            name: parameter
            for name, parameter in inspect.signature(model.forward).parameters.items()
            if parameter.kind not in (kinds.VAR_POSITIONAL, kinds.VAR_KEYWORD)
        }

    def get_parameters(self) -> list[str]:
        """The parameters' names, in order; *args and **kwargs are left out."""
        return list(self._parameters)

    def get_required_parameters(self) -> list[str]:
        """Parameters without a default."""
        return [name for name, entry in self._parameters.items() if entry.default is inspect.Parameter.empty]

    def get_intermediate_nodes(self) -> dict[str, str]:
        """Required parameters that are outputs of nodes: name -> node, such as {"mhsa_0_output": "mhsa_0"}."""
        matches = ((name, _NODE_OUTPUT.fullmatch(name)) for name in self.get_required_parameters())
        return {name: match["node"] for name, match in matches if match}

    def requires_intermediate_outputs(self) -> bool:
        """Whether the model can only be called with outputs of its own nodes; see `ComputationalGraphExecutor`."""
        return bool(self.get_intermediate_nodes())

    def get_signature_info(self) -> dict[str, Any]:
        """parameters, required, optional, intermediate (names); requires_intermediate_outputs (bool); signature (text)."""
        required = self.get_required_parameters()
        return {
            "parameters": self.get_parameters(),
            "required": required,
            "optional": [name for name in self._parameters if name not in required],
            "intermediate": list(self.get_intermediate_nodes()),
            "requires_intermediate_outputs": self.requires_intermediate_outputs(),
            "signature": f"{type(self.model).__name__}.forward{inspect.signature(self.model.forward)}",
        }
