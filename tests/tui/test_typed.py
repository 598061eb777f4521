import io
import os
import pty
import termios

from nanochat.tui.typed import take_typed


def test_what_was_typed_before_the_screen_is_there_is_taken_and_the_terminal_is_as_before() -> None:
    master, slave = pty.openpty()
    with open(slave, encoding="utf-8") as stream:
        before = termios.tcgetattr(slave)
        assert take_typed(stream) == ""
        os.write(master, "early \u00e9\x1b[A".encode())
        assert take_typed(stream) == "early \u00e9"
        os.write(master, b"hi\rthere")
        assert take_typed(stream) == "hi\nthere"
        assert termios.tcgetattr(slave) == before
    os.close(master)


def test_no_terminal_has_nothing_typed() -> None:
    assert take_typed(io.StringIO("text")) == ""
    reader, writer = os.pipe()
    os.write(writer, b"text")
    with open(reader, encoding="utf-8") as stream:
        assert take_typed(stream) == ""
    os.close(writer)
