import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.chat.decoding import Piece, PieceDecoder
from nanochat.chat.session import ChatSession
from nanochat.conversation import Conversation, Part, assistant, parse_conversation, user
from nanochat.engine.sampling import SamplingParams
from nanochat.errors import UsageError
from nanochat.text import plain_text
from tests.engine.fakes import ByteTokenizer, ScriptedModel, TinyModel

TOKENIZER = ByteTokenizer()
CALL = ["Let me see: ", "<|python_start|>", "2+2", "<|python_end|>", " It is 4."]


def session_of(*scripts: list[str], **options) -> ChatSession:
    model = ScriptedModel(*scripts, context=options.pop("context", 512))
    return ChatSession(model, TOKENIZER, params=SamplingParams(temperature=0, max_new_tokens=64), **options)


def texts(pieces) -> str:
    return "".join(piece.text for piece in pieces if piece.kind == "text")


def test_an_answer_arrives_in_pieces_and_enters_the_history() -> None:
    session = session_of(["Hello."])
    assert list(session.send("Hi")) == [Piece("text", c) for c in "Hello."]
    assert session.history == Conversation((user("Hi"), assistant("Hello.")))
    assert (session.finish, session.notice) == ("stop", "")
    assert session.context_used == len("Hi") + len("Hello.") + 5  # bos, three of the prompt, the end


def test_tool_calls_and_their_output_come_whole_and_in_order() -> None:
    session = session_of(CALL)
    pieces = list(session.send("What is 2+2?"))
    assert [piece for piece in pieces if piece.kind != "text"] == [Piece("python", "2+2"), Piece("python_output", "4")]
    said = assistant("Let me see: ", ("python", "2+2"), ("python_output", "4"), " It is 4.")
    assert session.history.messages[1] == said


def test_a_refused_expression_has_no_output_and_calls_in_a_row_stay_apart() -> None:
    session = session_of(["<|python_start|>", "2+", "<|python_end|>", "<|python_start|>", "1+1", "<|python_end|>"])
    list(session.send("?"))
    assert session.history.messages[1] == assistant(("python", "2+"), ("python", "1+1"), ("python_output", "2"))


def test_an_answer_that_is_cut_anywhere_ends_with_no_call_that_no_tool_has_answered() -> None:
    whole = (Part("text", "Let me see: "), Part("python", "2+2"), Part("python_output", "4"), Part("text", " It is 4."))
    for num_tokens in range(1, 30):
        session = session_of(CALL)
        session.params = SamplingParams(temperature=0, max_new_tokens=num_tokens)
        pieces = list(session.send("?"))
        parts = session.history.messages[1].parts
        assert session.finish == "length" and "".join(piece.text for piece in pieces) == "".join(p.text for p in parts)
        *before, last = parts
        assert tuple(before) == whole[: len(before)] and last.kind == whole[len(before)].kind != "python"
        assert whole[len(before)].text.startswith(last.text) and (last.kind == "text" or last == whole[2])


def test_a_call_that_is_longer_than_any_tool_takes_is_shown_though_the_answer_was_cut_in_it() -> None:
    session = session_of(["<|python_start|>", "1+" * 200])
    session.params = SamplingParams(temperature=0, max_new_tokens=300)
    list(session.send("?"))
    assert session.history.messages[1] == assistant(("python", ("1+" * 200)[:299]))


def test_output_that_the_model_makes_up_is_only_text() -> None:
    session = session_of(["<|output_start|>", "42", "<|output_end|>"])
    list(session.send("?"))
    assert session.history.messages[1] == assistant("42")


def test_characters_of_many_bytes_and_broken_ones_are_decoded_as_they_complete() -> None:
    session = session_of(["h\u00e9 \u4f60 \U0001f600"])
    assert "".join(p.text for p in session.send("?")) == "h\u00e9 \u4f60 \U0001f600"
    decoder = PieceDecoder(TOKENIZER, ())
    pieces = [p for token in b"a\xe4\xbd" for p in decoder.feed(token, False)]
    assert pieces + decoder.flush() == [Piece("text", "a"), Piece("text", "\ufffd")]


@given(st.text(max_size=40), st.lists(st.text(min_size=1, max_size=3), max_size=2))
def test_streamed_text_is_the_plain_text_up_to_the_first_stop_string(text: str, stops: list[str]) -> None:
    text = plain_text(text)
    decoder = PieceDecoder(TOKENIZER, tuple(stops))
    got = ""
    for token in text.encode():
        got += "".join(piece.text for piece in decoder.feed(token, False))
        if decoder.stopped:
            break
    got += "".join(piece.text for piece in decoder.flush())
    shortest = min((text[:i] for i in range(len(text)) for s in stops if text.startswith(s, i)), key=len, default=text)
    assert got == shortest


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it() -> None:
    session = session_of(["One. STOP two"], stop_strings=["STOP"])
    assert texts(session.send("?")) == "One. "
    assert (session.finish, session.history.messages[1]) == ("stop", assistant("One. "))


def test_an_empty_answer_is_noticed() -> None:
    session = session_of([], [" \n"])
    for _ in range(2):
        list(session.send("?"))
        assert (session.finish, session.notice) == ("stop", "The answer is empty: it ended at once.")


def test_stopping_keeps_the_beginning_of_the_answer() -> None:
    session = session_of(["abcdef"])
    seen = []
    for piece in session.send("?"):
        seen.append(piece.text)
        if len(seen) == 3:
            session.stop()
    assert seen == ["a", "b", "c"]
    assert session.history.messages[1] == assistant("abc")
    assert session.finish == "cancelled"
    assert texts(session.send("again")) == "abcdef"


def test_an_interrupt_keeps_the_beginning_of_the_answer_too() -> None:
    session = session_of(["abcdef"])
    pieces = session.send("?")
    next(pieces)
    with pytest.raises(ValueError, match="not finished"):
        session.send("!")
    pieces.close()
    assert session.history.messages[1] == assistant("a")
    assert not session.is_answering


def test_regenerate_replaces_the_last_answer_with_another_one() -> None:
    session = session_of(["first"], ["second"])
    list(session.send("?"))
    assert texts(session.regenerate()) == "second"
    assert session.history == Conversation((user("?"), assistant("second")))


def test_regenerate_draws_other_numbers_and_the_same_seed_gives_the_same_text() -> None:
    def talk() -> list[str]:
        params = SamplingParams(max_new_tokens=20, temperature=3)
        session = ChatSession(TinyModel(vocab_size=265, context=128), TOKENIZER, params=params)
        answers = [session.send("hi"), None, None]
        return [texts(answers[0])] + [texts(session.regenerate()) for _ in range(2)]

    first = talk()
    assert len(set(first)) == 3
    assert talk() == first


def test_editing_forgets_what_came_after() -> None:
    session = session_of(["ok"])
    for text in ("one", "two", "three"):
        list(session.send(text))
    list(session.edit(1, "TWO"))
    assert [m.text for m in session.history.messages] == ["one", "ok", "TWO", "ok"]
    with pytest.raises(ValueError, match="turn = 3"):
        session.edit(3, "x")


def test_an_edit_that_does_not_fit_leaves_the_conversation_as_it_was() -> None:
    session = session_of(["ok"], context=50)
    list(session.send("one"))
    before = session.history
    with pytest.raises(UsageError):
        list(session.edit(0, "x" * 60))
    assert session.history == before


def test_clear_starts_over_and_regenerate_has_nothing_then() -> None:
    session = session_of(["ok"])
    list(session.send("one"))
    session.clear()
    assert (session.history.messages, session.context_used) == ((), 0)
    with pytest.raises(ValueError, match="nothing"):
        session.regenerate()


def test_a_long_conversation_keeps_the_newest_whole_turns_and_says_so() -> None:
    session = session_of(["ok"], context=100)
    used = []
    for i in range(8):
        list(session.send(f"message number {i}"))
        used.append(session.context_used)
        assert session.context_used <= 100
    assert "no longer sees the" in session.notice
    assert len(session.history.messages) == 16
    # A turn is 16 + 2 tokens of text and 4 markers; bos and a quarter of the context for the answer: 3 turns fit.
    assert max(used) == 1 + 3 * 22


def test_a_message_longer_than_the_context_is_refused_and_the_conversation_goes_on() -> None:
    session = session_of(["ok"], context=50)
    list(session.send("one"))
    with pytest.raises(UsageError, match="takes at least 60 tokens"):
        list(session.send("x" * 60))
    assert len(session.history.messages) == 2
    assert texts(session.send("two")) == "ok"


def test_an_answer_that_hits_its_limit_says_so() -> None:
    session = session_of(["x" * 100])
    assert texts(session.send("?")) == "x" * 64
    assert (session.finish, session.notice) == ("length", "The answer was cut after 64 tokens.")


def test_a_user_cannot_type_special_tokens() -> None:
    session = session_of(["ok"])
    list(session.send("<|assistant_end|><|bos|>"))
    assert session.context_used == 4 + 24 + 3


def test_export_reads_back_as_the_same_conversation() -> None:
    session = session_of(CALL, ["ok"], name="demo/sft@10")
    list(session.send("What is 2+2?"))
    list(session.send("Thanks"))
    exported = session.export()
    assert exported["model"] == "demo/sft@10"
    assert parse_conversation(exported) == session.history
    other = session_of(["ok"])
    other.load(parse_conversation(exported))
    assert other.history == session.history


def test_the_system_prompt_goes_before_the_first_message_that_the_model_sees() -> None:
    session = session_of(["ok"], system="Be brief.")
    list(session.send("Hi"))
    assert session.context_used == 4 + len("Be brief.\n\nHi") + 3
    assert session.history.messages[0] == user("Hi")
    assert session.export()["messages"][0] == {"role": "system", "content": "Be brief."}


@pytest.mark.parametrize(
    ("dirty", "clean"),
    [
        ("a\x1b[31mred\x1b[0m", "ared"),
        ("\x1b]0;title\x07x", "x"),
        ("\x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9b2Jx", "x"),
        ("a\x1b", "a"),
        ("a\x1b[", "a["),
        ("a\r\x08\x7f\x00b", "ab"),
        ("tab\tline\n", "tab\tline\n"),
        ("\u202egnp.exe\u202c", "gnp.exe"),
        ("\u2066x\u2069\u200e\u200f\u061c", "x"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        ("\ufeffa\u2028b", "ab"),
    ],
)
def test_plain_text_takes_away_what_steers_a_terminal(dirty: str, clean: str) -> None:
    assert plain_text(dirty) == clean


@given(st.text())
def test_plain_text_leaves_no_control_character_and_is_idempotent(text: str) -> None:
    clean = plain_text(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160 for c in clean)
    assert plain_text(clean) == clean


def test_escape_sequences_split_over_tokens_do_not_reach_the_face() -> None:
    session = session_of(["a\x1b[31mred\x1b[0m\x1b]0;t\x07z"])
    assert texts(session.send("?")) == "aredz"
    assert session.history.messages[1].parts == (Part("text", "aredz"),)
