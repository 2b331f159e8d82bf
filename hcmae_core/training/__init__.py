"""Loops: pre-training, embedding, survival cross-validation, checkpoints."""
