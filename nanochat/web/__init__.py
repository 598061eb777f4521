"""The server: an engine in a thread, an OpenAI-compatible API before it. Knows no training and no command line."""
