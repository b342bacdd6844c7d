"""Export, parity, quantization and inference with onnxruntime."""
