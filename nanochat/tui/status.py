"""The line below the prompt."""

from typing import Any


def describe_status(session: Any, first_token: float, busy: str) -> str:
    """The model, its context and its speed, the most important first. first_token: seconds, 0 where there was none.

    Tokens of the context are left out where they are not known: those of a stored conversation are counted with the
    next question, and a server tells them at the end of an answer.
    """
    parts = [session.name]
    limit = f" / {session.max_context:,}" if session.max_context else ""
    if session.context_used or not (busy or session.history.messages):
        parts.append(f"{session.context_used:,}{limit} tokens")
    if busy:
        parts.append(busy)
    if session.tokens_per_second:
        parts.append(f"{session.tokens_per_second:.1f} tok/s")
    if first_token:
        parts.append(f"first after {first_token:.2f} s")
    return "   ".join(parts)
