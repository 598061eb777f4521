"""`nanochat serve` as a command: what it refuses before a model is loaded, and how it ends."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from nanochat.chats.store import ChatStore
from tests.cli.conftest import Outcome
from tests.web.test_talk import Window

Call = Callable[..., Outcome]
CODE = "import sys; from nanochat.cli.main import main; sys.exit(main())"


def start(home: Path, *words: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "serve", "whole/sft", "--home", str(home), "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environ,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_answers_and_a_signal_ends_it_well(trained_home: Path, number: int) -> None:
    process = start(trained_home, "--slots", "2")
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    body = {"messages": [{"role": "user", "content": "What is 1 + 2?"}], "max_tokens": 5, "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).json()
    assert answer["model"].startswith("whole/sft@") and answer["usage"]["completion_tokens"] <= 5
    started = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 0 and out == "" and time.monotonic() - started < 5
    assert "Traceback" not in err and "2 slots of 64 tokens" in err


def test_another_host_needs_a_key(trained_home: Path) -> None:
    process = start(trained_home, "--host", "0.0.0.0")
    _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and "opens the model to the network, and there is no key" in err
    assert "NANOCHAT_API_KEY=... nanochat serve --host 0.0.0.0" in err
    opened = start(trained_home, "--host", "0.0.0.0", NANOCHAT_API_KEY="k")
    assert opened.stdout is not None
    port = opened.stdout.readline().strip().rpartition(":")[2]
    url = f"http://127.0.0.1:{port}"
    try:
        assert httpx.get(f"{url}/v1/models", headers={"Host": "my.machine"}).status_code == 401
        good = {"Host": "my.machine", "Authorization": "Bearer k"}
        assert httpx.get(f"{url}/v1/models", headers=good).status_code == 200
    finally:
        opened.terminate()
        assert opened.wait(20) == 0


def test_a_port_in_use_is_said_before_a_model_is_loaded(trained_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(trained_home, "--port", str(port))
        _, err = process.communicate(timeout=30)
    assert process.returncode == 2 and f"cannot listen on 127.0.0.1:{port}: Address already in use" in err
    assert f"nanochat serve --port {port + 1}" in err


def test_caches_that_do_not_fit_are_refused(trained_home: Path) -> None:
    process = start(trained_home, "--slots", "100000000")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 5 and "100000000 slots of 64 tokens need" in err and "nanochat serve --slots" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["nothing"], 3, "nothing"),
        (["--temperature", "-1"], 2, "--temperature -1.0 is not 0 or more"),
        (["--port", "99999"], 2, "'--port'"),
        (["--slots", "0"], 2, "'--slots'"),
        (["--dtype", "fp8"], 2, "--dtype fp8 is none of auto, float32, bfloat16"),
    ],
)
def test_wrong_words_are_sentences(nanochat: Call, words: list[str], code: int, said: str) -> None:
    outcome = nanochat("serve", *words)
    assert outcome.code == code and said in outcome.err and "Traceback" not in outcome.err


def test_a_kill_in_mid_reply_keeps_what_was_said(trained_home: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    shutil.copytree(trained_home / "runs", home / "runs")
    seen: dict[int, str] = {}
    chat = None
    for number in range(3):
        process = start(home)
        assert process.stdout is not None
        url = process.stdout.readline().strip().replace("http", "ws") + "/talk"
        with connect(url) as connection:
            page = Window(connection)
            page.get("hello")
            if chat is not None:
                shown = page.get("open", chat=chat)
                assert shown["running"] is None and len(shown["messages"]) == 2
            wish = {
                "chat": chat,
                "parent": None,
                "text": f"Story {number}",
                "sampling": {"temperature": 2.0, "seed": 1},
            }
            asked = page.get("ask", **wish)
            chat = asked["chat"]
            page.wait("grew")
            time.sleep(0.1)  # it is written down a moment after it is shown
            process.kill()
        process.wait()
        store = ChatStore(home / "chats" / "chats.db")
        seen[asked["message"]] = store.read(chat, asked["message"])[-1].message.text
        for message, text in seen.items():
            assert text and store.read(chat, message)[-1].message.text == text
        store.close()
    assert len(seen) == 3
