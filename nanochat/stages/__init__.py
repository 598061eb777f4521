"""Stages: assemble the parts, order the work, save; one module per stage."""
