"""The line below the prompt: what is not known is left out."""

from types import SimpleNamespace

import pytest

from nanochat.tui.client import Server
from nanochat.tui.remote import RemoteSession
from nanochat.tui.status import describe_status
from tests.tui.servers import DONE, Reply, delta, event, foreign


@pytest.mark.parametrize(
    ("used", "limit", "messages", "busy", "line"),
    [
        (0, 256, (), "", "m   0 / 256 tokens"),
        (0, 0, (), "", "m   0 tokens"),
        (0, 256, (), "answering", "m   answering"),
        (0, 256, ("a stored one",), "", "m"),
        (0, 256, ("a stored one",), "answering", "m   answering"),
        (1234, 2048, ("q", "a"), "answering", "m   1,234 / 2,048 tokens   answering"),
        (7, 0, ("q", "a"), "", "m   7 tokens"),
    ],
)
def test_tokens_are_shown_where_they_are_known(used: int, limit: int, messages: tuple, busy: str, line: str) -> None:
    history = SimpleNamespace(messages=messages)
    session = SimpleNamespace(name="m", max_context=limit, context_used=used, history=history, tokens_per_second=0.0)
    assert describe_status(session, 0.0, busy) == line


def test_a_server_tells_the_tokens_of_an_answer_at_its_end_and_another_branch_begins_without() -> None:
    def reply(total: int) -> Reply:
        return Reply(parts=[delta(content="a"), delta("stop"), event(choices=[], usage={"total_tokens": total}), DONE])

    with foreign(reply(20), reply(40), reply(25)) as server:
        client = Server(server.url)
        session = RemoteSession(client, client.list_models()[0])
        seen = []
        for turn, text in ((0, "one"), (1, "two"), (0, "three")):
            pieces = session.edit(turn, text)
            next(pieces)
            seen.append(describe_status(session, 0.0, "answering"))
            list(pieces)
            seen.append(describe_status(session, 0.0, "").partition("   ")[2].partition("   ")[0])
    assert seen == [
        "one   answering",
        "20 tokens",
        "one   20 tokens   answering",
        "40 tokens",
        "one   answering",
        "25 tokens",
    ]
