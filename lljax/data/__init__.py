"""Text: where it comes from, how it becomes sequences of tokens, and how these are damaged."""
