"""Any `nn.Module` as a function from a batch to logits."""

from __future__ import annotations

from utils.lazy import lazy_exports

_EXPORTS = {
    "ComputationalGraphExecutor": "utils.adapters.graph",
    "DecoderOnlyLMAdapter": "utils.adapters.task_adapters",
    "EncoderDecoderSeq2SeqAdapter": "utils.adapters.task_adapters",
    "EncoderOnlyClassificationAdapter": "utils.adapters.task_adapters",
    "ModelCall": "utils.adapters.forward",
    "ModelSignatureInspector": "utils.adapters.signature",
    "UniversalModelAdapter": "utils.adapters.lightning",
    "VisionClassificationAdapter": "utils.adapters.task_adapters",
    "generate": "utils.adapters.generation",
    "generate_text": "utils.adapters.generation",
}
__all__ = sorted(_EXPORTS)

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
