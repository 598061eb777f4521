"""Branches, commands and the screens over the chat, as keys reach them."""

import asyncio
from pathlib import Path

import pytest
from textual.widgets import Input, OptionList, Static

from nanochat.chat.recorder import Recorder
from nanochat.chat.session import ChatSession
from nanochat.chat.store import ChatStore
from nanochat.engine.sampling import SamplingParams
from nanochat.tui.app import ChatApp
from nanochat.tui.transcript import MAX_TURNS
from nanochat.tui.widgets import Note, PromptArea
from tests.engine.fakes import ByteTokenizer, ScriptedModel
from tests.patience import PATIENCE_SECONDS
from tests.tui.test_app import ask, settle, transcript


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "chats.db")


def kept_app(store: ChatStore, *answers: str, chat: str | None = None) -> ChatApp:
    model = ScriptedModel(*([answer] for answer in answers), context=512)
    session = ChatSession(model, ByteTokenizer(), name="demo/sft@10", params=SamplingParams(temperature=0))
    return ChatApp(Recorder(session, store, chat), store.path.parent)


def texts(app: ChatApp) -> list[str]:
    return [text for kind, text in transcript(app) if kind in ("UserTurn", "answer")]


def notes(app: ChatApp) -> list[str]:
    return [str(note.render()) for note in app.screen_stack[0].query(Note)]


async def say(app: ChatApp, pilot, *questions: str) -> None:
    for question in questions:
        await ask(app, pilot, question)
        await settle(app, pilot)


async def test_answers_and_edits_are_branches_to_walk_through(store: ChatStore) -> None:
    app = kept_app(store, "one", "two", "three")
    async with app.run_test() as pilot:
        await say(app, pilot, "a")
        await pilot.press("ctrl+r")
        await settle(app, pilot)
        assert texts(app) == ["a", "two"] and notes(app) == ["answer 2/2; F6 and F7 show the others"]
        await pilot.press("f6")
        await pilot.pause()
        assert texts(app) == ["a", "one"] and notes(app) == ["answer 1/2; F6 and F7 show the others"]
        await pilot.press("ctrl+e")
        await pilot.pause()
        prompt = app.query_one(PromptArea)
        assert prompt.text == "a" and "edit" in str(prompt.border_title)
        await pilot.press("b", "enter")
        await settle(app, pilot)
        assert texts(app) == ["ab", "three"] and not prompt.border_title
        await pilot.press("f6")
        await pilot.pause()
        assert texts(app)[0] == "a  (1/2)"
    (info,) = store.list()
    assert info.num_messages == 2 and [len(stored.siblings) for stored in store.read(info.id)] == [2, 2]


async def test_escape_leaves_an_edit_as_it_was(store: ChatStore) -> None:
    app = kept_app(store, "one", "two")
    async with app.run_test() as pilot:
        await pilot.press("ctrl+e")
        await say(app, pilot, "a")
        await pilot.press("ctrl+e")
        await pilot.pause()
        await pilot.press("escape")
        await pilot.pause()
        assert app.query_one(PromptArea).text == ""
        await say(app, pilot, "b")
        assert texts(app) == ["a", "one", "b", "two"]


async def test_conversations_are_found_opened_and_removed(store: ChatStore) -> None:
    app = kept_app(store, "about ducks", "about geese")
    async with app.run_test() as pilot:
        await say(app, pilot, "ducks?")
        await pilot.press("ctrl+n")
        await say(app, pilot, "geese?")
        await pilot.press("f2")
        await pilot.pause()
        assert app.screen.query_one(OptionList).option_count == 2
        await pilot.press(*"ducks", "enter")
        await pilot.pause()
        assert texts(app) == ["ducks?", "about ducks"]
        await pilot.press("f2")
        await pilot.pause()
        await pilot.press("down", "down", "delete")
        await pilot.pause()
        assert len(store.list()) == 2 and "once more" in str(app.screen.query_one("#hint", Static).render())
        await pilot.press("delete")
        await pilot.pause()
        (left,) = store.list()
        await pilot.press("escape")
        await pilot.pause()
        assert len(app.screen_stack) == 1
        assert texts(app) == ([] if left.title == "geese?" else ["ducks?", "about ducks"])


async def test_sampling_is_changed_and_wrong_numbers_are_said(store: ChatStore) -> None:
    app = kept_app(store, "one")
    async with app.run_test() as pilot:
        await pilot.press("f3")
        await pilot.pause()
        field = app.screen.query_one("#temperature", Input)
        field.focus()
        for value, hint in (
            ("hot", "'hot' is no number"),
            ("-1", "temperature = -1.0 is not 0 or more"),
            ("0.5", "is set"),
        ):
            field.value = value
            await pilot.press("enter")
            await pilot.pause()
            assert hint in str(app.screen.query_one("#hint", Static).render())
        app.screen.query_one("#system", Input).focus()
        await pilot.press(*"Brief", "enter", "escape")
        await pilot.pause()
        assert app.session.params.temperature == 0.5 and app.session.system == "Brief"
        await say(app, pilot, "a")
    assert store.list()[0].system == "Brief"


async def test_values_are_seen_in_a_narrow_terminal(store: ChatStore) -> None:
    app = kept_app(store, "one")
    async with app.run_test(size=(20, 24)) as pilot:
        await pilot.press("f3")
        await pilot.pause()
        assert all(field.region.width >= 5 for field in app.screen.query(Input))


async def test_tab_goes_through_the_fields_of_a_screen(store: ChatStore) -> None:
    app = kept_app(store, "one")
    async with app.run_test() as pilot:
        await say(app, pilot, "a")
        for key, first, second in (("f3", "temperature", "top_k"), ("f2", "search", "chats")):
            await pilot.press(key)
            await pilot.pause()
            seen = []
            for tab in ("", "tab", "tab", "shift+tab"):
                await pilot.press(*([tab] if tab else []))
                seen.append(app.focused.id if app.focused else None)
            assert seen[:2] == [first, second] and seen[1] == seen[3] != seen[2], seen
            await pilot.press("escape")


async def test_commands_work_and_mistyped_ones_are_guessed(store: ChatStore) -> None:
    app = kept_app(store, "one", "two", "three")
    async with app.run_test() as pilot:
        await say(app, pilot, "a", "/agin")
        assert notes(app)[-1] == "there is no /agin; did you mean /again? (//agin sends it as text)"
        assert app.query_one(PromptArea).text == "/agin", "so that it can be mended"
        app.query_one(PromptArea).clear()
        await say(app, pilot, "/again", "/prev")
        assert texts(app) == ["a", "one"]
        await say(app, pilot, "/set top_k 7", "/title Letters")
        assert app.session.params.top_k == 7 and store.list()[0].title == "Letters"
        await say(app, pilot, "/raw")
        assert "<|user_start|>a<|user_end|><|assistant_start|>one<|assistant_end|>" in notes(app)[-1]
        await say(app, pilot, "/edit #1")
        assert "the new text is missing" in notes(app)[-1]
        app.query_one(PromptArea).clear()
        await say(app, pilot, "/edit #1 b")
        assert texts(app) == ["b", "three"]
        await say(app, pilot, "/chats letters")
        assert notes(app)[-1].endswith("Letters")
        await say(app, pilot, "/open zzz")
        assert "there is no conversation 'zzz'" in notes(app)[-1]
        app.query_one(PromptArea).clear()
        await say(app, pilot, "/new", "/open latest")
        assert texts(app) == ["b  (2/2)", "three"]


async def test_help_covers_everything_and_keys_stay_with_it(store: ChatStore) -> None:
    app = kept_app(store, "one")
    async with app.run_test(size=(60, 30)) as pilot:
        await pilot.press("f1")
        await pilot.pause()
        shown = " ".join(str(part.render()) for part in app.screen.query(Static))
        assert all(word in shown for word in ("Ctrl-R", "F6", "/edit", "/raw", "/set"))
        await pilot.press("ctrl+n", "f2")
        assert len(app.screen_stack) == 2
        await pilot.press("escape")
        await pilot.pause()
        assert len(app.screen_stack) == 1


@pytest.mark.parametrize("size", [(40, 12), (200, 60)])
async def test_it_works_in_a_small_and_in_a_large_terminal(store: ChatStore, size: tuple[int, int]) -> None:
    app = kept_app(store, "a long answer " * 30)
    async with app.run_test(size=size) as pilot:
        await say(app, pilot, "go")
        prompt, status = app.query_one(PromptArea), app.query_one("#status")
        assert prompt.region.bottom <= size[1] and status.region.bottom <= size[1]
        assert app.query_one("#transcript").size.height >= (5 if size[1] == 12 else 40)
        for key in ("f1", "f2", "f3"):
            await pilot.press(key)
            await pilot.pause()
            box = app.screen.children[0].region
            assert box.right <= size[0] and box.bottom <= size[1], key
            await pilot.press("escape")
            await pilot.pause()


async def test_an_answer_that_was_never_finished_says_so(store: ChatStore) -> None:
    first = kept_app(store, "one").recorder
    pieces = first.send("a")
    next(pieces)
    app = kept_app(ChatStore(store.path), "two", chat="latest")
    async with app.run_test() as pilot:
        await asyncio.sleep(0)
        await pilot.pause()
        assert notes(app) == ["This answer was never finished."]


async def test_of_a_long_conversation_the_newest_turns_are_on_the_screen(store: ChatStore) -> None:
    app = kept_app(store, *(f"a{i}" for i in range(MAX_TURNS + 4)))
    for i in range(MAX_TURNS + 1):
        list(app.recorder.send(f"q{i}"))
    async with app.run_test() as pilot:
        await pilot.pause()
        assert notes(app)[0].startswith("1 older turns are not on the screen")
        assert texts(app)[:2] == ["q1", "a1"] and texts(app)[-1] == f"a{MAX_TURNS}"
        await say(app, pilot, "more")
        assert notes(app)[0] == "2 older turns are not on the screen; nanochat chats show has them."
        assert texts(app)[0] == "q2" and len(texts(app)) == 2 * MAX_TURNS
        await pilot.press("ctrl+r")
        await settle(app, pilot)
        assert texts(app)[-2:] == ["more", f"a{MAX_TURNS + 2}"] and texts(app)[0] == "q2"
        await say(app, pilot, "/edit #1 first")
        assert texts(app) == ["first", f"a{MAX_TURNS + 3}"] and not app.query("#hidden")
        await pilot.press("ctrl+n")
        await pilot.pause()
        assert texts(app) == []


async def test_what_another_program_adds_comes_onto_the_screen(store: ChatStore) -> None:
    app = kept_app(store, "one", "three")
    async with app.run_test() as pilot:
        await say(app, pilot, "a")
        other = kept_app(ChatStore(store.path), "two", chat=app.recorder.chat).recorder
        list(other.send("b"))
        await say(app, pilot, "c")  # before the next look
        assert texts(app) == ["a", "one", "b", "two"] and app.query_one(PromptArea).text == "c"
        await pilot.press("enter")
        await settle(app, pilot)
        assert texts(app) == ["a", "one", "b", "two", "c", "three"]
        assert [stored.message.text for stored in store.read(app.recorder.chat or "")] == texts(app)


async def test_one_ctrl_c_leaves_in_mid_reply_and_keeps_what_was_said(store: ChatStore) -> None:
    app = kept_app(store, "abcdef")
    app.session._engine.model.pause_after = 3
    async with app.run_test() as pilot:
        app.query_one(PromptArea).insert("go")
        await pilot.press("enter")
        model = app.session._engine.model
        await asyncio.to_thread(model.paused.wait, PATIENCE_SECONDS)
        await pilot.press("ctrl+c")
        model.resume.set()
        await pilot.pause()
    assert not app.is_running
    question, answer = (each.message.text for each in store.read(store.list()[0].id))
    assert question == "go" and answer and "abcdef".startswith(answer)
