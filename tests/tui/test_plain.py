import sqlite3
from pathlib import Path

import pytest

from nanochat.chat.decoding import Piece
from nanochat.chat.recorder import Recorder
from nanochat.chat.session import ChatSession
from nanochat.chat.store import ChatStore
from nanochat.engine.sampling import SamplingParams
from nanochat.errors import UsageError
from nanochat.tui.plain import answer_once, join_prompt, run_plain, write_answer
from tests.engine.fakes import ByteTokenizer, ScriptedModel

CALL = ["Let me see: ", "<|python_start|>", "2+2", "<|python_end|>", " It is 4."]


def session_of(*scripts: list[str], context: int = 512) -> ChatSession:
    params = SamplingParams(temperature=0, max_new_tokens=64)
    return ChatSession(ScriptedModel(*scripts, context=context), ByteTokenizer(), params=params)


class Terminal:
    """Lines to read, of which an exception is raised; what was written and noted."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = list(lines)
        self.output, self.notes = "", []

    def read(self, prompt: str) -> str:
        line = self.lines.pop(0) if self.lines else EOFError
        if isinstance(line, str):
            return line
        raise line

    def write(self, text: str) -> None:
        self.output += text

    def run(self, session: ChatSession, is_script: bool = False) -> int:
        recorder = Recorder(session, None)
        return run_plain(recorder, self.read, self.write, self.notes.append, is_script=is_script)


def test_lines_are_answered_until_the_input_ends() -> None:
    terminal = Terminal("Hi", "", "  ", "What is 2+2?")
    session = session_of(["Hello."], CALL)
    assert terminal.run(session) == 0
    assert terminal.output == "Hello.\nLet me see: [2+2 = 4] It is 4.\n\n"
    assert len(session.history.messages) == 4


@pytest.mark.parametrize("ending", ["/quit", "/exit", EOFError, KeyboardInterrupt])
def test_every_way_out_exits_with_0(ending) -> None:
    assert Terminal(ending).run(session_of(["x"])) == 0


def test_ctrl_c_stops_the_answer_and_the_loop_goes_on() -> None:
    session = session_of(["abcdef"], ["second"])
    terminal = Terminal("one", "two")
    wrote = terminal.write

    def write(text: str) -> None:
        wrote(text)
        if terminal.output == "abc":
            raise KeyboardInterrupt

    terminal.write = write
    assert terminal.run(session) == 0
    assert terminal.output == "abc\nsecond\n\n"
    assert terminal.notes == ["Stopped."]
    assert [m.text for m in session.history.messages] == ["one", "abc", "two", "second"]


def test_commands_start_over_and_answer_again() -> None:
    session = session_of(["first"], ["second"], ["third"])
    terminal = Terminal("/again", "one", "/again", "/new", "/help", "two", "/etc/hosts is a file")
    terminal.run(session)
    assert terminal.output == "first\nsecond\nthird\nfirst\n\n"
    assert terminal.notes[:2] == ["There is nothing to answer again.", "New conversation."]
    assert [m.text for m in session.history.messages] == ["two", "third", "/etc/hosts is a file", "first"]


def test_an_error_of_the_user_is_said_and_the_loop_goes_on() -> None:
    terminal = Terminal("x" * 100, "short")
    assert terminal.run(session_of(["ok"], context=50)) == 0
    assert "the context is 50 (send a shorter message)" in terminal.notes[0]
    assert terminal.output == "ok\n\n"


@pytest.mark.parametrize("line", ["/foo", "/foo is this", "/tmp", "/Help me", "/x2", "/go-on"])
def test_a_command_that_is_not_there_is_refused_and_never_asked(line: str) -> None:
    session = session_of(["ok"])
    terminal = Terminal(line, "/" + line, "/etc/hosts is a file", "/5 of them", "/ alone", "/?")
    assert terminal.run(session) == 0
    name = line.split()[0]
    assert terminal.notes[0].startswith(f"there is no {name}") and f"(/{name} sends it as text)" in terminal.notes[0]
    asked = [message.text for message in session.history.messages if message.role == "user"]
    assert asked == [line, "/etc/hosts is a file", "/5 of them", "/ alone", "/?"]


@pytest.mark.parametrize("ending", ["/quit", EOFError])
def test_a_script_whose_lines_failed_ends_with_the_code_of_the_last_one_and_says_so(ending) -> None:
    terminal = Terminal("x" * 100, "short", "", "/foo", ending)
    assert terminal.run(session_of(["ok"], context=50), is_script=True) == 2
    lines = 3 if ending is EOFError else 4
    assert terminal.notes[-1] == f"2 of {lines} lines failed; the exit code 2 is that of the last of them."
    terminal = Terminal("short", "/help", ending)
    assert terminal.run(session_of(["ok"], context=50), is_script=True) == 0 and len(terminal.notes) == 1


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ([("text", "a"), ("text", "b\n")], "ab\n"),
        ([("python", "2+2"), ("python_output", "4")], "[2+2 = 4]\n"),
        ([("python", "2+"), ("text", "?")], "[2+]?\n"),
        ([("python", "2+"), ("python", "1"), ("python_output", "1")], "[2+][1 = 1]\n"),
        ([("python", "2+")], "[2+]\n"),
        ([], "\n"),
    ],
)
def test_tool_calls_are_written_in_brackets(pieces: list, text: str) -> None:
    terminal = Terminal()
    write_answer([Piece(*piece) for piece in pieces], terminal.write)
    assert terminal.output == text


def test_one_shot_answers_a_prompt_with_piped_text_below_it() -> None:
    session, terminal = session_of(["ok"]), Terminal()
    answer_once(session, "Summarise:", "a text\n", terminal.write, terminal.notes.append)
    assert terminal.output == "ok\n"
    assert session.history.messages[0].text == "Summarise:\n\na text"
    assert [join_prompt("a", ""), join_prompt("", "b\n")] == ["a", "b"]


def test_one_shot_leaves_errors_to_its_caller() -> None:
    with pytest.raises(UsageError):
        answer_once(session_of(["ok"], context=50), "x" * 100, "", lambda text: None, lambda text: None)


def test_what_another_program_added_is_said_before_a_question(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats.db")
    recorder = Recorder(session_of(["one"], ["three"]), store)
    list(recorder.send("a"))
    other = Recorder(session_of(["two"]), ChatStore(store.path), recorder.chat)
    list(other.send("b"))
    terminal = Terminal("c", EOFError)
    run_plain(recorder, terminal.read, terminal.write, terminal.notes.append)
    assert terminal.notes == ["The conversation went on in another program; it is now:"]
    assert terminal.output.strip() == "> a\none\n> b\ntwo\nthree" and len(recorder.path) == 6


def test_a_full_disk_is_said_once_a_line_and_is_no_other_program(tmp_path: Path) -> None:
    store = ChatStore(tmp_path / "chats.db")
    with sqlite3.connect(tmp_path / "chats.db") as disk:
        full = "BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
        disk.execute(f"CREATE TRIGGER full BEFORE INSERT ON messages WHEN NEW.role = 'assistant' {full}")
    terminal = Terminal("a", "b", EOFError)
    recorder = Recorder(session_of(["one"]), store)
    assert run_plain(recorder, terminal.read, terminal.write, terminal.notes.append, is_script=True) == 5
    first, second, end = terminal.notes
    assert first == second and "is full: conversations cannot be written" in first
    assert end.startswith("2 of 2 lines failed") and terminal.output.strip() == "" and store.list() == []
