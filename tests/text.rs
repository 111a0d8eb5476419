//! Chat template, tokenizer and random checkpoints.
