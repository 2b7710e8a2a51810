"""Cross-entropy of logits."""
