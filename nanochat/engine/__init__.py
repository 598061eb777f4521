"""The engine: ids in, ids out, many requests against one KV cache; a session on top turns them into text."""
