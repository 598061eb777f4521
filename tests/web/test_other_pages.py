"""Pages of other sites that may ask, and the page behind a proxy's prefix: in headers, and in a real browser."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler

import httpx
import pytest

from nanochat.cli.serve import read_origin, read_root_path
from nanochat.errors import UsageError
from nanochat.web.guard import Access
from tests.engine.fakes import ScriptedModel
from tests.http_server import EndingServer
from tests.patience import PATIENCE_SECONDS
from tests.web.browser import Watched, open_browser
from tests.web.serving import Serving, serving, tiny_model

OURS = "https://ours.example"
ASK = {"messages": [{"role": "user", "content": "hello"}]}


def preflight(server: Serving, origin: str, **more: str) -> httpx.Response:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"} | more
    return httpx.options(f"{server.url}/v1/chat/completions", headers=headers, timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    with serving(tiny_model(), access=Access(api_key="k", origins=(OURS,), root_path="/llm")) as server:
        yield server


def test_a_browser_that_asks_whether_a_page_may_ask_needs_no_key(server: Serving) -> None:
    asked = {"Access-Control-Request-Headers": "authorization,content-type,x-stainless-os"}
    answer = preflight(server, OURS, **asked, **{"Access-Control-Request-Private-Network": "true"})
    assert (answer.status_code, answer.content) == (204, b"")
    assert answer.headers["Access-Control-Allow-Origin"] == OURS and answer.headers["Vary"] == "Origin"
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    assert answer.headers["Access-Control-Allow-Headers"] == "authorization,content-type,x-stainless-os"
    assert answer.headers["Access-Control-Allow-Private-Network"] == "true"


def test_a_page_that_may_not_ask_is_told_nothing(server: Serving) -> None:
    for answer in (
        preflight(server, "https://evil.example"),
        server.post("/v1/chat/completions", ASK, headers={"Origin": "https://evil.example"}),
    ):
        assert answer.status_code == 403 and not any("access-control" in name.lower() for name in answer.headers)
        assert answer.json()["error"]["message"].endswith("nanochat serve --allow-origin https://evil.example")


def test_headers_of_a_preflight_open_nothing_to_other_requests(server: Serving) -> None:
    headers = {"Access-Control-Request-Method": "GET"}
    for more in ({}, {"Origin": OURS}, {"Origin": server.url}):
        assert server.get("/v1/models", headers=headers | more).status_code == 401
        assert server.post("/v1/chat/completions", ASK, headers=headers | more).status_code == 401


def test_a_page_can_read_every_answer_and_every_error(server: Serving, monkeypatch: pytest.MonkeyPatch) -> None:
    good = {"Origin": OURS, "Authorization": "Bearer k"}
    body = ASK | {"max_tokens": 2}
    answers = [
        (200, server.post("/v1/chat/completions", body, headers=good)),
        (200, server.post("/v1/chat/completions", body | {"stream": True}, headers=good)),
        (400, server.post("/v1/chat/completions", {"messages": []}, headers=good)),
        (401, server.post("/v1/chat/completions", body, headers={"Origin": OURS})),
        (404, server.get("/v1/nothing", headers=good)),
        (405, server.get("/v1/completions", headers=good)),
        (413, server.post("/v1/completions", {"prompt": "a" * (9 << 20)}, headers=good)),
    ]
    monkeypatch.setattr(server.service, "render", lambda messages: 1 / 0)
    answers.append((500, server.post("/v1/chat/completions", body, headers=good)))
    for status, answer in answers:
        assert answer.status_code == status and answer.headers["Access-Control-Allow-Origin"] == OURS, answer.text
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answers[-1][1].json()["error"]["message"] == "a bug of the server: ZeroDivisionError"


def test_a_star_lets_every_page_ask() -> None:
    with serving(tiny_model(), access=Access(origins=("*",))) as server:
        for origin in (OURS, "null"):
            assert server.get("/v1/models", headers={"Origin": origin}).headers["Access-Control-Allow-Origin"] == origin


def test_a_host_that_is_refused_is_named_with_the_option(server: Serving) -> None:
    answer = server.get("/v1/models", headers={"Host": "host.docker.internal:8000"})
    assert answer.json()["error"]["message"].endswith("nanochat serve --allow-host host.docker.internal")
    assert "nanochat serve" not in server.get("/v1/models", headers={"Host": "a$(b)"}).text


def test_a_page_behind_a_proxy_that_changes_host_loads_and_the_refusal_is_logged_once(
    server: Serving, caplog: pytest.LogCaptureFixture
) -> None:
    """Its scripts are modules, which a browser asks for with Origin."""
    headers = {"Origin": "http://proxy.example"}
    assert server.get("/page/main.js", headers=headers).status_code == 200
    for _ in range(2):
        assert server.get("/v1/models", headers=headers).status_code == 403
    assert [record.message for record in caplog.records].count(
        "refused: pages of 'http://proxy.example' may not use this server: "
        "nanochat serve --allow-origin http://proxy.example"
    ) == 1


@pytest.mark.parametrize("prefix", ["", "/llm"])
def test_paths_are_found_whether_the_proxy_leaves_its_prefix_or_not(server: Serving, prefix: str) -> None:
    key = {"Authorization": "Bearer k"}
    assert server.get(f"{prefix}/v1/models", headers=key).status_code == 200
    assert server.get(f"{prefix}/v1/models").status_code == 401
    assert server.get(f"{prefix}/page/main.js").status_code == server.get(f"{prefix}/health").status_code == 200
    moved = server.post(f"{prefix}/v1/completions/", {}, headers=key)
    assert moved.status_code == 307 and moved.headers["Location"] == f"{server.url}/llm/v1/completions"
    assert server.get("/llm").headers["Location"] == "/llm/" and server.get("/llmx").status_code == 401


@pytest.mark.parametrize("text", ["ours.example", "https://", "https://a/b", "https://a b", "https://me@a", ""])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is no origin") as raised:
        read_origin(text)
    assert raised.value.hint.startswith("nanochat serve --allow-origin https://")


@pytest.mark.parametrize("text", ["llm", "/a b", "//x", "/a?b"])
def test_what_is_no_prefix_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--root-path"):
        read_root_path(text)


ASKING = """
async ([url, key]) => {
  const headers = {"Content-Type": "application/json", "X-Stainless-OS": "Linux"};
  if (key) headers["Authorization"] = "Bearer " + key;
  const ask = (body) => fetch(url + "/v1/chat/completions", {method: "POST", headers, body: JSON.stringify(body)});
  const messages = [{role: "user", content: "hello"}];
  const whole = await ask({messages});
  const streamed = await ask({messages, stream: true});
  const wrong = await ask({messages: []});
  return [whole.status, await whole.json(), await streamed.text(), wrong.status, await wrong.json()];
}
"""


@contextmanager
def other_site() -> Iterator[str]:
    """The origin of an empty page."""

    class Page(BaseHTTPRequestHandler):
        def log_message(self, *_arguments) -> None:
            pass

        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()

    site = EndingServer(("127.0.0.1", 0), Page)
    with site.running():
        yield f"http://127.0.0.1:{site.server_address[1]}"


@pytest.mark.parametrize("key", ["", "k"])
def test_a_page_of_another_site_asks_in_a_browser(key: str) -> None:
    with open_browser() as browser, other_site() as origin, other_site() as stranger:
        with serving(ScriptedModel(["Hello there."]), access=Access(api_key=key, origins=(origin,))) as server:
            page = browser.new_context().new_page()
            page.goto(origin)
            status, answer, events, wrong, said = page.evaluate(ASKING, [server.url, key])
            assert status == 200 and answer["choices"][0]["message"]["content"] == "Hello there."
            deltas = [json.loads(line[6:])["choices"][0]["delta"] for line in events.split("\n\n") if "{" in line]
            assert "".join(delta.get("content", "") for delta in deltas) == "Hello there." and "[DONE]" in events
            assert wrong == 400 and "messages" in said["error"]["message"]
            page.goto(stranger)
            assert "Failed to fetch" in page.evaluate(
                f"(about) => ({ASKING})(about).then(() => 'read', (error) => error.message)", [server.url, key]
            )


def test_the_page_works_behind_a_prefix() -> None:
    with open_browser() as browser, serving(ScriptedModel(["Hi."]), access=Access(root_path="/a/llm")) as server:
        watched = Watched(browser.new_context(), f"{server.url}/a/llm")
        assert watched.page.url == f"{server.url}/a/llm/"
        watched.ask("hello")
        assert watched.answers() == ["Hi."] and watched.wrong == []
        watched.page.reload()
        watched.page.wait_for_selector(".message.assistant")
        assert watched.page.url.startswith(f"{server.url}/a/llm/#")
