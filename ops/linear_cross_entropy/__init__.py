"""The head of a language model and its cross-entropy, without the logits."""
