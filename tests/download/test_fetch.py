import json
import shutil
import threading
from pathlib import Path

import pytest
from huggingface_hub import HfApi, hf_hub_download

from nanochat.download.bundle import Bundle
from nanochat.download.fetch import Order
from nanochat.download.record import load_record
from nanochat.errors import DataError
from nanochat.files import CapacityError
from tests.download.conftest import IMPATIENT, SIZES, check_files, make_body
from tests.download.test_bundle import MEMBERS, build_zip
from tests.hub_faults import ENDLESS, FAULTS
from tests.hub_server import File, serve
from tests.patience import wait_until


def test_files_arrive_with_their_record(server, order, new_fetcher) -> None:
    said: list[str] = []
    fetcher = new_fetcher(said)
    record = fetcher.fetch([order])[order.folder]
    check_files(order)
    commit = server.repos["them/texts"].commit
    assert record == load_record(order.folder) and record.commit == commit
    assert set(record.here) == set(SIZES) and "README.md" not in record.files
    assert said == [f"them/texts is at commit {commit[:12]}, 3 files"]
    assert (fetcher.progress.files, fetcher.progress.bytes) == (3, sum(SIZES.values()))


def test_what_is_here_is_not_fetched_again_and_needs_no_socket(server, order, new_fetcher) -> None:
    new_fetcher().fetch([order])
    before = len(server.requests)
    new_fetcher(offline=True).fetch([order])
    new_fetcher().fetch([order])
    assert len(server.requests) == before


@pytest.mark.parametrize("where", ["/resolve/", "/revision/"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_another_attempt_and_never_a_wrong_file(server, order, new_fetcher, fault, where) -> None:
    server.misbehave(fault, where, times=2)
    fetcher = new_fetcher(is_patient=fault not in ENDLESS)
    fetcher.fetch([order])
    check_files(order)
    assert server.done.get(fault, 0) >= 1
    ranges = ("ignores_range", "other_range")  # nobody asked for one yet
    harmless = {"redirect", "no_headers", *ranges, *(["half_json"] if where == "/resolve/" else [])}
    assert bool(fetcher.progress.problems) == (fault not in harmless)


@pytest.mark.parametrize("fault", ["cut", "reset", "stall", "slow"])
def test_a_connection_that_ends_is_gone_on_from(server, order, new_fetcher, fault) -> None:
    server.misbehave(fault, "train-00000", times=1)
    new_fetcher(is_patient=fault not in ENDLESS).fetch([order])
    check_files(order)
    ranges = [headers.get("Range") for _, path, headers in server.requests if "train-00000" in path]
    assert ranges[0] is None and ranges[1].startswith("bytes=")
    if fault in ("cut", "stall"):
        assert ranges[1] == "bytes=150000-"


@pytest.mark.parametrize("fault", ["ignores_range", "other_range", "no_range", "wrong_bytes"])
def test_a_bad_answer_to_a_range_is_found_out(server, order, new_fetcher, fault) -> None:
    server.misbehave("cut", "train-00000", times=1)
    server.misbehave(fault, "train-00000", times=1)
    new_fetcher().fetch([order])
    check_files(order)


@pytest.mark.parametrize("fault, reason", [("error_503", "answers 503"), ("wrong_bytes", "sends other bytes")])
def test_what_cannot_be_had_is_listed_and_the_rest_is_there(server, order, new_fetcher, fault, reason) -> None:
    server.misbehave(fault, "train-00001", times=None)
    said: list[str] = []
    with pytest.raises(DataError, match=f"1 file is missing: train-00001.parquet: .*{reason}") as caught:
        new_fetcher(said).fetch([order])
    assert caught.value.hint == "nanochat download tasks"
    assert said[-1].startswith("missing: them/texts: data/train-00001.parquet")
    server.rules.clear()
    fetched = server.count("train-00000")
    new_fetcher().fetch([order])
    check_files(order)
    assert server.count("train-00000") == fetched


def test_a_line_that_is_down_is_not_tried_for_every_file(server, tmp_path, new_fetcher) -> None:
    for index in range(40):
        server.add("them/many", f"{index}.parquet", b"x")
    server.misbehave("error_500", times=None)
    with pytest.raises(DataError, match="40 files are missing"):
        new_fetcher().fetch([Order("them/many", tmp_path / "many", ("*.parquet",))])
    assert server.count("/resolve/") < 10 * IMPATIENT.attempts


def test_offline_says_what_is_missing(order, new_fetcher) -> None:
    with pytest.raises(DataError, match=r"1 file is missing \(offline\)"):
        new_fetcher(offline=True).fetch([order])
    new_fetcher().fetch([Order(order.repo, order.folder, ("data/train-*",))])
    with pytest.raises(DataError, match=r"missing \(offline\): test-00000.parquet"):
        new_fetcher(offline=True).fetch([order])


def test_later_downloads_stay_at_the_first_commit(server, order, new_fetcher) -> None:
    new_fetcher().fetch([Order(order.repo, order.folder, ("data/train-*",))])
    commit = server.repos["them/texts"].commit
    server.add("them/texts", "data/test-00000.parquet", b"newer")
    assert new_fetcher().fetch([order])[order.folder].commit == commit
    check_files(order)
    fetched = server.count("train-")
    record = new_fetcher(update=True).fetch([order])[order.folder]
    assert record.commit == server.repos["them/texts"].commit != commit
    assert (order.folder / "data/test-00000.parquet").read_bytes() == b"newer"
    assert server.count("train-") == fetched


def test_a_file_that_was_changed_in_size_or_deleted_is_fetched_again(server, order, new_fetcher) -> None:
    new_fetcher().fetch([order])
    (order.folder / "data/test-00000.parquet").write_bytes(b"shorter than it was")
    (order.folder / "data/train-00001.parquet").unlink()
    new_fetcher().fetch([order])
    check_files(order)


def test_files_without_a_record_are_checked_not_fetched(server, order, new_fetcher) -> None:
    new_fetcher().fetch([order])
    (order.folder / "source.json").unlink()
    (order.folder / "data/test-00000.parquet").write_bytes(b"wrong")
    before = server.count("/resolve/")
    new_fetcher().fetch([order])
    check_files(order)
    assert server.count("/resolve/") == before + 1


def test_small_files_are_checked_by_their_git_hash(server, tmp_path, new_fetcher) -> None:
    server.add("them/small", "a.parquet", b"content", is_large=False)
    server.misbehave("wrong_bytes", times=1)
    fetcher = new_fetcher()
    fetcher.fetch([Order("them/small", tmp_path, ("a.parquet",))])
    assert (tmp_path / "a.parquet").read_bytes() == b"content"
    assert fetcher.progress.problems["sends other bytes than its listing promises"] == 1


def test_only_the_first_shards_and_the_last_are_taken(server, tmp_path, new_fetcher) -> None:
    for index in range(9):
        server.add("them/shards", f"shard_{index:05d}.parquet", bytes([index]))
    said: list[str] = []
    new_fetcher(said).fetch([Order("them/shards", tmp_path, ("shard_*.parquet",), 3)])
    assert sorted(path.name for path in tmp_path.glob("shard*")) == [
        f"shard_0000{index}.parquet" for index in (0, 1, 8)
    ]
    new_fetcher(said).fetch([Order("them/shards", tmp_path, ("shard_*.parquet",), 30)])
    assert len(list(tmp_path.glob("shard*"))) == 9
    assert said[-1] == "them/shards has 9 files; 30 were wanted, all are taken"


def test_a_full_disk_is_said_before_anything_is_fetched(server, order, new_fetcher, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 370_000}))
    with pytest.raises(CapacityError, match="downloading 3 files needs"):
        new_fetcher().fetch([order])
    assert server.count("/resolve/") == 0


def test_a_disk_that_fills_up_ends_the_download(server, order, new_fetcher, monkeypatch) -> None:
    monkeypatch.setattr("nanochat.download.transfer.Transfer._receive", _raise_full)
    with pytest.raises(CapacityError, match="is full"):
        new_fetcher().fetch([order])


def _raise_full(*_: object) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "repo, pattern, sentence",
    [("them/nothing", "*", "answers 404 .Repository not found"), ("them/texts", "data/valid-*", "has no file")],
)
def test_what_the_hub_does_not_have_is_said_at_once(server, tmp_path, new_fetcher, repo, pattern, sentence) -> None:
    with pytest.raises(DataError, match=sentence):
        new_fetcher().fetch([Order(repo, tmp_path, (pattern,))])
    assert len(server.requests) == 1


def test_a_token_goes_to_the_hub_and_its_lack_is_explained(server, order, new_fetcher, monkeypatch) -> None:
    server.token = "hf_secret"
    monkeypatch.setenv("HF_TOKEN", "")
    with pytest.raises(DataError, match="answers 401") as caught:
        new_fetcher().fetch([order])
    assert "HF_TOKEN" in caught.value.hint
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    new_fetcher().fetch([order])
    check_files(order)


def test_the_token_goes_nowhere_else(server, order, new_fetcher, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    with serve() as other:
        other.repos = server.repos
        other.plain["bundle.zip"] = File(lambda: build_zip(MEMBERS))
        server.elsewhere = other.url
        server.misbehave("redirect", times=None)
        bundle = Bundle(f"{other.url}/files/bundle.zip", tmp_path / "core")
        new_fetcher().fetch([order], [bundle])
        assert other.count("/resolve/") == 3 and other.count("bundle.zip") == 1
        assert not any("hf_secret" in str(headers) for _, _, headers in other.requests)
    assert all("hf_secret" in headers["Authorization"] for _, _, headers in server.requests)


def test_a_server_that_asks_for_too_much_time_is_not_waited_for(server, order, new_fetcher) -> None:
    server.retry_after = 3_600
    server.misbehave("rate_limited", times=None)
    with pytest.raises(DataError, match=r"asks to wait 3,600 seconds"):
        new_fetcher().fetch([order])


def test_a_record_that_is_damaged_is_an_error_with_a_way_out(order, new_fetcher) -> None:
    order.folder.mkdir()
    (order.folder / "source.json").write_text('{"version": 1, "repo"')
    with pytest.raises(DataError, match="cannot be read") as caught:
        new_fetcher().fetch([order])
    assert caught.value.hint.startswith(f"mv -n {order.folder / 'source.json'} ")


def test_a_record_or_listing_that_leads_out_of_the_folder_is_refused(server, tmp_path, new_fetcher) -> None:
    server.add("them/evil", "../escaped.parquet", b"x")
    server.add("them/evil", "a.parquet", b"x")
    folder = tmp_path / "inner"
    new_fetcher().fetch([Order("them/evil", folder, ("*.parquet",))])
    assert not (tmp_path / "escaped.parquet").exists()
    value = json.loads((folder / "source.json").read_text())
    value["files"]["../escaped.parquet"] = {"size": 1}
    (folder / "source.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match="leads out of the folder"):
        new_fetcher().fetch([Order("them/evil", folder, ("*.parquet",))])


def test_a_second_process_waits_for_the_first_and_fetches_nothing(server, order, new_fetcher) -> None:
    server.misbehave("stall", "train-00000", times=1)
    said: list[str] = []
    first = threading.Thread(target=new_fetcher(is_patient=False).fetch, args=([order],))
    first.start()
    wait_until(lambda: server.count("/resolve/") > 0)
    new_fetcher(said).fetch([order])
    first.join()
    assert any(text.startswith("waiting for process") for text in said)
    check_files(order)
    assert server.count("/resolve/") == len(SIZES) + 1


def test_the_server_is_a_hub_to_the_library_itself(server, tmp_path) -> None:
    api = HfApi(endpoint=server.url)
    info = api.dataset_info("them/texts", files_metadata=True)
    assert info.sha == server.repos["them/texts"].commit
    tree = {item.path: item.size for item in api.list_repo_tree("them/texts", repo_type="dataset", recursive=True)}
    assert tree == {**SIZES, "README.md": 5}
    assert [i.path for i in api.get_paths_info("them/texts", ["README.md"], repo_type="dataset")] == ["README.md"]
    for path, size in SIZES.items():
        got = hf_hub_download("them/texts", path, repo_type="dataset", endpoint=server.url, cache_dir=tmp_path)
        assert Path(got).read_bytes() == make_body(path, size)
