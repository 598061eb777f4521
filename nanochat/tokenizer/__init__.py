"""The tokenizer: text and conversations to ids and back."""
