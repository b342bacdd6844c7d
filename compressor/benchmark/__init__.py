"""Latency on onnxruntime that can be believed: sessions, measuring, statistics, the machine's fingerprint."""
