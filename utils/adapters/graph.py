"""Models whose forward takes outputs of their own nodes: those are computed from the model's own layers, or refused.

Visual builders export such models: `forward(input_0_tokens, mhsa_0_output, residual_0_output)`. The order of the layers in
the model, and their names, say how the nodes follow each other. Nothing is ever made up: what they do not say is an error.

Shapes: B samples, T positions, D width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from utils.adapters.forward import ModelCall, logits_of
from utils.adapters.signature import ModelSignatureInspector
from utils.errors import ModelError, first_line

if TYPE_CHECKING:
    import pandas as pd

# Builders' names of what stands in a residual branch besides attention, and of the additions that end one.
_FEED_FORWARD = re.compile(r"(ffn|mlp|feed_?forward)(_|$)", re.IGNORECASE)
_ATTENTION = re.compile(r"(mhsa|mha|self_attention|attention|attn)(_|$)", re.IGNORECASE)
_ADDITION = re.compile(r"(residual|add)_(?P<number>\d+)")
_NORMS = (nn.LayerNorm, nn.RMSNorm)


# The first node of every plan.
_EMBEDDED = "embeddings"


@dataclass(frozen=True)
class PlannedNode:
    """One node of a plan.

    Attributes:
        name: of the node; by: what computes it, in words; takes: the nodes (or inputs) whose outputs it is given.
        parameters: of the model's forward that are given its output; (): only other nodes take it.
        layer: the model's attribute that computes it; None for the embeddings and for additions.
    """

    name: str
    by: str
    takes: tuple[str, ...]
    parameters: tuple[str, ...] = ()
    layer: str | None = None


class ComputationalGraphExecutor(nn.Module):
    """A model that takes outputs of its own nodes, as one that takes token ids: `executor(ids)` gives its logits.

    The nodes follow each other as the model's layers do, in the order in which it has them: the embeddings, which are added
    up; then each layer takes what the one before it gave. `residual_n` (or `add_n`) is the output of attention or
    feed-forward number n, added to what its branch began with: with a normalisation before the first of these, that is what
    the normalisation was given (pre-norm), else what the branch itself was given (post-norm).

    Args:
        model: has its layers as attributes, named as the nodes. Its parameters are the executor's.
        inspector: of that model; None: made here.
    Attributes:
        plan: the nodes that are computed, in order, and what each takes. `plan_frame()` is the same as a table, `str(executor)`
            as text.
    Raises:
        ModelError: forward takes the output of a node that neither is a layer nor follows from one; names what is there.
    Not covered: dropout between the nodes is skipped, and so are layers after the last node that forward takes.
    """

    def __init__(self, model: nn.Module, inspector: ModelSignatureInspector | None = None) -> None:
        super().__init__()
        self.model = model
        self._inspector = inspector or ModelSignatureInspector(model)
        self._nodes = self._inspector.get_intermediate_nodes()
        unknown = [node for node in self._nodes.values() if node not in self._derivable()]
        if unknown:
            raise ModelError(
                f"{type(model).__name__}.forward takes the output of {', '.join(unknown)}, which its layers do not say how to "
                f"compute: they are {', '.join(self.get_layer_map()) or 'none'}, and there is one residual for each attention "
                "and feed-forward layer. Compute it inside forward, or give the layer the node's name."
            )
        self.plan = self._planned()

    def plan_frame(self) -> pd.DataFrame:
        """The plan as a table: node, what computes it, what it takes, and which parameter of forward is given its output."""
        import pandas as pd

        columns = ["node", "computed by", "takes", "given to forward as"]
        return pd.DataFrame(
            [[n.name, n.by, ", ".join(n.takes), ", ".join(n.parameters)] for n in self.plan], columns=columns
        )

    def __str__(self) -> str:
        rows = self.plan_frame().to_string(index=False) if self.plan else "Forward takes no outputs of its own nodes."
        return f"{type(self.model).__name__}, node by node:\n{rows}"

    def get_layer_map(self) -> dict[str, nn.Module]:
        """The model's own layers by name, in order; containers are not looked into."""
        return dict(self.model.named_children())

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The model's logits.

        Args:
            input_ids: (B, T) integers; attention_mask: (B, T), 0 at padding, which attention then does not look at.
        Returns:
            What the model gives as logits, usually (B, T, V).
        Raises:
            ModelError: a layer does not take what the one before it gives; forward needs something else besides.
        """
        given = {"input_ids": input_ids, **({} if attention_mask is None else {"attention_mask": attention_mask})}
        if not self._nodes:
            return ModelCall(self.model)(given)
        outputs = self._outputs(input_ids, attention_mask)
        return logits_of(self.model(**self._inputs(given), **outputs), self.model)

    def _inputs(self, given: dict[str, Tensor]) -> dict[str, Tensor]:
        """Forward's parameters that are no nodes: the first takes the ids, others what has their name."""
        required = [name for name in self._inspector.get_required_parameters() if name not in self._nodes]
        taken = {name: value for name, value in given.items() if name in self._inspector.get_parameters()}
        if "input_ids" not in taken and required:
            taken[required[0]] = given["input_ids"]
        missing = [name for name in required if name not in taken]
        if missing:
            raise ModelError(
                f"{type(self.model).__name__}.forward needs {', '.join(missing)}, which is neither an input nor the output of "
                "a node. Give it a default."
            )
        return taken

    def _derivable(self) -> set[str]:
        """Names of the nodes whose output can be computed."""
        layers = self.get_layer_map()
        branches = sum(_is_branch(name, layer) for name, layer in layers.items())
        additions = {f"{word}_{number}" for word in ("residual", "add") for number in range(branches)}
        return {name for name in layers if not _is_embedding(layers[name])} | additions

    def _planned(self) -> tuple[PlannedNode, ...]:
        """The nodes up to the last one that forward takes, one after another, from the order of the layers."""
        layers = {name: layer for name, layer in self.get_layer_map().items() if not isinstance(layer, nn.Dropout)}
        adds = {match["number"] for node in self._nodes.values() if (match := _ADDITION.fullmatch(node))}
        wanted: dict[str, tuple[str, ...]] = {}
        for parameter, node in self._nodes.items():
            wanted[node] = (*wanted.get(node, ()), parameter)
        tables = [name for name, layer in layers.items() if _is_embedding(layer)]
        pre_norm, branch = _comes_first(layers), 0
        plan = [PlannedNode(_EMBEDDED, f"sum of {', '.join(tables) or 'embeddings'}", ("input_ids",))]
        current = begin = _EMBEDDED  # what the present residual branch began with
        for name, layer in layers.items():
            if _is_embedding(layer):
                continue
            plan.append(PlannedNode(name, type(layer).__name__, (current,), wanted.get(name, ()), name))
            current = name
            if _is_branch(name, layer):
                if adds:
                    added = f"residual_{branch}"
                    asked = (*wanted.get(added, ()), *wanted.get(f"add_{branch}", ()))
                    plan.append(PlannedNode(added, "addition", (begin, name), asked))
                    current = begin = added
                branch += 1
            elif not (pre_norm and isinstance(layer, _NORMS)):
                begin = current
        last = max((index for index, node in enumerate(plan) if node.parameters), default=-1)
        return tuple(plan[: last + 1])

    def _outputs(self, ids_BT: Tensor, mask_BT: Tensor | None) -> dict[str, Tensor]:
        """The outputs that forward takes, by its parameters' names: the plan, carried out."""
        layers = self.get_layer_map()
        values: dict[str, Tensor] = {}  # (B, T, D) each
        for node in self.plan:
            if node.name == _EMBEDDED:
                values[node.name] = self._embedded(layers, ids_BT)
            elif node.layer is None:
                values[node.name] = torch.stack([values[name] for name in node.takes]).sum(0)
            else:
                values[node.name] = self._applied(node.layer, layers[node.layer], values[node.takes[0]], mask_BT)
        return {parameter: values[node.name] for node in self.plan for parameter in node.parameters}

    def _embedded(self, layers: dict[str, nn.Module], ids_BT: Tensor) -> Tensor:
        """The sum of the model's embeddings, (B, T, D): of the ids, and of positions where a name says "pos"."""
        tables = {name: layer for name, layer in layers.items() if isinstance(layer, nn.Embedding)}
        if not tables:
            raise ModelError(
                f"{type(self.model).__name__} has no embedding among its own layers, so nothing turns ids into vectors."
            )
        positions_T = torch.arange(ids_BT.shape[1], device=ids_BT.device)
        vectors = []
        for name, table in tables.items():
            ids = positions_T.expand_as(ids_BT) if "pos" in name.lower() else ids_BT
            # A traced graph cannot branch on values; the embedding itself refuses such ids there.
            if not torch.compiler.is_compiling() and int(ids.max()) >= table.num_embeddings:
                raise ModelError(f"{name} has {table.num_embeddings} rows, and was asked for number {int(ids.max())}.")
            vectors.append(table(ids))
        return torch.stack(vectors).sum(0)

    def _applied(self, name: str, layer: nn.Module, hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
        padded = mask_BT is not None and not torch.compiler.is_compiling() and bool((mask_BT == 0).any())
        if padded and _ATTENTION.match(name) and not _is_attention(layer):
            raise ModelError(
                f"{type(self.model).__name__}.{name} is a {type(layer).__name__}, which cannot be told about padding. Give "
                "sequences of one length without a mask, or use nn.MultiheadAttention."
            )
        try:
            output = _attended(layer, hidden_BTD, mask_BT) if _is_attention(layer) else layer(hidden_BTD)
        except (RuntimeError, TypeError) as error:
            raise ModelError(
                f"{type(self.model).__name__}.{name} does not take what comes before it, {tuple(hidden_BTD.shape)}: "
                f"{first_line(error)}. Its layers do not follow each other as they stand."
            ) from error
        if not isinstance(output, Tensor):
            raise ModelError(f"{type(self.model).__name__}.{name} gives a {type(output).__name__}; expected a tensor.")
        return output


def runnable(model: nn.Module) -> nn.Module:
    """`model`, or where it can only be called with outputs of its own nodes, the executor around it."""
    inspector = ModelSignatureInspector(model)
    return ComputationalGraphExecutor(model, inspector) if inspector.requires_intermediate_outputs() else model


def _attended(attention: nn.Module, hidden_BTD: Tensor, mask_BT: Tensor | None) -> Tensor:
    """Self-attention; nothing looks at padding."""
    assert isinstance(attention, nn.MultiheadAttention)
    padding_BT = None if mask_BT is None else mask_BT == 0
    hidden = hidden_BTD if attention.batch_first else hidden_BTD.transpose(0, 1)
    output: Tensor = attention(hidden, hidden, hidden, key_padding_mask=padding_BT, need_weights=False)[0]
    return output if attention.batch_first else output.transpose(0, 1)


def _is_embedding(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Embedding)


def _is_attention(layer: nn.Module) -> bool:
    return isinstance(layer, nn.MultiheadAttention)


def _is_branch(name: str, layer: nn.Module) -> bool:
    return _is_attention(layer) or bool(_ATTENTION.match(name) or _FEED_FORWARD.match(name))


def _comes_first(layers: dict[str, nn.Module]) -> bool:
    """Whether a normalisation comes before the first attention or feed-forward layer."""
    for name, layer in layers.items():
        if isinstance(layer, _NORMS) or _is_branch(name, layer):
            return isinstance(layer, _NORMS)
    return False
