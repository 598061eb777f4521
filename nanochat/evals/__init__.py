"""Evaluations: a score each, pure given model and data."""
