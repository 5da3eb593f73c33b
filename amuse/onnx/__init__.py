"""AMuSE as an ONNX graph, for ONNX Runtime and other programs without PyTorch; needs the extra `onnx`."""

from amuse.onnx.export import MODEL_FILE, OnnxInputs, check_onnx, export_onnx

__all__ = ["MODEL_FILE", "OnnxInputs", "check_onnx", "export_onnx"]
