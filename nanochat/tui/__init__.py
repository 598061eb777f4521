"""The terminal faces of a chat session."""
