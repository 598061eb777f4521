"""`nanochat download` from the command line to the folder, against a hub of ours, in processes of their own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from nanochat.cli.needs import Needs, check_downloads, list_needs, list_tasks, order_tasks
from nanochat.cli.options import Invocation
from nanochat.cli.progress import ProgressLine, describe_progress
from nanochat.cli.target import Target
from nanochat.config.load import load_settings
from nanochat.config.settings import Settings
from nanochat.data.shards import verify_dataset
from nanochat.download.record import Entry, Record, save_record
from nanochat.download.transfer import Progress
from nanochat.errors import MissingError
from nanochat.paths import RunPaths
from tests.cli.conftest import Outcome
from tests.hub_server import HubServer, load_folder, serve
from tests.patience import PATIENCE_SECONDS, wait_until

CONFIG = """
[model]
depth = 4
[base]
num_steps = 200  # 503M characters: three shards to train on, one to validate
[mid]
mixture = ["gsm8k:50*2", "identity"]
[sft]
mixture = ["custom:mine.jsonl"]
[eval]
tasks = ["humaneval"]
"""
TASK_FILES = ("openai/gsm8k/main/train-0.parquet", "openai/gsm8k/main/test-0.parquet")
NO_SOCKETS = """
import socket, sys
def forbid(event, arguments):
    if event.startswith("socket.") and event != "socket.gethostname":
        raise AssertionError(f"a socket was opened: {event} {arguments}")
sys.addaudithook(forbid)
from nanochat.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    for index in range(6):
        path = folder / "text" / f"shard_{index:05d}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"text": [f"text {index} {row}" for row in range(50)]}), path)
    for name in (*TASK_FILES, "openai/openai_humaneval/openai_humaneval/test-0.parquet"):
        path = folder / "hub" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"question": ["1+1?"]}), path)
    for name in ("core.yaml", "eval_meta_data.csv", "eval_data/a.jsonl"):
        path = folder / "core" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}\n")
    return folder


@pytest.fixture
def server(served: Path) -> Iterator[HubServer]:
    with serve() as server:
        load_folder(server, served)
        yield server


@pytest.fixture
def spawn(server: HubServer, home: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Start nanochat in a process of its own, with the server as its hub."""
    Path("d4.toml").write_text(CONFIG)

    def start(*words: str, code: str = "", **environ: str) -> "subprocess.Popen[str]":
        program = ["-c", code] if code else ["-m", "nanochat.cli.main"]
        return subprocess.Popen(
            [sys.executable, *program, *words],
            env={**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_DOWNLOAD_TIMEOUT": "1", **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


@pytest.fixture
def call(spawn) -> Callable[..., Outcome]:
    def run(*words: str, **options: str) -> Outcome:
        process = spawn(*words, **options)
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
        return Outcome(process.returncode, out, err)

    return run


@pytest.fixture
def fetch_all(server) -> tuple[str, ...]:
    return ("download", "all", "--config", "d4.toml", "--core-from", f"{server.url}/files/eval_bundle.zip")


def test_all_that_a_preset_needs_is_fetched_and_then_nothing_more(call, server, home, fetch_all) -> None:
    outcome = call(*fetch_all, "--json")
    assert outcome.code == 0, outcome.err
    found = {Path(row["folder"]).relative_to(home).as_posix(): row["files"] for row in json.loads(outcome.out)}
    assert found == {"core": 3, "data/fineweb-edu": 4, "tasks/openai/gsm8k": 2, "tasks/openai/openai_humaneval": 1}
    assert "next:  nanochat run --config d4.toml" in outcome.err
    manifest = verify_dataset(home / "data/fineweb-edu")
    names = {shard.name: shard.split for shard in manifest.shards}
    assert names == {f"shard_0000{i}.parquet": "val" if i == 5 else "train" for i in (0, 1, 2, 5)}
    before = len(server.requests)
    assert call(*fetch_all).code == 0 and len(server.requests) == before
    more = call("download", "data", "--config", "d4.toml", "--shards", "5", "--json")
    assert json.loads(more.out)["shards"] == 5 and len(server.requests) == before + 1


@pytest.mark.parametrize("option, environ", [("--offline", ""), ("", "NANOCHAT_OFFLINE"), ("", "HF_HUB_OFFLINE")])
def test_offline_opens_no_socket(call, home, fetch_all, option, environ) -> None:
    calm = {"code": NO_SOCKETS, **({environ: "1"} if environ else {})}
    flag = [option] if option else []
    missing = call(*fetch_all, *flag, **calm)
    assert missing.code == 4, missing.err
    assert "missing: openai/gsm8k: main/train-*.parquet" in missing.err
    assert "missing: karpathy/fineweb-edu-100b-shuffle: shard_*.parquet" in missing.err
    first, second = missing.err.splitlines()[-2:]
    assert (
        first.startswith("error: 5 files are missing (offline)") and "nanochat download all --config d4.toml" in second
    )
    for words in (["data", "--config", "d4.toml"], ["tasks"], ["core"]):
        assert call("download", *words, *flag, **calm).code == 4
    assert call(*fetch_all).code == 0
    for words in (fetch_all, ("download", "verify"), ("download", "data", "--config", "d4.toml")):
        outcome = call(*words, *flag, **calm)
        assert outcome.code == 0, outcome.err


def test_the_hook_of_these_tests_sees_sockets(call, fetch_all) -> None:
    outcome = call(*fetch_all, code=NO_SOCKETS)
    assert outcome.code != 0 and "a socket was opened" in outcome.err


def test_no_server_is_exit_4_with_the_command_to_go_on(call) -> None:
    outcome = call("download", "tasks", "gsm8k", HF_ENDPOINT="http://127.0.0.1:9", code=BRIEF)
    assert outcome.code == 4 and outcome.err.count("trying again") == 5
    assert "openai/gsm8k cannot be listed at http://127.0.0.1:9: connection failed" in outcome.err
    assert outcome.err.splitlines()[-1] == "hint:  nanochat download tasks gsm8k"


def test_a_hub_that_is_no_address_is_said_at_once(call) -> None:
    outcome = call("download", "tasks", "gsm8k", HF_ENDPOINT="gopher://hub")
    assert outcome.code == 2 and "HF_ENDPOINT" in outcome.err and "trying again" not in outcome.err


BRIEF = """
import sys
from nanochat.download.faults import Patience
Patience.wait_seconds = lambda self, failures, asked: 0.001
from nanochat.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


def test_proxies_and_timeouts_of_the_environment_are_honoured(call, server) -> None:
    elsewhere = {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": server.url, "NO_PROXY": "", "no_proxy": ""}
    outcome = call("download", "tasks", "gsm8k", **elsewhere)
    assert outcome.code == 0, outcome.err
    assert server.requests[0][1].startswith("http://hub.invalid/api/datasets/openai/gsm8k/revision/main")
    server.misbehave("hang", "/revision/", times=1)
    outcome = call("download", "tasks", "humaneval")
    assert outcome.code == 0 and "tried again 1 time: no answer for 1 seconds" in outcome.err


def test_a_download_that_fails_in_part_makes_no_data_set(call, server, home) -> None:
    server.misbehave("wrong_bytes", "shard_00001", times=None)
    outcome = call("download", "data", "--config", "d4.toml", code=BRIEF)
    assert outcome.code == 4 and "1 file is missing: shard_00001.parquet: sends other bytes" in outcome.err
    assert not (home / "data/fineweb-edu/shards.json").exists()
    server.rules.clear()
    assert call("download", "data", "--config", "d4.toml").code == 0
    assert server.count("shard_00000") == 1


def test_two_processes_at_once_fetch_each_file_once(spawn, server, home, fetch_all) -> None:
    server.bytes_per_second = 4_000
    processes = [spawn(*fetch_all) for _ in range(2)]
    outcomes = [process.communicate(timeout=PATIENCE_SECONDS) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outcomes
    assert sum("waiting for process" in err for _, err in outcomes) == 1
    assert server.count("/resolve/") == 7 and server.count("eval_bundle") == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_request_to_stop_says_how_to_go_on(spawn, call, server, home, number) -> None:
    server.bytes_per_second = 500
    process = spawn("download", "data", "--config", "d4.toml")
    wait_until(lambda: bool(list((home / "data").glob("fineweb-edu/.*.part"))))
    process.send_signal(number)
    _, err = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "hint:  nanochat download data --config d4.toml"
    server.bytes_per_second = 0
    assert call("download", "data", "--config", "d4.toml").code == 0


def test_a_damaged_file_is_found_and_repaired(call, server, home, fetch_all) -> None:
    assert call(*fetch_all).code == 0
    for name in ("data/fineweb-edu/shard_00001.parquet", "core/eval_data/a.jsonl"):
        body = bytearray((home / name).read_bytes())
        body[5] ^= 1
        (home / name).write_bytes(body)
    found = call("download", "verify")
    assert found.code == 7 and "shard_00001.parquet: has other bytes" in found.err
    assert found.err.splitlines()[-1] == "hint:  nanochat download verify --repair"
    assert call("download", "verify", "--repair", "--offline").code == 4
    assert call("download", "verify", "--repair").code == 0
    assert json.loads(call("download", "verify", "--json").out)["damaged"] == 0


def test_a_pack_brings_everything_to_a_machine_without_a_network(call, home, fetch_all, tmp_path) -> None:
    assert call("download", "pack", "all.tar").code == 3
    assert call(*fetch_all).code == 0 and call("download", "pack", "all.tar").code == 0
    other = ("--home", str(tmp_path / "other"))
    assert call("download", "unpack", "all.tar", *other, code=NO_SOCKETS).code == 0
    outcome = call(*fetch_all, "--offline", *other, code=NO_SOCKETS)
    assert outcome.code == 0, outcome.err
    assert call("download", "verify", *other).code == 0


def test_downloading_loads_no_torch(call, fetch_all) -> None:
    code = (
        "import sys; from nanochat.cli.main import main; code = main(sys.argv[1:]); "
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    outcome = call(*fetch_all, code=code)
    assert outcome.code == 0, outcome.err


def test_the_needs_of_presets() -> None:
    assert list_needs(load_settings("demo", environ={})[0]) == Needs()
    d20 = list_needs(load_settings("d20", environ={})[0])
    assert (d20.dataset, d20.num_shards, d20.has_core) == ("fineweb-edu", 202, True)
    settings = Settings.model_validate({"mid": {"mixture": ["gsm8k:5", "arc-easy*2"]}, "eval": {"tasks": ["mmlu"]}})
    assert list_tasks(settings) == ("arc-easy", "gsm8k", "mmlu")
    assert list_tasks(settings, ["base", "eval"]) == ("mmlu",)


def test_a_run_says_what_is_missing_before_it_starts(tmp_path: Path) -> None:
    settings = Settings.model_validate({"mid": {"mixture": ["gsm8k:5"]}, "eval": {"tasks": ["humaneval"]}})
    invocation = Invocation(home=tmp_path)
    target = Target(RunPaths(tmp_path / "runs/r"), "d20", settings, {}, True, {}, "--preset d20")
    with pytest.raises(MissingError) as caught:
        check_downloads(invocation, target, ["base", "mid", "eval"])
    assert caught.value.message.startswith("not downloaded yet: 202 shards of fineweb-edu, openai/gsm8k/main/train-*")
    assert caught.value.hint == "nanochat download all --preset d20"
    with pytest.raises(MissingError, match="openai_humaneval"):
        check_downloads(invocation, target, ["eval"])
    for order in order_tasks(invocation.workspace, ["humaneval"]):
        path = order.folder / order.patterns[0].replace("*", "0")
        path.parent.mkdir(parents=True)
        path.touch()
    check_downloads(invocation, target, ["eval"])


def test_a_run_with_less_text_than_its_plan_says_so(tmp_path: Path, capsys) -> None:
    invocation = Invocation(home=tmp_path)
    target = Target(RunPaths(tmp_path / "runs/r"), "d20", Settings(), {}, True, {}, "--preset d20")
    folder = invocation.workspace.dataset("fineweb-edu")
    entries = {f"shard_{index:05d}.parquet": Entry(1, is_here=index < 5) for index in range(300)}
    folder.mkdir(parents=True)
    (folder / "shards.json").write_text("{}")
    save_record(folder, Record("them/text", "0" * 40, entries))
    check_downloads(invocation, target, ["base"])
    assert "fineweb-edu has 5 shards here, the plan reads 202: the text repeats" in capsys.readouterr().err
    save_record(folder, Record("them/text", "0" * 40, {name: Entry(1, is_here=True) for name in entries}))
    check_downloads(invocation, target, ["base"])
    assert capsys.readouterr().err == ""


def test_progress_is_one_line_on_a_terminal_and_lines_elsewhere(capsys, monkeypatch) -> None:
    monkeypatch.setattr("nanochat.cli.progress.SECONDS_BETWEEN_FRAMES", 0)
    for live in (True, False):
        with ProgressLine(Invocation().console, live) as line:
            for files in range(4):
                line.show(Progress(files, 3, files * 10, 30, files * 10))
            line.say("news")
        err = capsys.readouterr().err
        if live:
            assert err.count("\n") == 1 and err.count("\r\x1b[K") == 6
        else:
            assert [text.split(",")[0] for text in err.splitlines()] == [
                "downloading: 0 of 3 files",
                "downloading: 3 of 3 files",
                "news",
            ]
    assert "2 tried again" in describe_progress(Progress(problems={"cut": 2}), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "words, code, sentence, hint",
    [
        ("data", 2, "neither --preset nor --dataset says which text", "nanochat download data --preset d20"),
        ("data --preset d20 --shards 1", 2, "--shards 1 is less than 2", "--preset d20 --shards 2"),
        ("data --dataset mine", 3, "data set 'mine' is not in", "nanochat download import DIR --name mine"),
        ("tasks nothing", 2, "task 'nothing' has nothing to download", "nanochat download tasks mmlu"),
        ("all", 2, "neither --for nor --config nor --run", "nanochat download all --for d20"),
        ("core --core-from none.zip", 3, "there is no file", "nanochat download core"),
        ("verify", 3, "nothing was downloaded", "nanochat download all --for d20"),
        ("unpack none.tar", 3, "there is no file", "nanochat download pack"),
    ],
)
def test_download_errors_are_a_sentence_a_hint_and_a_code(nanochat, words, code, sentence, hint) -> None:
    outcome = nanochat("download", *words.split())
    first, second = outcome.err.splitlines()[-2:]
    assert (outcome.code, first[:7], second[:7]) == (code, "error: ", "hint:  "), outcome.err
    assert sentence in first and hint in second


def test_a_dry_run_fetches_nothing(nanochat, home) -> None:
    outcome = nanochat("download", "all", "--for", "d20", "--dry-run")
    assert outcome.code == 0 and not home.exists()
    assert outcome.out.splitlines()[0].startswith("would download 202 of karpathy/fineweb-edu-100b-shuffle")


def test_the_demo_needs_nothing_from_the_network(nanochat) -> None:
    outcome = nanochat("download", "all", "--for", "demo", "--offline")
    assert outcome.code == 0 and "need nothing from the network" in outcome.err
