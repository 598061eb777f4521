import os
import pty
import termios

from nanochat.tui.typed import take_typed


def test_what_was_typed_before_the_screen_is_there_is_taken_and_the_terminal_is_as_before() -> None:
    master, slave = pty.openpty()
    try:
        before = termios.tcgetattr(slave)
        assert take_typed(slave) == ""
        os.write(master, "early \u00e9\x1b[A".encode())
        assert take_typed(slave) == "early \u00e9"
        os.write(master, b"hi\rthere")
        assert take_typed(slave) == "hi\nthere"
        assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)


def test_no_terminal_has_nothing_typed() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"text")
    assert take_typed(reader) == ""
    os.close(reader)
    os.close(writer)
