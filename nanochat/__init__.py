"""Train a ChatGPT-like model end to end, from raw text to a chat window, on one machine."""

__version__ = "0.1.0"
