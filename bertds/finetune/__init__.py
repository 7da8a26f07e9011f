"""Fine-tuning: task files, features, a small training loop, scores, predictions."""
