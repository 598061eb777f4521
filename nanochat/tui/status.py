"""The line below the prompt."""

from typing import Any


def describe_status(session: Any, first_token: float, busy: str) -> str:
    """The model, its context and its speed, the most important first. first_token: seconds, 0 where there was none."""
    parts = [session.name]
    limit = f" / {session.max_context:,}" if session.max_context else ""
    is_known = session.context_used or not session.history.messages  # a stored one is counted with the next question
    if is_known or limit:
        parts.append(f"{f'{session.context_used:,}' if is_known else '?'}{limit} tokens")
    if busy:
        parts.append(busy)
    if session.tokens_per_second:
        parts.append(f"{session.tokens_per_second:.1f} tok/s")
    if first_token:
        parts.append(f"first after {first_token:.2f} s")
    return "   ".join(parts)
