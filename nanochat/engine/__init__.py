"""The engine: ids in, ids out, many requests against one cache."""
