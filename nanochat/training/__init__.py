"""Training: the one loop, its schedule and its metrics."""
