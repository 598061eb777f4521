"""Server-sent events as the standard has them, with every liberty that it gives."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.errors import DataError
from nanochat.tui.events import MAX_EVENT_BYTES, Event, EventReader

texts = st.text(st.characters(blacklist_characters="\r\n", blacklist_categories=("Cs",)), max_size=8)
noise = st.one_of(
    texts.map(lambda text: f":{text}"),
    st.sampled_from(["id: 5", "retry", "retry: 10", "Data: no", "data : no", " data: no", "x"]),
)


@st.composite
def streams(draw: st.DrawFn) -> tuple[list[Event], bytes]:
    """Events, and a stream of them."""
    events, lines = [], []
    for _ in range(draw(st.integers(0, 4))):
        name, data = draw(st.sampled_from(["", "note"])), draw(st.lists(texts, min_size=1, max_size=3))
        lines += [f"event: {name}"] if name else []
        for value in data:
            lines += draw(st.lists(noise, max_size=1))
            space = " " if value.startswith(" ") else draw(st.sampled_from(["", " "]))
            lines.append("data" if not value and draw(st.booleans()) else f"data:{space}{value}")
        lines += ["", *[""] * draw(st.integers(0, 1))]
        events.append(Event(name, "\n".join(data)))
    lines += draw(st.lists(noise, max_size=1))  # cut behind it
    # An empty line behind a carriage return must not become half of CRLF.
    ends = draw(st.lists(st.sampled_from(["\r\n", "\n", "\r"]), min_size=len(lines), max_size=len(lines)))
    for place in range(1, len(lines)):
        if not lines[place] and ends[place - 1] == "\r" and ends[place] == "\n":
            ends[place] = "\r"
    mark = draw(st.sampled_from(["", "\ufeff"])) if lines else ""
    return events, (mark + "".join(line + end for line, end in zip(lines, ends, strict=True))).encode()


@given(streams(), st.data())
def test_events_are_the_same_wherever_the_bytes_are_cut(stream: tuple[list[Event], bytes], data: st.DataObject) -> None:
    expected, whole = stream
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    for places in (cuts, range(len(whole))):
        reader = EventReader()
        parts = [whole[a:b] for a, b in zip([0, *places], [*places, len(whole)], strict=True)]
        assert [event for part in parts for event in reader.feed(part)] == expected


def test_a_byte_order_mark_is_one_only_at_the_beginning() -> None:
    mark = b"\xef\xbb\xbf"
    assert EventReader().feed(mark + b"data: 1\n\n" + mark + b"data: 2\n\ndata: " + mark + b"\n\n") == [
        Event("", "1"),
        Event("", "\ufeff"),
    ]


@pytest.mark.parametrize("part", [b"x" * 1000, b"data: " + b"x" * 1000 + b"\n"])
def test_an_event_without_an_end_is_an_error(part: bytes) -> None:
    reader = EventReader()
    with pytest.raises(DataError, match="without an end"):
        for _ in range(MAX_EVENT_BYTES // 900):
            assert reader.feed(part) == []
