"""Checkpoints: written whole, verified, loaded on any number of ranks, kept as long as they are wanted."""
