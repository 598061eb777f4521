"""`nanochat serve` as a command: what it refuses before a model is loaded, and how it ends."""

import errno
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from websockets.sync.client import connect

from nanochat.chat.store import ChatStore
from nanochat.cli.serve import open_port
from nanochat.errors import UsageError
from tests.cli.conftest import Outcome
from tests.patience import PATIENCE_SECONDS
from tests.web.test_talk import Window

Call = Callable[..., Outcome]
CODE = "import sys; from nanochat.cli.main import main; sys.exit(main())"


def hear_hangups() -> None:
    """The tests themselves may run under nohup, which new processes inherit."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(
    home: Path, *words: str, before: Callable[[], object] = hear_hangups, err: int = subprocess.PIPE, **environ: str
) -> subprocess.Popen[str]:
    """before: done in the new process. err: where its stderr goes."""
    return subprocess.Popen(
        [sys.executable, "-c", CODE, "serve", "whole/sft", "--home", str(home), "--port", "0", *words],
        stdout=subprocess.PIPE,
        stderr=err,
        text=True,
        env=os.environ | environ,
        preexec_fn=before,
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_it_answers_and_a_signal_ends_it_well(trained_home: Path, number: int) -> None:
    process = start(trained_home, "--slots", "2")
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    body = {"messages": [{"role": "user", "content": "What is 1 + 2?"}], "max_tokens": 5, "temperature": 0}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=PATIENCE_SECONDS).json()
    assert answer["model"].startswith("whole/sft@") and answer["usage"]["completion_tokens"] <= 5
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0 and out == ""
    assert "Traceback" not in err and "2 slots of 64 tokens" in err and err.endswith("\nstopping\n")


def test_a_terminal_that_closes_ends_it_well(trained_home: Path) -> None:
    ours, theirs = os.openpty()

    def take_terminal() -> None:
        hear_hangups()
        os.setsid()
        fcntl.ioctl(theirs, termios.TIOCSCTTY, 0)

    process = start(trained_home, before=take_terminal, err=theirs)
    os.close(theirs)
    assert process.stdout is not None and process.stdout.readline().startswith("http://127.0.0.1:")
    os.close(ours)
    assert process.wait(PATIENCE_SECONDS) == 0
    process.stdout.close()


def test_under_nohup_a_terminal_that_closes_ends_nothing(trained_home: Path) -> None:
    process = start(trained_home, before=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert httpx.get(f"{url}/health", timeout=PATIENCE_SECONDS).status_code == 200
    process.terminate()
    assert process.communicate(timeout=PATIENCE_SECONDS)[1].endswith("\nstopping\n") and process.returncode == 0


def test_another_host_needs_a_key(trained_home: Path) -> None:
    process = start(trained_home, "--host", "0.0.0.0")
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2 and "opens the model to the network, and there is no key" in err
    assert "NANOCHAT_API_KEY=... nanochat serve --host 0.0.0.0" in err
    opened = start(trained_home, "--host", "0.0.0.0", NANOCHAT_API_KEY="k")
    assert opened.stdout is not None
    url = opened.stdout.readline().strip()
    assert url.startswith("http://127.0.0.1:")
    try:
        assert httpx.get(f"{url}/v1/models", headers={"Host": "my.machine"}).status_code == 401
        good = {"Host": "my.machine", "Authorization": "Bearer k"}
        assert httpx.get(f"{url}/v1/models", headers=good).status_code == 200
    finally:
        opened.terminate()
        _, err = opened.communicate(timeout=PATIENCE_SECONDS)
        assert opened.returncode == 0 and "it listens on all addresses of this machine" in err


def test_a_port_in_use_is_said_before_a_model_is_loaded(trained_home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        process = start(trained_home, "--port", str(port))
        _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 2 and f"cannot listen on 127.0.0.1:{port}: Address already in use" in err
    assert f"nanochat serve --port {port + 1}" in err


def test_caches_that_do_not_fit_are_refused(trained_home: Path) -> None:
    process = start(trained_home, "--slots", "100000000")
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
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
        (["--temperature", "inf"], 2, "--temperature inf is not 0 or more, and finite"),
        (["--drain", "inf"], 2, "--drain inf is no number of seconds"),
        (["--deadline", "inf"], 2, "--deadline inf is no number of seconds"),
        (["--api-key", "pass word"], 2, "character 5 of --api-key is a space, and no API client can send such a key"),
        (["--api-key", "k\u00e9y"], 2, "character 2 of --api-key is no visible ASCII character"),
        (["--api-key", "key\n"], 2, "character 4 of --api-key is no visible ASCII character"),
    ],
)
def test_wrong_words_are_sentences(nanochat: Call, words: list[str], code: int, said: str) -> None:
    outcome = nanochat("serve", *words)
    assert outcome.code == code and said in outcome.err and "Traceback" not in outcome.err
    assert "pass word" not in outcome.err, "a key is a secret"


def test_a_key_of_the_environment_that_no_client_can_send_is_refused(
    nanochat: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NANOCHAT_API_KEY", "\u043a\u043b\u044e\u0447")
    outcome = nanochat("serve")
    assert outcome.code == 2 and "character 1 of $NANOCHAT_API_KEY is no visible ASCII" in outcome.err
    assert "secrets.token_urlsafe" in outcome.err and "\u043a" not in outcome.err


@pytest.mark.parametrize("host", ["no-such-host.invalid", "192.0.2.1", "a..b", "x" * 300, "[::1]", "2001:db8::1"])
def test_an_address_that_is_not_ours_asks_for_another_address(host: str) -> None:
    with pytest.raises(UsageError, match="cannot listen on") as raised:
        open_port(host, 8000)
    assert raised.value.hint == "nanochat serve --host 127.0.0.1  # or another address of this machine"


def test_a_port_of_the_administrator_asks_for_another_port(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(listener: socket.socket, place: tuple[str, int]) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    with pytest.raises(UsageError, match="cannot listen on 127.0.0.1:80: Permission denied") as raised:
        open_port("127.0.0.1", 80)
    assert raised.value.hint.startswith("nanochat serve --port 8000")


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="IPv6 is off here")
def test_all_addresses_of_both_kinds_are_listened_on() -> None:
    with open_port("::", 0) as listener:
        for host in ("127.0.0.1", "::1"):
            with socket.create_connection((host, listener.getsockname()[1]), timeout=PATIENCE_SECONDS) as connection:
                assert connection.getpeername()[0] == host


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
            process.kill()
        process.wait()
        store = ChatStore(home / "chats" / "chats.db")
        seen[asked["message"]] = store.read(chat, asked["message"])[-1].message.text
        for message, text in seen.items():
            assert text and store.read(chat, message)[-1].message.text == text
        store.close()
    assert len(seen) == 3
