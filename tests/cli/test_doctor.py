import json
import re
import shlex

from nanochat.doctor.accelerator import Gpu, judge_accelerator, judge_gpu_memory
from nanochat.doctor.distributed import judge_all_reduce
from nanochat.doctor.examine import examine_machine
from nanochat.doctor.finding import Finding
from nanochat.doctor.machine import judge_disk
from nanochat.machine import START

AGAIN = "nanochat doctor --distributed --gpus 2 --device cpu"


def test_a_sum_over_two_processes_is_right_and_timed(nanochat) -> None:
    outcome = nanochat("doctor", "--distributed", "--gpus", "2", "--device", "cpu", "--json")
    assert outcome.code == 0, outcome.err
    sums = [finding for finding in json.loads(outcome.out) if finding["name"].startswith("all-reduce")]
    assert [finding["name"] for finding in sums] == ["all-reduce 1 MiB", "all-reduce 64 MiB"]
    assert all(finding["status"] == "ok" and "right on 2 ranks" in finding["message"] for finding in sums)
    assert all(finding["values"]["bus_bytes_per_second"] > 0 for finding in sums)


def test_a_rank_that_does_not_answer_is_a_failed_check(nanochat, monkeypatch) -> None:
    monkeypatch.setattr("nanochat.doctor.examine.examine_machine", lambda _home: ())

    def hang(num_processes, device, folder, seconds) -> None:
        (folder / "rank_0.json").write_text('{"rank": 0, "state": "started"}')
        (folder / "log.txt").write_text("")

    monkeypatch.setattr("nanochat.cli.doctor.measure_all_reduce", hang)
    outcome = nanochat("doctor", "--distributed", "--gpus", "2", "--device", "cpu")
    assert outcome.code == 7
    assert "rank 1 did not start within 120 s" in outcome.out and f"hint:  GLOO_SOCKET_IFNAME=lo {AGAIN}" in outcome.err


def test_where_to_sum_is_a_question_of_distributed(nanochat) -> None:
    outcome = nanochat("doctor", "--gpus", "2")
    assert outcome.code == 2 and "nanochat doctor --gpus 2 --distributed" in outcome.err


def test_a_dry_run_shows_the_command(nanochat) -> None:
    outcome = nanochat("doctor", "--distributed", "--gpus", "2", "--device", "cpu", "--dry-run")
    assert outcome.code == 0
    assert f"--nproc-per-node=2 --max-restarts=0 {START} nanochat.stages.bandwidth FOLDER cpu" in outcome.out


def test_fixes_that_are_our_own_commands_parse(nanochat, tmp_path) -> None:
    cuda = AGAIN.replace("--device cpu", "--device cuda")
    findings: list[Finding] = [
        *examine_machine(tmp_path),
        judge_accelerator([], None, []),
        judge_disk(0, {}),
        judge_gpu_memory((Gpu(0, 100, 90), Gpu(1, 100, 0))),
        *judge_all_reduce([], 2, "cpu", None, 1.0, AGAIN),
        *judge_all_reduce([], 2, "cuda", None, 1.0, cuda),
    ]
    parsed = 0
    for finding in findings:
        words = shlex.split(finding.fix, comments=True)
        while words and re.fullmatch("[A-Z0-9_]+=.*", words[0]):
            words.pop(0)
        if words[:1] == ["nanochat"]:
            outcome = nanochat(*words[1:], "--help")  # an unknown command or option is refused before help is shown
            assert outcome.code == 0, (finding, outcome.err)
            parsed += 1
    assert parsed >= 5
