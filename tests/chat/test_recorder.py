"""A session whose conversation is kept while it happens."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nanochat.chat.recorder import Recorder
from nanochat.chat.session import ChatSession
from nanochat.chat.store import ChatStore
from nanochat.conversation import Conversation, Message, Part, user
from nanochat.engine.sampling import SamplingParams
from nanochat.errors import CapacityError, MissingError, UsageError
from tests.engine.fakes import ByteTokenizer, ScriptedModel

GREEDY = SamplingParams(temperature=0, max_new_tokens=64)
TOKENIZER = ByteTokenizer()


def session_of(*scripts: list[str], context: int = 512) -> ChatSession:
    return ChatSession(ScriptedModel(*scripts, context=context), TOKENIZER, params=GREEDY, name="fake/sft@1")


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "chats.db")


def say(pieces) -> str:
    return "".join(piece.text for piece in pieces)


def shown(recorder: Recorder) -> list[str]:
    return [stored.message.text for stored in recorder.path]


def test_turns_retries_and_edits_become_branches(store: ChatStore) -> None:
    recorder = Recorder(session_of(["one"], ["two"], ["three"], ["four"]), store)
    assert store.list() == []
    assert say(recorder.send("a")) == "one" and say(recorder.send("b")) == "two"
    assert say(recorder.regenerate()) == "three"
    assert shown(recorder) == ["a", "one", "b", "three"]
    assert say(recorder.edit(0, "A")) == "four"
    assert shown(recorder) == ["A", "four"]
    first = recorder.path[0].siblings
    recorder.choose(first[0])
    assert shown(recorder) == ["a", "one", "b", "three"]
    assert [m.text for m in recorder.session.history.messages] == shown(recorder)
    recorder.choose(recorder.path[3].siblings[0])
    assert shown(recorder)[3] == "two"
    (info,) = store.list()
    assert info.title == "a" and info.num_messages == 4
    answer = store.read(info.id)[1]
    assert (answer.model, answer.finish, answer.sampling["max_new_tokens"]) == ("fake/sft@1", "stop", 64)


def test_another_program_goes_on_where_it_was(store: ChatStore) -> None:
    session = session_of(["one"])
    session.system = "Be brief."
    first = Recorder(session, store)
    say(first.send("a"))
    again = Recorder(session_of(["two"]), ChatStore(store.path), "latest")
    assert again.session.system == "Be brief." and shown(again) == ["a", "one"]
    assert say(again.send("b")) == "two"
    assert [m.message.text for m in store.read(first.chat)] == ["a", "one", "b", "two"]
    with pytest.raises(MissingError):
        Recorder(session_of(["x"]), store, "nothing")


def test_a_stopped_answer_is_kept_as_far_as_it_came(store: ChatStore) -> None:
    recorder = Recorder(session_of(["a long answer"]), store)
    pieces = recorder.send("a")
    assert next(pieces).text == "a"
    recorder.session.stop()
    rest = say(pieces)
    assert shown(recorder) == ["a", "a" + rest] and recorder.path[-1].finish == "cancelled"
    recorder.new()
    pieces = recorder.send("b")
    next(pieces)
    pieces.close()  # the program is interrupted
    assert shown(recorder)[0] == "b" and recorder.path[-1].finish == "cancelled"
    assert len(store.list()) == 2


def test_what_is_being_said_is_in_the_file_before_it_is_over(store: ChatStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nanochat.chat.recorder.SAVE_SECONDS", 0.0)
    recorder = Recorder(session_of(["hello"]), store)
    pieces = recorder.send("a")
    for _ in range(3):
        next(pieces)
    question, answer = ChatStore(store.path).read(recorder.chat)
    assert question.message.text == "a" and answer.message.text == "hel" and answer.finish is None
    say(pieces)


def test_a_conversation_whose_program_was_killed_goes_on(store: ChatStore) -> None:
    recorder = Recorder(session_of(["hello"]), store)
    pieces = recorder.send("a")
    next(pieces)
    again = Recorder(session_of(["two"]), ChatStore(store.path), "latest")
    assert [m.text for m in again.session.history.messages] == ["a", "h"]
    assert say(again.send("b")) == "two" and shown(again) == ["a", "h", "b", "two"]


def test_a_refused_question_leaves_no_trace(store: ChatStore) -> None:
    recorder = Recorder(session_of(["one"], context=64), store)
    with pytest.raises(UsageError, match="the message takes"):
        say(recorder.send("x" * 100))
    assert store.list() == [] and recorder.chat is None and recorder.path == ()
    say(recorder.send("a"))
    with pytest.raises(UsageError):
        say(recorder.edit(0, "x" * 100))
    with pytest.raises(UsageError):
        say(recorder.send("x" * 100))
    assert shown(recorder) == ["a", "one"] and store.list()[0].num_messages == 2
    assert [m.message.text for m in store.read(recorder.chat)] == ["a", "one"]


def test_without_a_store_nothing_is_kept(tmp_path: Path) -> None:
    recorder = Recorder(session_of(["one"], ["two"]), None)
    assert say(recorder.send("a")) == "one" and say(recorder.regenerate()) == "two"
    assert recorder.path == () and list(tmp_path.iterdir()) == []


def test_a_conversation_deleted_meanwhile_is_said(store: ChatStore) -> None:
    recorder = Recorder(session_of(["one"], ["two"]), store)
    say(recorder.send("a"))
    ChatStore(store.path).delete(recorder.chat)
    with pytest.raises(MissingError, match="was deleted"):
        say(recorder.send("b"))
    recorder.new()
    assert say(recorder.send("b")) == "two"


def test_a_system_prompt_is_that_of_conversations_that_begin_later(store: ChatStore) -> None:
    recorder = Recorder(session_of(["one"], ["two"], ["three"]), store)
    recorder.set_system("Be brief.")
    say(recorder.send("a"))
    recorder.set_system("Be kind.")
    assert recorder.session.system == "Be brief.", "this one has begun"
    say(recorder.send("b"))
    recorder.new()
    say(recorder.send("c"))
    assert sorted(info.system for info in store.list()) == ["Be brief.", "Be kind."]
    recorder.open(next(info.id for info in store.list() if info.system == "Be brief."))
    assert recorder.session.system == "Be brief."
    recorder.new()
    assert recorder.session.system == "Be kind."


def test_what_another_program_added_is_caught_up_with(store: ChatStore) -> None:
    one = Recorder(session_of(["one"], ["two"], ["five"]), store)
    say(one.send("a"))
    assert not one.catch_up()
    other = Recorder(session_of(["three"], ["four"]), ChatStore(store.path), one.chat)
    say(other.send("b"))
    say(other.regenerate())
    assert one.catch_up() and not one.catch_up()
    assert shown(one) == ["a", "one", "b", "four"] and len(one.session.history.messages) == 4
    say(one.send("c"))
    assert shown(one)[4:] == ["c", "two"] and other.catch_up() and shown(other) == shown(one)


def test_an_answer_that_is_being_said_is_marked_for_others(store: ChatStore) -> None:
    recorder = Recorder(session_of(["one, two"]), store)
    pieces = recorder.send("a")
    next(pieces)
    (answer,) = store.locks._held
    list(pieces)
    assert recorder.path[1].id == answer and not store.locks._held


def test_an_answer_that_another_program_writes_is_waited_for(store: ChatStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the page: what came below it would follow half an answer."""
    recorder = Recorder(session_of(["one"], ["two"]), store)
    say(recorder.send("a"))
    with monkeypatch.context() as patch:
        patch.setattr("nanochat.chat.locks.AnswerLocks.is_elsewhere", lambda _self, message: True)
        chat, _, answer = store.ask(None, None, user("q"))
        recorder.open(chat)
        with pytest.raises(UsageError, match="another program is writing the answer before it"):
            recorder.send("b")
    recorder.open(chat)
    assert say(recorder.send("b")) == "two" and answer == recorder.path[1].id


def test_a_conversation_that_was_deleted_elsewhere_is_left(store: ChatStore) -> None:
    recorder = Recorder(session_of(["one"], ["two"]), store)
    say(recorder.send("a"))
    ChatStore(store.path).delete(recorder.chat or "")
    assert recorder.catch_up() and recorder.chat is None and recorder.session.history.messages == ()
    assert say(recorder.send("b")) == "two" and shown(recorder) == ["b", "two"]


ANSWERED = (user("a"), Message("assistant", (Part("text", "one"),)))


@pytest.mark.parametrize("before", [(), ANSWERED], ids=["alone", "behind a turn"])
def test_a_question_without_an_answer_is_gone_on_from(store: ChatStore, before: tuple[Message, ...]) -> None:
    said = [message.text for message in before]
    chat = store.load(Conversation((*before, user("b"))))
    recorder = Recorder(session_of(["two"], ["three"], ["four"], context=64), store, chat)
    with pytest.raises(UsageError, match="the message takes"):
        say(recorder.send("x" * 100))
    assert shown(recorder) == [*said, "b"] and not recorder.catch_up(), "refused: it is as it was"
    say(recorder.send("c"))
    assert shown(recorder) == [*said, "b", "", "c", "two"] and not recorder.catch_up()
    assert [one.siblings for one in recorder.path] == [(one.id,) for one in recorder.path]
    assert [m.text for m in recorder.session.history.messages] == shown(recorder)
    say(recorder.edit(len(before) // 2 + 1, "d"))
    assert shown(recorder) == [*said, "b", "", "d", "three"]
    say(recorder.edit(len(before) // 2, "B"))
    assert shown(recorder) == [*said, "B", "four"]


def test_a_question_without_an_answer_is_answered_or_edited(store: ChatStore) -> None:
    question = Conversation((*ANSWERED, user("b")))
    again = Recorder(session_of(["two"]), store, store.load(question))
    say(again.regenerate())
    assert shown(again) == ["a", "one", "b", "two"]
    edited = Recorder(session_of(["two"]), store, store.load(question))
    say(edited.edit(1, "B"))
    assert shown(edited) == ["a", "one", "B", "two"] and len(edited.path[2].siblings) == 2


@contextmanager
def full_disk(store: ChatStore, event: str) -> Iterator[None]:
    """The disk of a store takes nothing of this kind."""
    assert store.path is not None
    with sqlite3.connect(store.path) as disk:
        disk.execute(f"CREATE TRIGGER full BEFORE {event} BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END")
    yield
    with sqlite3.connect(store.path) as disk:
        disk.execute("DROP TRIGGER full")


@pytest.mark.parametrize("num_turns", [0, 1])
@pytest.mark.parametrize("event", ["INSERT ON messages WHEN NEW.role = 'assistant'", "INSERT ON messages"])
def test_a_disk_that_takes_no_turn_leaves_everything_as_it_was(store: ChatStore, num_turns: int, event: str) -> None:
    recorder = Recorder(session_of(["one"], ["two"]), store)
    for _ in range(num_turns):
        say(recorder.send("a"))
    before = recorder.chat, shown(recorder), store.list()
    with full_disk(store, event):
        for ask in [lambda: recorder.send("b"), lambda: recorder.edit(0, "b"), *[recorder.regenerate] * num_turns]:
            with pytest.raises(CapacityError, match="is full"):
                say(ask())
            assert recorder.session.finish is None, "this is how the full screen knows it"
            assert (recorder.chat, shown(recorder), store.list()) == before and not recorder.catch_up()
    say(recorder.send("c"))
    assert shown(recorder)[-2] == "c" and [m.text for m in recorder.session.history.messages] == shown(recorder)


@pytest.mark.parametrize("place", ["NEW.parts <> '[]'", "NEW.finish IS NOT NULL"], ids=["first word", "end"])
def test_what_a_full_disk_did_not_take_was_no_other_program(store: ChatStore, place: str) -> None:
    recorder = Recorder(session_of(["one"], ["two"], ["three"]), store)
    say(recorder.send("a"))
    with full_disk(store, f"UPDATE ON messages WHEN {place}"):
        with pytest.raises(CapacityError, match="is full"):
            say(recorder.send("b"))
        assert not recorder.catch_up() and len(recorder.path) == len(recorder.session.history.messages) == 4
    say(recorder.send("c"))
    assert shown(recorder)[::2] == ["a", "b", "c"]


def test_a_refused_question_that_the_disk_does_not_take_back_harms_nothing(store: ChatStore) -> None:
    recorder = Recorder(session_of(["one"], context=64), store)
    say(recorder.send("a"))
    with full_disk(store, "DELETE ON messages"):
        with pytest.raises(CapacityError, match="is full"):
            say(recorder.send("x" * 100))
        assert not recorder.catch_up()
    say(recorder.send("b"))
    assert shown(recorder) == ["a", "one", "b", "one"]
