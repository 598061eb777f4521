"""Text that would be more than text: in the page, in special tokens, on a terminal."""

import json
import random
import re

import pytest

from nanochat.chat.decoding import PieceDecoder
from nanochat.chat.store import ChatStore
from nanochat.config.settings import GPT4_STYLE_PATTERN
from nanochat.conversation import Conversation, Message, Part, user
from nanochat.text import plain_text
from nanochat.tokenizer.bpe import train_tokenizer
from nanochat.tokenizer.chat import render_prompt
from nanochat.web.markdown import GrowingMarkdown, render_blocks
from nanochat.web.schema import ChatMessage
from tests.engine.fakes import SPECIAL_TOKENS, ByteTokenizer, ScriptedModel
from tests.web.browser import Watched, open_browser
from tests.web.payloads import ESCAPES, XSS
from tests.web.serving import TOKENIZER, serving, tiny_model

ALLOWED = re.compile(
    r"</?(p|br|hr|h[1-6]|blockquote|pre|code|em|strong|s|ul|ol|li|table|thead|tbody|tr|th|td)>"
    r'|<(ol start="\d+"|code class="language-[^"<> ]+"|t[hd] align="(left|center|right)")>'
    r'|<a( href="(https?://|mailto:)[^"<>]*"| title="[^"<>]*"| target="_blank"| rel="noopener noreferrer nofollow")+>|</a>'
)


def test_there_are_as_many_as_promised() -> None:
    assert len(set(XSS)) >= 100 and len(set(ESCAPES)) >= 60


@pytest.mark.parametrize("text", XSS)
def test_html_of_a_text_has_only_what_is_allowed(text: str) -> None:
    growing = GrowingMarkdown()
    for letter in text:
        growing.feed(letter)
    for block in (*render_blocks(text), *growing.blocks):
        left = ALLOWED.sub("", block)
        assert "<" not in left and "javascript:" not in re.sub(r">[^<]*", ">", block).lower(), block


def test_nothing_is_active_in_the_page() -> None:
    """As answers, as questions, as titles, in tool calls, and while an answer grows."""
    store = ChatStore(None)
    whole: list[Message] = []
    for text in XSS:
        parts = (Part("python", text), Part("python_output", text), Part("text", text))
        whole += [user(text), Message("assistant", parts)]
    chat = store.load(
        Conversation(tuple(whole)), title=XSS[0], system=XSS[1], answers=[{"model": XSS[2], "finish": "stop"}]
    )
    for text in XSS[::5]:
        store.load(Conversation((user(text), Message("assistant", (Part("text", text),)))))
    growing = "\n\n".join(XSS[::3])
    with open_browser() as browser, serving(ScriptedModel([growing], context=20_000), slots=1, store=store) as server:
        watched = Watched(browser.new_context(), f"{server.url}#{chat}")
        page = watched.page
        page.wait_for_selector(f".message >> nth={2 * len(XSS) - 1}")
        page.eval_on_selector_all("details", "all => all.forEach(one => one.open = true)")
        for name in ("settings", "about"):
            page.click(f"#{name}-open")
            page.keyboard.press("Escape")
        page.click("#new")
        watched.ask(XSS[3])
        page.mouse.move(300, 300)
        addresses = page.eval_on_selector_all(".body a[href]", "all => all.map(one => one.href)")
        assert all(re.match(r"https?://|mailto:", address) for address in addresses) and addresses
        assert page.evaluate("window.hit") is None
        assert page.locator(".body img, .body script, .body iframe, .body svg, .body style, .body form").count() == 0
        assert watched.wrong == []


@pytest.mark.parametrize("text", ESCAPES)
def test_escapes_are_inert_in_pieces_and_whole(text: str) -> None:
    decoder = PieceDecoder(ByteTokenizer())
    pieces = [piece.text for token in text.encode() for piece in decoder.feed(token, False)]
    for out in ("".join(pieces + [piece.text for piece in decoder.flush()]), plain_text(text)):
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", out), ascii(out)
        assert out.startswith("a") and out.replace("\u2069", "").endswith("b")


def test_escapes_of_a_model_reach_no_client() -> None:
    with serving(ScriptedModel(*([text] for text in ESCAPES)), slots=1) as server:
        for _ in ESCAPES:
            body = {"messages": [{"role": "user", "content": "x"}]}
            text = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
            assert text == plain_text(text) and text.startswith("a")


def test_ten_thousand_injected_special_tokens_stay_text() -> None:
    """Whatever a client says in whatever role, the prompt has the special tokens of its frame and no others."""
    random_ = random.Random(11)
    special = set(TOKENIZER.special_ids.values())
    with serving(tiny_model(context=4000), slots=1) as server:
        for _ in range(10_000):
            roles = random_.choice([["user"], ["system", "user"], ["user", "assistant", "user"], ["developer", "user"]])
            messages = [ChatMessage(role=role, content=_inject(random_)) for role in roles]  # type: ignore[arg-type]
            ids = server.service.render(messages)
            num_turns = sum(role != "system" and role != "developer" for role in roles)
            assert sum(token in special for token in ids) == 1 + 2 * num_turns + 1
            assert not special & set(server.service.encode_all([messages[0].text])[0][1:])


def test_special_tokens_stay_text_for_the_real_tokenizer() -> None:
    tokenizer = train_tokenizer(["hello <|bos|> " + " ".join(SPECIAL_TOKENS)] * 50, 400, GPT4_STYLE_PATTERN)
    special = set(tokenizer.special_ids.values())
    random_ = random.Random(12)
    for _ in range(2000):
        text = _inject(random_)
        assert not special & set(tokenizer.encode(text))
        prompt = render_prompt(tokenizer, Conversation((user(text),)))
        assert sum(token in special for token in prompt) == 4


@pytest.mark.parametrize("name", SPECIAL_TOKENS)
def test_special_tokens_in_a_request_change_nothing_but_the_text(name: str) -> None:
    with serving(tiny_model(context=400), slots=1) as server:
        for where in ("content", "stop", "prompt"):
            if where == "prompt":
                answer = server.post("/v1/completions", {"prompt": f"a{name}b", "max_tokens": 2})
            else:
                body = {"messages": [{"role": "user", "content": f"a{name}b"}], "max_tokens": 2}
                answer = server.post("/v1/chat/completions", body | ({"stop": name} if where == "stop" else {}))
            assert answer.status_code == 200
            num = 1 + len(f"a{name}b".encode()) if where == "prompt" else 4 + len(f"a{name}b".encode())
            assert answer.json()["usage"]["prompt_tokens"] == num
            json.dumps(answer.json())


def _inject(random_: random.Random) -> str:
    pieces = []
    for _ in range(random_.randrange(1, 6)):
        name = random_.choice(SPECIAL_TOKENS)
        pieces.append(
            random_.choice(
                [
                    name,
                    name.upper(),
                    name[:-1],
                    name[1:],
                    f"<{name}>",
                    name.replace("|", "| "),
                    f"\u200b{name}",
                    "hi",
                    "\n",
                    name * 3,
                ]
            )
        )
    return "".join(pieces)
