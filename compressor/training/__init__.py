"""Fine-tuning on transformers.Trainer: batches grouped by length, distillation, exact resume."""
