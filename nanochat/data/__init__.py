"""Data: shards on disk to batches of token ids."""
