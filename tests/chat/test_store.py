"""Conversations on disk: a tree, several programs, kills."""

import errno
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanochat.chat.export import ReadChat, export_chat, parse_chats
from nanochat.chat.faults import name_fault
from nanochat.chat.store import ChatStore
from nanochat.conversation import Conversation, Message, Part, assistant, parse_conversation, user
from nanochat.errors import CapacityError, DataError, MissingError, UsageError
from nanochat.tasks.custom_json import CustomJSONTask
from tests.patience import PATIENCE_SECONDS


@pytest.fixture
def store(tmp_path: Path) -> ChatStore:
    return ChatStore(tmp_path / "chats.db")


def texts(store: ChatStore, chat: str) -> list[str]:
    return [stored.message.text for stored in store.read(chat)]


def test_messages_form_a_tree_and_nothing_is_destroyed(store: ChatStore) -> None:
    chat = store.create("Be brief.")
    first = store.add(chat, None, user("Tell me about ducks\nplease"))
    one = store.add(chat, first, assistant("Ducks swim."), finish="stop")
    two = store.add(chat, first, assistant("Ducks fly."), finish="stop")
    more = store.add(chat, two, user("How high?"))
    assert texts(store, chat) == ["Tell me about ducks\nplease", "Ducks fly.", "How high?"]
    assert store.read(chat)[1].siblings == (one, two)
    store.choose(chat, one)
    assert texts(store, chat)[1:] == ["Ducks swim."]
    store.choose(chat, two)
    assert store.read(chat)[-1].id == more
    other = store.add(chat, None, user("Tell me about geese"))
    assert texts(store, chat) == ["Tell me about geese"]
    store.choose(chat, first)
    assert store.read(chat)[-1].id == more
    assert store.read(chat)[0].siblings == (first, other)
    (info,) = store.list()
    assert (info.title, info.system, info.num_messages) == ("Tell me about ducks", "Be brief.", 3)
    with pytest.raises(UsageError, match="has no message 99"):
        store.choose(chat, 99)


def test_lists_are_searched_found_renamed_and_deleted(store: ChatStore) -> None:
    chats = [store.load(Conversation((user(q), assistant(a)))) for q, a in (("Hi", "Straße"), ("Ducks?", "Yes"))]
    assert [info.id for info in store.list()] == chats[::-1]
    assert [info.id for info in store.list("STRASSE")] == chats[:1]
    assert store.list("nothing") == [] and len(store.list(limit=1)) == 1
    assert store.find(chats[0][:6]).id == chats[0] and store.find("latest").id == chats[1]
    store.rename(chats[0], " Roads  of\nmine ")
    assert store.find(chats[0]).title == "Roads of"
    for name in ("", "zzz"):
        with pytest.raises(MissingError, match="there is no conversation"):
            store.find(name)
    store.delete(chats[0])
    assert [info.id for info in store.list()] == chats[1:]
    with pytest.raises(MissingError, match="was deleted"):
        store.add(chats[0], None, user("x"))
    assert b"Stra" not in store.path.read_bytes()


def test_an_empty_title_or_two_beginnings_are_refused(store: ChatStore) -> None:
    chats = [store.create() for _ in range(40)]
    with pytest.raises(UsageError, match="the title is empty"):
        store.rename(chats[0], "  ")
    letter = next(a[0] for a in chats if sum(b[0] == a[0] for b in chats) > 1)
    with pytest.raises(UsageError, match="begins"):
        store.find(letter)


def _write_many(path: Path, number: int) -> None:
    store = ChatStore(path)
    for turn in range(25):
        chat = store.create(title=f"{number}")
        question = store.add(chat, None, user(f"{number}/{turn}"))
        store.add(chat, question, assistant("yes"), finish="stop")


def test_programs_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    programs = [context.Process(target=_write_many, args=(tmp_path / "chats.db", number)) for number in range(4)]
    for program in programs:
        program.start()
    for program in programs:
        program.join(PATIENCE_SECONDS)
        assert program.exitcode == 0
    store = ChatStore(tmp_path / "chats.db")
    said = sorted(texts(store, info.id)[0] for info in store.list())
    assert said == sorted(f"{number}/{turn}" for number in range(4) for turn in range(25))


def test_a_kill_in_the_middle_of_an_answer_keeps_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    code = f"""
import sys
from pathlib import Path
from nanochat.chat.store import ChatStore
from nanochat.conversation import Message, Part, user
store = ChatStore(Path({str(path)!r}))
chat = store.create()
answer = store.add(chat, store.add(chat, None, user("q")), Message("assistant", ()))
for n in range(10**9):
    store.write(answer, [Part("text", "x" * n)])
    print(n, flush=True)
"""
    for _ in range(10):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        last = [process.stdout.readline() for _ in range(20)][-1]
        time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        last = ([line for line in process.stdout.read().splitlines() if line.isdigit()] or [last])[-1]
        process.wait()
        store = ChatStore(path)
        question, answer = store.read(store.list()[0].id)
        assert len(answer.message.text) >= int(last) and answer.finish is None and question.message.text == "q"
        assert sqlite3.connect(path).execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert len(store.list()) == 10


def test_a_damaged_a_newer_and_an_unwritable_file_are_sentences(tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.db"
    damaged.write_bytes(b"no database at all" * 1000)
    with pytest.raises(DataError, match="file is not a database") as refused:
        ChatStore(damaged)
    assert refused.value.hint.startswith(f"mv -n {tmp_path} {tmp_path}.old  # after ending every nanochat")
    newer = tmp_path / "newer.db"
    ChatStore(newer).close()
    with sqlite3.connect(newer) as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(DataError, match="by a newer nanochat"):
        ChatStore(newer)
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError):
        ChatStore(tmp_path / "file" / "chats.db")


MESSAGES = st.lists(
    st.tuples(
        st.text(st.characters(exclude_categories=("Cs",))),
        st.lists(st.tuples(st.sampled_from(["text", "python", "python_output"]), st.text()), max_size=4),
    ),
    min_size=1,
    max_size=4,
)


def test_a_store_in_a_folder_that_cannot_be_written_is_read_with_its_log(
    tmp_path: Path, store: ChatStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before, the newest conversations, which only the log holds, needed a file that could not be made."""
    store.load(Conversation((user("Ducks?"), assistant("Yes"))))
    assert (tmp_path / "chats.db-wal").stat().st_size > 0
    before = sorted(path.name for path in tmp_path.iterdir())
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    reader = ChatStore(tmp_path / "chats.db")
    assert [info.title for info in reader.list()] == ["Ducks?"]
    with pytest.raises(DataError, match="cannot be opened or written"):
        reader.create("")
    assert sorted(path.name for path in tmp_path.iterdir()) == before


@settings(max_examples=60, deadline=None, derandomize=True)
@given(MESSAGES, st.sampled_from(["json", "jsonl"]))
def test_what_is_exported_is_imported_as_it_was(tmp_path_factory, turns: list, form: str) -> None:
    store = ChatStore(tmp_path_factory.mktemp("db") / "chats.db")
    messages = []
    for question, parts in turns:
        kept = [Part(kind, text) for kind, text in parts]
        if not kept or (form == "jsonl" and Message("assistant", tuple(kept)).is_empty):
            kept.append(Part("text", "x" if form == "jsonl" else ""))  # an empty answer is no training example
        messages += [user(question), assistant(*((part.kind, part.text) for part in kept))]
    conversation = Conversation(tuple(messages))
    chat = store.load(conversation, title="t")
    assert tuple(stored.message for stored in store.read(chat)) == conversation.messages
    (again,) = parse_chats(export_chat(store.find(chat), store.read(chat), form), "f")
    assert again.conversation == conversation and again.title == ("t" if form == "json" else "")
    store.close()


def test_a_good_chat_becomes_a_training_example(store: ChatStore, tmp_path: Path) -> None:
    talk = Conversation((user("2+2?"), assistant(("python", "2+2"), ("python_output", "4"), "It is 4.")))
    lines = ""
    for number in range(2):
        chat = store.load(talk, system="Compute." if number else "")
        question = store.add(chat, store.read(chat)[-1].id, user("and?"))
        if number:  # without an answer, or with an empty one, it is left out
            store.add(chat, question, assistant(" "), finish="stop")
        lines += export_chat(store.find(chat), store.read(chat), "jsonl")
    path = tmp_path / "good.jsonl"
    path.write_text(lines)
    task = CustomJSONTask(path)
    assert task.num_examples() == 2 and task.example(0) == talk
    assert task.example(1).messages[0].text == "Compute.\n\n2+2?"
    markdown = export_chat(store.find(chat), store.read(chat), "markdown")
    assert "# 2+2?" in markdown and "`2+2 = 4`It is 4." in markdown and "## System\n\nCompute." in markdown
    empty = store.create()
    with pytest.raises(UsageError, match="has no whole answer yet"):
        export_chat(store.find(empty), store.read(empty), "jsonl")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no conversation"),
        ("{", "f:1: no JSON"),
        ('{"messages": []}', "f:1: expected"),
        ('[{"a": 1}]', "f:1:"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(DataError, match=said):
        parse_chats(text, "f")


def test_a_list_of_conversations_is_read_too() -> None:
    talk = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    import json

    assert parse_chats(json.dumps([talk, talk]), "f") == [ReadChat(parse_conversation(talk))] * 2
    assert parse_chats(json.dumps(talk["messages"]), "f") == [ReadChat(parse_conversation(talk))]


def test_json_keeps_title_system_models_and_ends(store: ChatStore) -> None:
    chat = store.create("Be brief.", "Ducks")
    asked = store.add(chat, None, user("a"))
    store.add(chat, asked, assistant("b"), model="demo/rl@20", sampling={"seed": 3}, finish="cancelled")
    (read,) = parse_chats(export_chat(store.find(chat), store.read(chat), "json"), "f")
    again = store.load(read.conversation, read.system, read.title, read.answers)
    info, answer = store.find(again), store.read(again)[1]
    assert (info.title, info.system) == ("Ducks", "Be brief.") and store.read(again)[0].message.text == "a"
    assert (answer.model, answer.sampling, answer.finish) == ("demo/rl@20", {"seed": 3}, "cancelled")


def test_an_answer_that_was_cut_is_no_training_example(store: ChatStore) -> None:
    chat = store.create()
    last = None
    for number, finish in enumerate(["stop", "length", "stop"]):
        last = store.add(chat, last, user(f"q{number}"))
        last = store.add(chat, last, assistant(f"a{number}"), finish=finish)  # type: ignore[arg-type]
    text = export_chat(store.find(chat), store.read(chat), "jsonl")
    assert "a0" in text and "q1" not in text and "a2" not in text


def test_half_characters_and_half_conversations_are_not_stored(store: ChatStore) -> None:
    line = '{"messages": [{"role": "user", "content": "\\ud800 hi"}, {"role": "assistant", "content": "a \\ud800"}]}'
    (read,) = parse_chats(line, "f")
    chat = store.load(read.conversation, "system \ud800", "title \ud800")
    assert store.find(chat).title == "title ?" and store.read(chat)[1].message.text == "a ?"
    before = len(store.list())
    bad = Conversation((user("q"), Message("somebody", (Part("text", "a"),))))  # type: ignore[arg-type]
    with pytest.raises(DataError):
        store.load(bad)
    assert len(store.list()) == before
    with pytest.raises(DataError, match="nested too deep"):
        parse_chats("[" * 20_000, "f")
    assert parse_chats("\ufeff" + line.replace("\\ud800", ""), "f")


def test_a_message_of_another_conversation_is_no_parent(store: ChatStore) -> None:
    one, two = store.create(), store.create()
    asked = store.add(one, None, user("a"))
    with pytest.raises(MissingError, match=f"has no message {asked}"):
        store.add(two, asked, user("b"))


def test_nobody_else_can_read_it(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats" / "chats.db")
    store.create("secret")
    assert (tmp_path / "chats").stat().st_mode & 0o777 == 0o700
    for file in (tmp_path / "chats").iterdir():
        assert file.stat().st_mode & 0o077 == 0, file
    store.close()


def test_a_file_that_is_moved_away_is_noticed(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats" / "chats.db")
    store.create()
    (tmp_path / "chats").rename(tmp_path / "elsewhere")
    for work in (store.create, store.list):
        with pytest.raises(DataError, match="was moved or removed"):
            work()
    assert len(ChatStore(tmp_path / "elsewhere" / "chats.db").list()) == 1


@pytest.mark.parametrize(
    ("error", "kind", "hint"),
    [
        (sqlite3.OperationalError("database or disk is full"), CapacityError, "nanochat runs ls"),
        (OSError(errno.ENOSPC, "No space left on device"), CapacityError, "nanochat runs ls"),
        (sqlite3.OperationalError("database is locked"), DataError, "end it, or wait"),
        (sqlite3.OperationalError("attempt to write a readonly database"), DataError, "ls -ld"),
        (sqlite3.OperationalError("unable to open database file"), DataError, "ls -ld"),
        (PermissionError(errno.EACCES, "Permission denied"), DataError, "ls -ld"),
        (sqlite3.DatabaseError("database disk image is malformed"), DataError, "mv "),
    ],
)
def test_each_fault_has_its_own_hint(tmp_path: Path, error: Exception, kind: type, hint: str) -> None:
    found = name_fault(error, tmp_path / "chats.db")
    assert type(found) is kind and found.hint.startswith(hint)


def test_the_hint_for_a_damaged_file_loses_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "chats"
    store = ChatStore(folder / "chats.db")
    chat = store.create("", "kept")
    with pytest.raises(DataError) as refused:
        raise name_fault(sqlite3.DatabaseError("malformed"), store.path)
    subprocess.run(refused.value.hint.partition("  #")[0], shell=True, check=True)
    assert ChatStore(tmp_path / "chats.old" / "chats.db").find(chat).title == "kept"  # also what only the log held
    assert ChatStore(folder / "chats.db").list() == []


def test_reading_waits_for_no_writer(store: ChatStore) -> None:
    store.create("", "here")
    with sqlite3.connect(store.path, isolation_level=None) as other:  # type: ignore[arg-type]
        other.execute("BEGIN IMMEDIATE")
        assert ChatStore(store.path).list()[0].title == "here"  # a reader that waited would end in an error
        other.execute("ROLLBACK")


HOLD = """
import sys, time
from pathlib import Path
from nanochat.chat.store import ChatStore
from nanochat.conversation import Message, Part, user
store = ChatStore(Path(sys.argv[1]))
chat = store.create("", "held")
answer = store.add(chat, store.add(chat, None, user("q")), Message("assistant", (Part("text", "so far"),)))
store.locks.hold(answer)
print(chat, answer, flush=True)
time.sleep(600)
"""


def test_an_answer_of_another_program_is_told_from_one_that_was_killed(store: ChatStore) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(store.path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    chat, answer = process.stdout.readline().split()
    assert store.read(chat)[1].is_elsewhere and store.locks.is_elsewhere(int(answer))
    assert "being answered in another program" in export_chat(store.find(chat), store.read(chat), "markdown")
    process.kill()
    process.wait()
    assert not store.read(chat)[1].is_elsewhere
    store.locks.hold(int(answer))
    assert not store.read(chat)[1].is_elsewhere  # our own
    store.locks.release(int(answer))


def test_an_id_is_never_used_again(store: ChatStore) -> None:
    one = store.create()
    answer = store.add(one, store.add(one, None, user("q")), Message("assistant", ()))
    store.delete(one)
    two = store.create()
    other = store.add(two, store.add(two, None, user("q")), assistant("mine"), finish="stop")
    store.write(answer, (Part("text", "from the deleted one"),), "stop")
    assert other > answer + 1 and store.read(two)[1].message.text == "mine"


def test_separators_of_unicode_are_no_lines(store: ChatStore) -> None:
    chat = store.load(Conversation((user("a\u2028b\u0085c"), assistant("d"))))
    line = export_chat(store.find(chat), store.read(chat), "jsonl")
    assert [read.conversation.messages[0].text for read in parse_chats(line * 2, "f")] == ["a\u2028b\u0085c"] * 2


def test_one_damaged_message_harms_no_other_conversation(store: ChatStore) -> None:
    bad, good = (store.load(Conversation((user(word), assistant("x")))) for word in ("bad", "good"))
    with sqlite3.connect(store.path) as db:  # type: ignore[arg-type]
        db.execute("UPDATE messages SET parts = '[1' WHERE chat = ?", (bad,))
    assert [info.id for info in store.list("good")] == [good]
    with pytest.raises(DataError, match=f"of conversation {bad} is damaged") as refused:
        store.read(bad)
    assert refused.value.hint.startswith(f"nanochat chats rm {bad}") and len(store.read(good)) == 2


def test_many_are_taken_in_or_none(store: ChatStore) -> None:
    good = Conversation((user("q"), assistant("a")))
    bad = Conversation((user("q"), Message("somebody", ())))  # type: ignore[arg-type]
    with pytest.raises(DataError):
        store.load_all([(good, "", "", ()), (bad, "", "", ())])
    assert store.list() == [] and len(store.load_all([(good, "", "", ())] * 3)) == 3
