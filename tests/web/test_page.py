"""The page in a real browser."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanochat.chat.store import ChatStore
from nanochat.web.guard import Access
from tests.engine.fakes import ScriptedModel
from tests.patience import wait_until
from tests.web.browser import Watched, open_browser
from tests.web.serving import AlphabetModel, Serving, serving

SCRIPT = [
    "# A sum\n\nLet me *see*: ",
    "<|python_start|>",
    "2*21",
    "<|python_end|>",
    "It is **42**.\n\n```python\nprint(42)\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n",
]


@pytest.fixture(scope="module")
def browser():
    with open_browser() as found:
        yield found


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(AlphabetModel(), slots=4) as found:
        yield found


@pytest.fixture
def context(browser):
    found = browser.new_context(viewport={"width": 1100, "height": 750}, accept_downloads=True)
    yield found
    found.close()


@pytest.fixture
def short(server: Serving, context) -> Watched:
    """A page whose answers are 12 letters long."""
    watched = Watched(context, server.url)
    choose(watched, max_new_tokens="12")
    return watched


def choose(watched: Watched, **fields: str) -> None:
    """Fill fields of the settings."""
    watched.page.click("#settings-open")
    for name, value in fields.items():
        watched.page.fill(f"#{name}", value)
    watched.page.click("#settings button[type=submit]")


def test_an_answer_is_shown_with_its_tool_and_markdown(context) -> None:
    with serving(ScriptedModel(SCRIPT), slots=1) as server:
        watched = Watched(context, server.url)
        page = watched.page
        assert page.inner_text("#welcome") == "Talk to fake/sft@1."
        watched.ask("What is 2 * 21?")
        body = page.locator(".message.assistant .body")
        assert body.locator("h3").inner_text() == "A sum" and body.locator("strong").inner_text() == "42"
        assert body.locator(".tool summary").inner_text() == "2*21 = 42"
        assert not body.locator(".tool pre").is_visible()
        body.locator(".tool summary").click()
        assert body.locator(".tool pre").inner_text() == "calculator: 2*21\nresult: 42"
        assert body.locator("td").all_inner_texts() == ["1", "2"]
        assert body.locator("pre code").inner_text() == "print(42)\n"
        assert "tokens/s" in page.inner_text("#stats") and "of the context" in page.inner_text("#stats")
        assert page.title() == "What is 2 * 21? – nanochat"
        assert page.locator("#chats button[aria-current]").inner_text().startswith("What is 2 * 21?")
        context.grant_permissions(["clipboard-read", "clipboard-write"])
        body.locator(".copy").click()
        body.get_by_text("Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == "print(42)\n"
        watched.act("copy")
        assert page.evaluate("navigator.clipboard.readText()").startswith("# A sum\n\nLet me *see*: It is **42**.")
        assert watched.wrong == []


@pytest.mark.parametrize("by", ["button", "escape"])
def test_stop_keeps_what_was_said_and_go_on_adds_to_it(server: Serving, context, by: str) -> None:
    watched = Watched(context, server.url)
    page = watched.page
    watched.ask("Say the letters", wait=False)
    page.wait_for_selector(".message.assistant .block")
    page.click("#stop") if by == "button" else page.keyboard.press("Escape")
    page.wait_for_selector("#send:visible")
    wait_until(lambda: server.service.pool.num_active == 0)
    assert page.inner_text(".end:visible") == "Stopped."
    (said,) = watched.answers()
    choose(watched, max_new_tokens="7")
    watched.act("go on")
    page.get_by_text("Cut: the answer was as long as it may be").wait_for()
    (whole,) = watched.answers()
    assert whole.startswith(said) and len(whole) == len(said) + 7
    assert all((ord(b) - ord(a)) % 26 == 1 for a, b in zip(whole, whole[1:], strict=False))
    assert watched.wrong == []


def test_a_question_is_edited_and_both_branches_are_kept(short: Watched) -> None:
    page = short.page
    short.ask("first words")
    short.ask("second words")
    short.act("edit", 0)
    field = page.get_by_label("Edit the question")
    assert field.input_value() == "first words"
    field.press("Escape")
    assert not field.is_visible() and short.questions() == ["first words", "second words"]
    short.act("edit", 0)
    field.fill("other words, longer than before")
    field.press("Enter")
    page.wait_for_selector(".place")
    page.wait_for_selector("#send:visible")
    assert short.questions() == ["other words, longer than before"]
    assert page.inner_text(".place") == "2/2"
    short.act("previous")
    page.get_by_text("second words").wait_for()
    assert short.questions() == ["first words", "second words"]
    assert page.evaluate("document.activeElement.getAttribute('data-do')")  # the focus is still in the message
    page.reload()
    page.get_by_text("second words").wait_for()


def test_a_half_written_edit_outlives_another_branch(short: Watched) -> None:
    page = short.page
    short.ask("first words")
    short.act("edit")
    field = page.get_by_label("Edit the question")
    field.fill("half written")
    other = Watched(page.context, page.url)
    other.page.wait_for_selector(".message.user")
    other.act("edit")
    other.page.get_by_label("Edit the question").fill("other words")
    other.page.get_by_label("Edit the question").press("Enter")
    page.locator(".message.user .body", has_text="other words").wait_for()
    page.wait_for_selector("#send:visible:enabled")
    assert not field.is_visible()
    short.act("previous")
    field.wait_for()
    assert field.input_value() == "half written"
    assert short.wrong == other.wrong == []


def test_a_page_of_a_base_model_says_so(context) -> None:
    with serving(AlphabetModel(), is_chat=False) as server:
        page = Watched(context, server.url).page
        page.get_by_text("This is a base model").wait_for()


def test_an_answer_of_an_unknown_model_is_not_headed_with_the_served_one(short: Watched, tmp_path: Path) -> None:
    path = tmp_path / "taken.json"
    messages = [{"role": "user", "content": "Imported?"}, {"role": "assistant", "content": "Indeed."}]
    path.write_text(json.dumps({"messages": messages}))
    short.page.set_input_files("#file", path)
    short.page.get_by_text("Indeed.").wait_for()
    assert short.page.locator(".message.assistant .who").inner_text() == "Assistant"


def test_an_answer_is_given_again(short: Watched) -> None:
    page = short.page
    short.ask("hello")
    for number in (2, 3):
        short.act("again")
        page.get_by_text(f"{number}/{number}", exact=True).wait_for()
        page.wait_for_selector("#send:visible")
    short.act("previous")
    page.get_by_text("2/3", exact=True).wait_for()
    assert len(short.answers()) == 1 and short.wrong == []


def test_a_reload_in_mid_reply_frees_the_slot_and_marks_the_answer(server: Serving, context) -> None:
    watched = Watched(context, server.url)
    page = watched.page
    page.fill("#prompt", "a draft")
    page.reload()
    page.wait_for_selector("#model:not(:empty)")
    assert page.input_value("#prompt") == "a draft"
    watched.ask("Say the letters", wait=False)
    page.wait_for_selector(".message.assistant .block")
    page.reload()
    page.wait_for_selector(".message.assistant .end:visible")
    wait_until(lambda: server.service.pool.num_active == 0)
    assert len(watched.answers()[0]) > 1 and page.inner_text(".end:visible") == "Stopped."
    assert page.locator("[data-do='go on']").is_visible() and page.input_value("#prompt") == ""


def test_two_tabs_show_the_same_and_the_last_one_to_close_ends_the_answer(server: Serving, context) -> None:
    one = Watched(context, server.url)
    one.ask("Say the letters", wait=False)
    one.page.wait_for_selector(".message.assistant .block")
    two = Watched(context, one.page.url)
    two.page.wait_for_selector("#stop:visible")
    two.page.wait_for_selector(".message.assistant .block")
    one.page.close()
    before = len(two.answers()[0])
    wait_until(lambda: len(two.answers()[0]) > before + 20)
    two.page.click("#stop")
    two.page.wait_for_selector("#send:visible")
    three = Watched(context, two.page.url)
    choose(two, max_new_tokens="5")
    two.ask("and again")
    three.page.get_by_text("and again").first.wait_for()
    wait_until(lambda: three.answers() == two.answers())
    assert two.wrong == [] and three.wrong == []


@pytest.fixture
def whole(context) -> Iterator[Watched]:
    """A page whose answers end by themselves."""
    with serving(ScriptedModel(["whole"]), slots=1) as server:
        yield Watched(context, server.url)


def test_conversations_are_found_renamed_exported_taken_in_and_deleted(whole: Watched, tmp_path: Path) -> None:
    short = whole
    page = short.page
    short.ask("about ducks and geese")
    page.click("#about-open")
    page.fill("#rename", "Water <i>birds</i>")
    page.press("#rename", "Enter")
    page.get_by_role("heading", name="Water <i>birds</i>").wait_for()
    page.click("#new")
    short.ask("something else")
    page.fill("#search", "GEESE")
    wait_until(lambda: page.locator("#chats button").count() == 1)
    assert [text.split("\n")[0] for text in page.locator("#chats button").all_inner_texts()] == ["Water <i>birds</i>"]
    page.fill("#search", "no such words at all")
    page.get_by_text("No conversation holds these words.").wait_for()
    page.fill("#search", "geese")
    page.click("#chats button")
    page.get_by_text("about ducks and geese").wait_for()
    for form, suffix in (("markdown", ".md"), ("json", ".json"), ("jsonl", ".jsonl")):
        page.click("#about-open")
        with page.expect_download() as found:
            page.click(f"[data-form='{form}']")
        path = tmp_path / found.value.suggested_filename
        found.value.save_as(path)
        assert path.suffix == suffix and "about ducks and geese" in path.read_text()
    page.fill("#search", "")
    page.set_input_files("#file", path)
    page.get_by_text("One conversation was taken in.").wait_for(state="attached")
    assert short.questions() == ["about ducks and geese"]
    wait_until(lambda: page.locator("#chats button").filter(has_text="about ducks").count() == 1)
    (tmp_path / "bad.json").write_text("{")
    page.set_input_files("#file", tmp_path / "bad.json")
    page.get_by_text("bad.json:1: no JSON").wait_for()
    page.click("#about-open")
    page.click("#delete")
    page.get_by_role("button", name="Delete for good").click()
    page.wait_for_selector("#welcome:visible")
    wait_until(lambda: page.locator("#chats button").filter(has_text="about ducks").count() == 0)
    assert not page.locator("#notice").is_visible() and "#" not in page.url
    assert short.wrong == []


def test_settings_are_kept_sent_and_checked(server: Serving, context) -> None:
    watched = Watched(context, server.url)
    page = watched.page
    choose(watched, temperature="0.5", max_new_tokens="3", seed="7", system="Be brief.")
    page.reload()
    page.wait_for_selector("#model:not(:empty)")
    watched.ask("hello")
    assert len(watched.answers()[0]) == 3
    page.click("#settings-open")
    assert page.input_value("#seed") == "7"
    assert page.inner_text("#system-here") == "This conversation has its own: Be brief."
    page.fill("#temperature", "-1")
    page.click("#settings button[type=submit]")
    assert page.locator("#settings").is_visible()  # the browser refuses it
    page.click("#reset")
    page.select_option("#theme", "dark")
    page.click("#settings button[type=submit]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(18, 23, 22)"
    page.reload()
    page.wait_for_selector("#model:not(:empty)")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    assert watched.wrong == []


def test_enter_in_an_input_method_does_not_send(short: Watched) -> None:
    page = short.page
    page.fill("#prompt", "にほん")
    for options in ({"isComposing": True}, {"keyCode": 229}):
        page.locator("#prompt").dispatch_event("keydown", {"key": "Enter", "bubbles": True, **options})
    page.press("#prompt", "Shift+Enter")
    assert page.input_value("#prompt") == "にほん\n" and short.questions() == []
    page.press("#prompt", "Enter")
    page.wait_for_selector("#stats:not(:empty)")
    assert short.questions() == ["にほん\n"] or short.questions() == ["にほん"]
    page.press("#prompt", "ArrowUp")
    assert page.get_by_label("Edit the question").is_visible()


def test_a_phone(server: Serving, browser) -> None:
    context = browser.new_context(viewport={"width": 360, "height": 640}, has_touch=True, is_mobile=True)
    watched = Watched(context, server.url)
    page = watched.page
    choose(watched, max_new_tokens="300")
    watched.ask("x" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.querySelector('#log').scrollWidth <= document.querySelector('#log').clientWidth")
    assert not page.locator("#search").is_visible()
    page.tap("#side-open")
    page.locator("#search").wait_for()
    page.locator("#chats button").first.tap()
    page.wait_for_selector("#search", state="hidden")
    small = page.eval_on_selector_all(
        "button:not([hidden])",
        "all => all.map(b => b.getBoundingClientRect()).filter(r => r.width && (r.width < 24 || r.height < 24)).length",
    )
    assert small == 0  # WCAG 2.2, 2.5.8
    assert watched.wrong == []
    context.close()


def test_with_the_keyboard_only(server: Serving, context) -> None:
    watched = Watched(context, server.url)
    page = watched.page

    def focused() -> str:
        return page.evaluate("document.activeElement.id || document.activeElement.getAttribute('data-do') || ''")

    def tab_to(wanted: str, key: str = "Tab") -> None:
        for _ in range(60):
            if focused() == wanted:
                return
            page.keyboard.press(key)
        raise AssertionError(f"{wanted} cannot be reached; the focus is at {focused()!r}")

    assert focused() == "prompt"
    tab_to("settings-open", "Shift+Tab")
    page.keyboard.press("Enter")
    tab_to("max_new_tokens")
    page.keyboard.type("9")
    page.keyboard.press("Escape")
    assert focused() == "settings-open"
    tab_to("prompt")
    page.keyboard.type("hello")
    page.keyboard.press("Enter")
    page.wait_for_selector("#stats:not(:empty)")
    assert focused() == "prompt"
    tab_to("again", "Shift+Tab")
    page.keyboard.press("Enter")
    page.get_by_text("2/2").wait_for()
    page.wait_for_selector("#send:visible")
    tab_to("previous", "Shift+Tab" if focused() == "prompt" else "Tab")
    page.keyboard.press("Enter")
    page.get_by_text("1/2").wait_for()
    assert focused() != ""  # not thrown back to the page's beginning
    tab_to("new", "Shift+Tab")
    page.keyboard.press("Enter")
    page.wait_for_selector("#welcome:visible")
    assert focused() == "prompt"
    page.keyboard.press("Shift+Tab")
    wait_until(lambda: page.evaluate("document.activeElement.matches(':focus-visible')"))
    assert watched.wrong == []


def test_a_screen_reader_is_told(short: Watched) -> None:
    page = short.page
    short.ask("hello")
    assert page.inner_text("#status").startswith("Answer: ")
    assert page.locator("#messages h2").all_inner_texts() == ["You", "fake/sft@1"]
    assert page.get_attribute(".message.assistant .body", "aria-busy") == "false"
    tree = page.locator("main").aria_snapshot()
    for name in ('button "Copy this answer"', 'button "Edit this question"', 'textbox "Message"', 'region "Messages"'):
        assert name in tree, tree


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1100])
def test_axe_finds_nothing(browser, theme: str, width: int) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    context = browser.new_context(viewport={"width": width, "height": 700}, color_scheme=theme)
    model = ScriptedModel(SCRIPT, pause_after=70)
    with serving(model, slots=1) as server:
        watched = Watched(context, server.url)
        page = watched.page

        def check(state: str) -> None:
            options = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}
            found = axe.run(page, options=options).response["violations"]
            assert not found, (state, [(rule["id"], [node["html"] for node in rule["nodes"]][:3]) for rule in found])

        check("empty")
        watched.ask("What is 2 * 21?", wait=False)
        page.wait_for_selector(".tool")
        check("answering")
        model.resume.set()
        page.wait_for_selector("#stats:not(:empty)")
        page.locator(".tool summary").click()
        check("answered")
        watched.act("edit")
        check("editing")
        page.get_by_label("Edit the question").press("Escape")
        for dialog in ("settings", "about", "help"):
            page.click(f"#{dialog}-open")
            check(dialog)
            page.keyboard.press("Escape")
        if width < 500:
            page.click("#side-open")
            page.evaluate("Promise.all(document.getAnimations().map((each) => each.finished))")  # it slides in
            check("list")
    context.close()


def test_after_a_restart_of_the_server_the_answer_is_marked_and_can_be_gone_on_with(context, tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    with serving(AlphabetModel(), store=ChatStore(path), drain=0.0) as server:
        watched = Watched(context, server.url)
        page = watched.page
        watched.ask("Say the letters", wait=False)
        page.wait_for_selector(".message.assistant .block")
        port = int(server.url.rpartition(":")[2])
    page.get_by_text("The connection to the server was lost. Trying again…").wait_for()
    said = watched.answers()[0]
    assert page.locator(".end:visible").count() == 1
    page.fill("#prompt", "not lost")
    page.press("#prompt", "Enter")
    page.get_by_text("There is no connection to the server.").wait_for()
    assert page.input_value("#prompt") == "not lost"
    with serving(AlphabetModel(), store=ChatStore(path), port=port) as server:
        page.wait_for_selector("#notice", state="hidden")
        page.wait_for_selector("[data-do='go on']")
        assert watched.answers()[0] == said
        choose(watched, max_new_tokens="4")
        watched.act("go on")
        page.get_by_text("Cut: the answer was as long as it may be").wait_for()
        assert len(watched.answers()[0]) == len(said) + 4
        assert watched.wrong == []


def test_a_key_is_asked_for_once(context) -> None:
    with serving(AlphabetModel(), access=Access(api_key="s3cret")) as server:
        page = context.new_page()
        page.goto(server.url)
        page.fill("#key-text", "wrong")
        page.press("#key-text", "Enter")
        page.get_by_text("this is not the API key").wait_for()
        page.fill("#key-text", "s3cret")
        page.press("#key-text", "Enter")
        page.wait_for_selector("#model:not(:empty)")
        page.reload()
        page.wait_for_selector("#model:not(:empty)")
        assert page.locator("#key-text").is_hidden()


def test_exported_lines_are_what_training_reads(whole: Watched, tmp_path: Path) -> None:
    from nanochat.conversation import parse_conversation

    whole.ask("hello")
    whole.page.click("#about-open")
    with whole.page.expect_download() as found:
        whole.page.click("[data-form='jsonl']")
    found.value.save_as(tmp_path / "x.jsonl")
    conversation = parse_conversation(json.loads((tmp_path / "x.jsonl").read_text()))
    assert [message.role for message in conversation.messages] == ["user", "assistant"]


def test_a_conversation_that_is_deleted_elsewhere_is_left_with_a_word(server: Serving, context) -> None:
    one = Watched(context, server.url)
    choose(one, max_new_tokens="5")
    one.ask("to be deleted")
    two = Watched(context, one.page.url)
    two.page.get_by_text("to be deleted").first.wait_for()
    one.page.click("#about-open")
    one.page.click("#delete")
    one.page.get_by_role("button", name="Delete for good").click()
    two.page.get_by_text("This conversation was deleted in another window.").wait_for()
    assert two.page.locator("#welcome").is_visible() and one.page.locator("#notice").is_hidden()
    two.page.goto("about:blank")
    two.page.goto(f"{server.url}#zzzz")
    two.page.get_by_text("That conversation is not there any more.").wait_for()


def test_what_a_terminal_says_is_shown_while_it_says_it(context, tmp_path: Path) -> None:
    path = tmp_path / "chats.db"
    other = subprocess.Popen(
        [sys.executable, "-c", TERMINAL, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdin is not None and other.stdout is not None
    other.stdout.readline()
    with serving(AlphabetModel(), store=ChatStore(path)) as server:
        watched = Watched(context, server.url)
        page = watched.page
        page.click("#chats button")
        page.get_by_text("Being answered in another program…").wait_for()
        assert page.locator("[data-do='go on']").count() == 0
        other.stdin.write("more\n")
        other.stdin.flush()
        page.get_by_text("some more").wait_for()
        other.kill()
        other.wait()
        page.reload()
        page.get_by_text("This answer was never finished.").wait_for()
        assert page.locator("[data-do='go on']").is_visible() and watched.wrong == []


TERMINAL = """
import sys
from pathlib import Path
from nanochat.chat.store import ChatStore
from nanochat.conversation import Message, Part, user
store = ChatStore(Path(sys.argv[1]))
chat = store.create("", "from a terminal")
answer = store.add(chat, store.add(chat, None, user("q")), Message("assistant", (Part("text", "some"),)))
store.locks.hold(answer)
print("ready", flush=True)
for line in sys.stdin:
    store.write(answer, (Part("text", "some " + line.strip()),))
"""
