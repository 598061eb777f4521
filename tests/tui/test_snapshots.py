"""What the screens look like in a small and in a large terminal."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nanochat.chat.decoding import Piece
from nanochat.chat.recorder import Recorder
from nanochat.chat.store import ChatInfo
from nanochat.conversation import Conversation, Message, Part, user
from nanochat.engine.sampling import SamplingParams
from nanochat.tui.app import ChatApp
from tests.tui.screens import check_snapshot
from tests.tui.test_app import ask, settle

SIZES = [(40, 12), (200, 60)]
ANSWER = [
    ("text", "Let me **count** that:\n\n"),
    ("python", "'strawberry'.count('r')"),
    ("python_output", "3"),
    (
        "text",
        "There are *three*:\n\n1. st**r**awbe\n2. **rr**\n\n```python\nprint('r' * 3)\n```\n\n| letter | times |\n",
    ),
    ("text", "|---|---|\n| r | 3 |\n\n> Counting is [easy](https://example.org).\n"),
]


class FakeSession:
    """Answers every question alike, at a speed that never changes."""

    name, system, notice = "demo/sft@650", "", ""
    max_context, context_used, tokens_per_second = 2048, 0, 0.0
    finish: str | None = None

    def __init__(self) -> None:
        self.params = SamplingParams(temperature=0.8, top_k=50, max_new_tokens=512)
        self.history = Conversation(())

    def edit(self, turn: int, text: str) -> Iterator[Piece]:
        yield from (Piece(kind, text) for kind, text in ANSWER)
        answer = Message("assistant", tuple(Part(kind, text) for kind, text in ANSWER))
        self.history = Conversation((*self.history.messages[: 2 * turn], user(text), answer))
        self.finish, self.context_used, self.tokens_per_second = "stop", 123, 45.6

    def stop(self) -> None:
        pass


class FakeStore:
    """Two conversations of a day long gone."""

    def list(self, words: str = "", limit: int = 0) -> list[ChatInfo]:
        about = {"created": 0.0, "num_messages": 2, "system": ""}
        found = [
            ChatInfo(id="a1", title="How many r are in strawberry?", updated=1.7e9, **about),
            ChatInfo(
                id="b2", title="A story about [ducks] that is too long for a small terminal", updated=1.6e9, **about
            ),
        ]
        return [info for info in found if words in info.title]


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def fake_app() -> ChatApp:
    session: Any = FakeSession()
    app = ChatApp(Recorder(session, None), Path())
    seconds = iter(range(1000))
    app.clock = lambda: next(seconds) * 0.25
    return app


async def draw(name: str, size: tuple[int, int], *keys: str, asks: str = "", store: Any = None) -> None:
    app = fake_app()
    async with app.run_test(size=size) as pilot:
        if asks:
            await ask(app, pilot, asks)
            await settle(app, pilot)
        app.recorder.store = store
        for key in keys:
            await pilot.press(key)
            await pilot.pause()
        await pilot.wait_for_scheduled_animations()
        await pilot.pause()
        check_snapshot(app, f"{name}-{size[0]}x{size[1]}")


@pytest.mark.parametrize("size", SIZES)
async def test_the_start(size: tuple[int, int]) -> None:
    await draw("start", size)


@pytest.mark.parametrize("size", SIZES)
async def test_an_answer_with_a_tool_call_and_markdown(size: tuple[int, int]) -> None:
    await draw("answer", size, asks="How many r are in strawberry?")


@pytest.mark.parametrize("size", SIZES)
async def test_an_unfolded_tool_call(size: tuple[int, int]) -> None:
    await draw("tool", size, "ctrl+t", "pageup", asks="How many r are in strawberry?")


@pytest.mark.parametrize("size", SIZES)
async def test_the_help_of_the_prompt(size: tuple[int, int]) -> None:
    await draw("help", size, "f1")


@pytest.mark.parametrize("size", SIZES)
async def test_the_list_of_conversations(size: tuple[int, int]) -> None:
    await draw("chats", size, "f2", store=FakeStore())


@pytest.mark.parametrize("size", SIZES)
async def test_the_numbers_of_sampling(size: tuple[int, int]) -> None:
    await draw("sampling", size, "f3")


@pytest.mark.parametrize("size", SIZES)
async def test_a_command_that_is_being_typed(size: tuple[int, int]) -> None:
    await draw("completion", size, "slash", "e")
