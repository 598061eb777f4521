"""Conversations: text to ids, ids to safe text, turns, and the file that keeps them. Knows no tensors and no face."""
