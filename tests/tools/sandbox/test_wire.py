import math
import os
import random
import threading
from typing import Any

import pytest

from nanochat.tools.sandbox.wire import MAX_MESSAGE_BYTES, Opaque, WireError, decode, encode, receive, send

PLAIN = [
    None, True, False, 0, -1, 1 << 53, -(1 << 53), 1 << 4000, 0.0, -0.0, 1e-310, math.inf, "", "a\0\ud800\U0001f600",
    b"\0\xff", 1 + 2j, [], (), {}, set(), frozenset(), [1, [2, (3,)]], {(1, "a"): {2: [3]}, None: True},
    {frozenset({1, 2})}, [True, 1, 1.0],
]  # fmt: skip


def make_value(chance: random.Random, depth: int = 4) -> Any:
    kind = chance.randrange(10 if depth else 6)
    items = [make_value(chance, depth - 1) for _ in range(chance.randrange(4))] if kind > 5 else []
    leaves = (None, chance.random() < 0.5, chance.getrandbits(chance.choice((8, 60, 300))), chance.uniform(-9, 9))
    if kind < 4:
        return leaves[kind]
    if kind < 6:
        return "".join(map(chr, (chance.randrange(0x300) for _ in range(5))))
    if kind == 8:
        return {f"{number}": item for number, item in enumerate(items)}
    return tuple(items) if kind == 7 else items


def over_the_wire(value: Any) -> Any:
    out, into = os.pipe()
    try:
        send(into, {"value": encode(value)})
        message = receive(out)
    finally:
        os.close(out)
        os.close(into)
    assert message is not None
    return decode(message["value"])


def same(a: Any, b: Any) -> bool:
    """Equal and of the same types all through."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a.items(), b.items(), strict=True))
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b) if isinstance(a, float) else a == b


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:30])
def test_plain_values_arrive_as_they_were(value: Any) -> None:
    assert same(over_the_wire(value), value)


def test_so_do_random_ones() -> None:
    chance = random.Random(0)
    for _ in range(300):
        value = make_value(chance)
        assert same(over_the_wire(value), value)
    assert math.isnan(over_the_wire(math.nan))


def test_subclasses_arrive_as_their_built_in_type_and_all_else_as_a_thing_that_equals_nothing() -> None:
    class Liar(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    class Words(list):
        __eq__ = __ne__ = lambda self, other: True

    assert type(over_the_wire(Liar(3))) is int and over_the_wire(Liar(3)) != 4
    assert type(over_the_wire(Words([1]))) is list and over_the_wire(Words([1])) != [2]
    for value in (object(), range(3), len, int, iter([])):
        arrived = over_the_wire(value)
        assert isinstance(arrived, Opaque) and arrived != value and arrived != over_the_wire(value)


@pytest.mark.parametrize(
    "forged",
    [[], ["l"], ["l", 1, 2], ["l", 3], ["x", []], ["d", [[1]]], ["d", [[["l", []], 1]]], ["s", [["l", []]]],
     ["i", "zz"], ["i", 5], ["i", None], ["b", "0"], ["c", 1], ["c", "a", 1], ["o", 3], {"a": 1}, [["l"], []],
     ["d", 7], ["l", "abc"], ["t", {"a": 1}]],
    ids=repr,
)  # fmt: skip
def test_what_encode_never_makes_is_refused(forged: Any) -> None:
    with pytest.raises(WireError):
        decode(forged)


def test_depth_is_bounded_on_both_sides() -> None:
    deep: list = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(ValueError, match="deeper"):
        encode(deep)
    forged: Any = 1
    for _ in range(100):
        forged = ["l", [forged]]
    with pytest.raises(WireError, match="deeper"):
        decode(forged)


@pytest.mark.parametrize(
    "data",
    [b"\0", b"\0\0\0\5{}", b"\xff\xff\xff\xff", b"\0\0\0\2[]", b"\0\0\0\1{", b"\0\0\0\1\xff",
     (90_000).to_bytes(4, "big") + b"[" * 90_000, (96).to_bytes(4, "big") + b'{"a":' + b"9" * 90 + b"}"],
    ids=["short head", "short body", "too long", "no object", "no JSON", "no text", "deep", "long integer"],
)  # fmt: skip
def test_bytes_that_are_no_message_are_refused(data: bytes) -> None:
    out, into = os.pipe()
    writer = threading.Thread(target=lambda: (os.write(into, data), os.close(into)))  # more than a pipe holds
    writer.start()
    with pytest.raises(WireError):
        receive(out)
    writer.join()
    os.close(out)


def test_the_end_between_messages_is_no_error_and_a_reader_that_is_gone_is() -> None:
    out, into = os.pipe()
    os.close(into)
    assert receive(out) is None
    os.close(out)
    out, into = os.pipe()
    os.close(out)
    with pytest.raises(WireError, match="ended"):
        send(into, {})
    with pytest.raises(WireError, match="a message of"):
        send(into, {"value": "x" * MAX_MESSAGE_BYTES})
    os.close(into)
