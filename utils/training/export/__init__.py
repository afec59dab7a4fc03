"""Trained models as files that others can load. Reads a checkpoint, never a live trainer. Exports are lazy."""

from __future__ import annotations

from utils.lazy import lazy_exports

_EXPORTS = {
    "ExportHealthChecker": "utils.checks.export_health",
    "FORMATS": "utils.training.export_formats",
    "ExportFormat": "utils.training.export_formats",
    "create_export_bundle": "utils.training.export.bundle",
    "Exports": "utils.training.export.result",
    "ExportResult": "utils.training.export.result",
    "ONNXExporter": "utils.training.export.onnx_exporter",
    "TorchScriptExporter": "utils.training.export.torchscript",
    "ModelCardGenerator": "utils.training.export.model_card",
    "export_model": "utils.training.export.exporting",
    "pack_bundle": "utils.training.export.archives",
    "unpack_bundle": "utils.training.export.archives",
}
__all__ = sorted(_EXPORTS)

__getattr__, __dir__ = lazy_exports(__name__, _EXPORTS)
