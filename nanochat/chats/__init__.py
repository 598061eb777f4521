"""Conversations that are kept: one SQLite file, messages as a tree. Knows no model, no terminal and no server."""
