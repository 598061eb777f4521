"""Every user error: exit code, sentence and hint, through the whole command line."""

import shlex
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.cli.conftest import make_run

TOKENIZED, BASE_DONE, ALL_DONE = ("tokenizer",), ("tokenizer", "base"), ("tokenizer", "base", "mid", "sft")


def nothing(_home: Path) -> None:
    return


def run_with(done: tuple[str, ...] = (), started: str = "", *overrides: str) -> Callable[[Path], None]:
    return lambda home: (make_run(home, "r", done, started, *overrides), None)[1]


def file_with(text: str) -> Callable[[Path], None]:
    def write(_home: Path) -> None:
        Path("my.toml").write_text(text)

    return write


def text_folder(_home: Path) -> None:
    Path("empty").mkdir()
    Path("bad").mkdir()
    Path("bad/a.jsonl").write_text('{"text": "fine"}\nnot json\n')


def present_dataset(home: Path) -> None:
    (home / "data" / "mine").mkdir(parents=True)
    (home / "data" / "mine" / "shards.json").write_text("{}")


def broken_settings(home: Path) -> None:
    make_run(home, "r", TOKENIZED).settings.write_text("{")


TABLE = [
    # the command line itself
    ("trian base", nothing, 2, "no such command 'trian'", "nanochat --help"),
    ("train bass", nothing, 2, "Did you mean 'base'?", "nanochat train --help"),
    ("plan --preset d20 --gpu 8", nothing, 2, "no such option: --gpu", "nanochat plan --help"),
    (
        "plan --preset d20 --gpus many",
        nothing,
        2,
        "--gpus 'many' is neither a number",
        "nanochat plan --preset d20 --gpus 1",
    ),
    ("plan --preset d20 --gpus 0", nothing, 2, "GPUs = 0 is less than 1", "nanochat plan --preset d20 --gpus 1"),
    # several processes and machines
    ("train base --preset demo --nodes 2", nothing, 2, "2 nodes need a place to meet", "--rdzv-endpoint NODE0:29500"),
    (
        "train base --preset demo --nodes 2 --rdzv-endpoint here",
        nothing,
        2,
        "--rdzv-endpoint 'here' is not HOST:PORT",
        "nanochat train base --preset demo --nodes 2 --rdzv-endpoint NODE0:29500",
    ),
    (
        "train base --preset demo --nodes 2 --node-rank 2 --rdzv-endpoint a:1",
        nothing,
        2,
        "--node-rank 2 is not in 0 to 1",
        "--rdzv-endpoint a:1 --node-rank 0",
    ),
    (
        "run --preset demo --device cpu --nodes 2 --rdzv-endpoint a:1 --set batch.device_batch_size=8",
        nothing,
        3,
        "run 'demo' has no tokenizer, and one node makes it",
        "nanochat tokenize train --preset demo",
    ),
    ("train base --preset demo --nodes 0", nothing, 2, "nodes = 0 is less than 1", "--nodes 1"),
    ("train base --preset demo --max-restarts -1", nothing, 2, "--max-restarts -1 is less than 0", "--max-restarts 0"),
    ("train base --preset demo --gpus all --device cpu", nothing, 2, "no GPU to count", "--device cpu --gpus 2"),
    ("eval bpb r --gpus 0", run_with(ALL_DONE), 2, "GPUs = 0 is less than 1", "nanochat eval bpb r --gpus 1"),
    ("resume ''", nothing, 2, "run = '' is not a name", "nanochat runs ls"),
    ("train base --run '' --preset demo", nothing, 2, "run = '' is not a name", "nanochat runs ls"),
    ("download import none --name ''", nothing, 2, "data set '' is not a name", "--name mine"),
    ("runs ls --home ''", nothing, 2, "--home is empty", "--home DIR"),
    ("plan --config ''", nothing, 2, "'--config': it is empty", "nanochat plan --help"),
    ("download import ''", nothing, 2, "'DIR': it is empty", "nanochat download import --help"),
    ("presets copy demo ''", nothing, 2, "it is empty", "nanochat presets copy --help"),
    ("rl show r --best --worst", nothing, 2, "two orders", "nanochat rl show r --worst"),
    ("plan --preset demo --set base.lr_scale=1e38", nothing, 2, "base.lr_scale = 1e+38", "nanochat config schema"),
    ("runs rm", nothing, 2, "missing argument", "nanochat runs rm --help"),
    ("plan", nothing, 2, "neither --preset nor --config nor --run", "nanochat plan --preset demo"),
    ("train base", nothing, 2, "neither --preset nor --config nor --run", "nanochat train base --preset demo"),
    ("run", nothing, 2, "neither --preset nor --config nor --run", "nanochat run --preset demo"),
    # presets and keys
    ("plan --preset d21", nothing, 2, "there is no preset 'd21', only demo, d12", "did you mean d20?"),
    ("plan --preset my.toml", nothing, 2, "there is no preset 'my.toml'", "a file is given with --config my.toml"),
    ("presets show d2O", nothing, 2, "there is no preset 'd2O'", "did you mean d20?"),
    ("plan --config none.toml", nothing, 3, "there is no file none.toml", "nanochat presets copy demo none.toml"),
    (
        "plan --preset demo --set base.matrx_lr=1",
        nothing,
        2,
        "unknown key base.matrx_lr",
        "did you mean base.matrix_lr?",
    ),
    ("plan --preset demo --set warmdown=0", nothing, 2, "unknown key warmdown", "did you mean base.warmdown?"),
    (
        "plan --preset demo --set base.flops",
        nothing,
        2,
        "--set base.flops is not KEY=VALUE",
        "--set base.num_steps=300",
    ),
    ("plan --preset demo --set base.num_steps=0", nothing, 2, "base.num_steps = 0", "nanochat config schema"),
    ("plan --preset demo --set model.depth=deep", nothing, 2, 'model.depth = "deep"', "nanochat config schema"),
    ("plan --preset demo --set model.depth=true", nothing, 2, "model.depth = true is not", "nanochat config schema"),
    ("plan --preset demo --set base.flops=inf", nothing, 2, "not a finite number", "nanochat config schema"),
    (
        "plan --config my.toml",
        file_with("[base]\n\nnum_stps = 3\n"),
        2,
        "my.toml:3: unknown key base.num_stps",
        "base.num_steps",
    ),
    ("plan --config my.toml", file_with("# x\n[bse]\n"), 2, "my.toml:2: unknown table [bse]", "did you mean base?"),
    ("plan --config my.toml", file_with("depth = 3\n"), 2, "my.toml:1: unknown key depth", "did you mean model.depth?"),
    ("plan --config my.toml", file_with("model = 3\n"), 2, "my.toml:1: model is a table, not 3", "a line [model]"),
    ("plan --config my.toml", file_with("\ufeff[base]\nnum_stps = 3\n"), 2, "my.toml:2: unknown key base.num_stps", ""),
    ("plan --config my.toml", file_with("[base\n"), 2, "my.toml is not TOML", "editor"),
    ("plan --config my.toml", file_with("[model]\ndepth = -1\n"), 2, "my.toml:2: model.depth = -1", "config schema"),
    # sizes that do not fit
    (
        "train base --preset d20 --set batch.device_batch_size=6 --set model.context=512",
        nothing,
        2,
        "batch.total_tokens = 524288 is not a multiple of 6 x 512 x 1 = 3072 (device batch x context x GPUs)",
        "--set model.context=512 --set batch.total_tokens=525312",
    ),
    (
        "config validate --preset demo --gpus 3",
        nothing,
        2,
        "not a multiple of 16 x 256 x 3 = 12288",
        "--set batch.total_tokens=12288",
    ),
    (
        "plan --preset demo --set sft.total_tokens=5000",
        nothing,
        2,
        "sft.total_tokens = 5000 is not",
        "sft.total_tokens=",
    ),
    (
        "plan --preset demo --set model.n_kv_head=3",
        nothing,
        2,
        "n_head = 2 is not a multiple",
        "--set model.n_kv_head=2",
    ),
    ("plan --preset demo --set base.warmup=0.7", nothing, 2, "is more than 1", "--set base.warmdown=0.3"),
    ("plan --preset demo --set base.flops=1e15", nothing, 2, "are two horizons", "--set base.flops=none"),
    ("plan --preset d12 --set base.flops=10", nothing, 2, "less than one step", "--set base.num_steps=1"),
    (
        "run --preset demo --set mid.mixture=leters:5",
        nothing,
        2,
        "there is no task 'leters'",
        "did you mean 'letters'?",
    ),
    ("run --preset demo --set mid.mixture=[]", nothing, 2, "mid.mixture is empty", "--set mid.mixture=letters:5000"),
    ("config validate --preset demo --set rl.task=own.py:Task", nothing, 3, "/own.py", "ls "),
    ("plan --preset demo --set rl.task=own.py:Task", nothing, 3, "/own.py", "ls "),
    ("config validate --preset demo --set eval.tasks=abc", nothing, 2, "there is no task 'abc'", "custom:PATH"),
    # what a later stage would find, found before the first
    *(
        (f"{command} --set {wrong}", nothing, code, sentence, hint)
        for command in ("run --preset demo", "tokenize train --preset demo", "train base --preset demo")
        for wrong, code, sentence, hint in (
            ("eval.tasks=letters:4", 2, "'letters:4' is a part of a task", "name all of it, letters"),
            ("eval.tasks=leters", 2, "there is no task 'leters'", "did you mean 'letters'?"),
            ("eval.tasks=own.py:Task", 3, "/own.py", "ls "),
            ("sft.mixture=custom:none.jsonl", 3, "/none.jsonl", "ls "),
            ("rl.task=own.py:Task", 3, "/own.py", "ls "),
            ("rl.task=letters*2", 2, "repeats its questions", "--set rl.epochs=2"),
            ("sft.warmup=0.9", 2, "is more than 1", "--set sft.warmdown=0.1"),
        )
    ),
    ("eval chat r --tasks letters:4", run_with(ALL_DONE), 2, "'letters:4' is a part of a task", "name all of it"),
    # what is missing
    ("train base --preset demo", nothing, 3, "no finished tokenizer", "nanochat tokenize train --preset demo"),
    ("train mid --run r", run_with(TOKENIZED), 3, "no finished base", "nanochat train base --run r"),
    ("train sft --run r", run_with(BASE_DONE, "mid"), 3, "no finished mid", "nanochat resume r"),
    ("train mid", nothing, 3, "there is no run in", "nanochat run --preset demo"),
    ("train mid --run x", run_with(), 3, "there is no run 'x'", "nanochat run --preset demo --run x"),
    (
        "run --preset d20",
        nothing,
        3,
        "not downloaded yet: 202 shards of fineweb-edu",
        "nanochat download all --preset d20",
    ),
    (
        "download data --dataset fineweb-edu",
        nothing,
        2,
        "neither --preset nor --shards says how much of fineweb-edu is wanted",
        "nanochat download data --dataset fineweb-edu --preset d20",
    ),
    (
        "tokenize train --preset d20",
        nothing,
        3,
        "data set 'fineweb-edu' is not in",
        "nanochat download data --preset d20",
    ),
    ("resume", nothing, 3, "there is no run in", "nanochat run --preset demo"),
    ("resume r", run_with(ALL_DONE), 3, "no stage of run 'r' was interrupted", "nanochat run --run r"),
    ("eval all", nothing, 3, "there is no trained model", "nanochat run --preset demo"),
    ("eval core r", run_with(ALL_DONE), 3, "the CORE bundle is not in", "nanochat download core"),
    ("eval bpb r/mid", run_with(BASE_DONE), 3, "no checkpoint of stage 'mid'", "nanochat train mid --run r"),
    ("eval chat r", run_with(BASE_DONE), 2, "has not seen conversations", "nanochat eval bpb r/base"),
    ("chat -p hi", nothing, 3, "there is no trained model", "nanochat run --preset demo"),
    ("chat r/sft@7 -p hi", run_with(ALL_DONE), 3, "r/sft has no step 7, only 20", "nanochat runs show r"),
    ("serve --top-k 0", nothing, 2, "--top-k 0 is not 1 or more", "nanochat serve --help"),
    ("serve --allow-host *", nothing, 2, "is no name of a host", "nanochat serve --allow-host box.example"),
    (
        "plan --preset demo --set tokenizer.pattern=(",
        nothing,
        2,
        "is not a regular expression",
        "tokenizer.pattern=...",
    ),
    ("plan --preset demo --set tokenizer.pattern=[a-z]+", nothing, 2, "would lose text", "tokenizer.pattern=..."),
    ("plan --preset demo --set data.dataset=../x", nothing, 2, "data set '../x' is not a name", "data.dataset=NAME"),
    ("chat -p hi --top-k 0", nothing, 2, "--top-k 0 is not 1 or more", "nanochat chat --help"),
    ("chat -p hi --temperature -1", nothing, 2, "--temperature -1.0 is not 0 or more", "nanochat chat --help"),
    ("report x", nothing, 3, "there is no run 'x'", "nanochat runs ls"),
    ("tokenize encode hi --run r", run_with(), 3, "tokenizer", "nanochat tokenize train"),
    # what is there already
    (
        "train base --run r --set model.depth=5",
        run_with(BASE_DONE),
        2,
        "model.depth = 4, not 5",
        "nanochat runs copy r r-2 --until tokenizer && nanochat train base --set model.depth=5 --run r-2",
    ),
    (
        "run --preset demo --run r",
        run_with(ALL_DONE, "", "base.num_steps=3"),
        2,
        "base.num_steps = 3, not 300",
        "nanochat runs copy r r-2 --until tokenizer && nanochat run --preset demo --run r-2",
    ),
    ("runs rm r", run_with(), 2, "removing r needs a yes", "nanochat runs rm r -y"),
    ("runs show ../x", nothing, 2, "run = '../x' is not a name", "nanochat runs ls"),
    (
        "presets copy demo my.toml",
        file_with(""),
        2,
        "my.toml is already there",
        "nanochat presets copy demo my-2.toml  # --yes writes over my.toml",
    ),
    ("train mid --run r", broken_settings, 4, "settings.json cannot be read", "put the file back"),
    # text of your own
    ("download import nowhere", nothing, 3, "there is no folder or file nowhere", "ls"),
    ("download import empty --name mine", text_folder, 4, "it is empty", "ls -la empty"),
    ("download import bad --name mine", text_folder, 4, "a.jsonl:2 is not JSON", "sed -n 2p"),
    (
        "download import bad --name mine --column body",
        text_folder,
        4,
        "a.jsonl:1 has no key 'body'; its keys are 'text'",
        "nanochat download import bad --name mine --column text",
    ),
    ("download import bad --name a/b", text_folder, 2, "data set 'a/b' is not a name", "--name mine"),
    ("download import bad --name demo", text_folder, 2, "'demo' is the name of a data set", "--name mine"),
    ("download import bad --name x --val-share 2", text_folder, 2, "not between 0 and 1", "--val-share 0.05"),
    ("download import bad --name x --encoding abc", text_folder, 2, "no encoding 'abc'", "--encoding latin-1"),
    ("download import bad --name mine", present_dataset, 2, "there already is a data set 'mine'", "--name mine-2"),
]


@pytest.mark.parametrize(
    "words, prepare, code, sentence, hint", TABLE, ids=[f"{i}: {row[0]}" for i, row in enumerate(TABLE)]
)
def test_every_error_is_a_sentence_a_hint_and_a_code(nanochat, home, words, prepare, code, sentence, hint) -> None:
    prepare(home)
    outcome = nanochat(*shlex.split(words))
    assert outcome.code == code, outcome.err
    first, second = outcome.err.splitlines()[-2:]
    assert first.startswith("error: ") and sentence in first
    assert second.startswith("hint:  ") and hint in second
    assert outcome.out == ""


def test_an_unknown_variable_of_a_section_is_an_error(nanochat, monkeypatch) -> None:
    monkeypatch.setenv("NANOCHAT_BASE__FLOP", "1")
    outcome = nanochat("plan", "--preset", "demo")
    assert outcome.code == 2
    assert "unknown environment variable NANOCHAT_BASE__FLOP" in outcome.err
    assert "did you mean NANOCHAT_BASE__FLOPS?" in outcome.err


def test_a_full_disk_exits_with_5(nanochat, monkeypatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(total=2000, free=1000))
    outcome = nanochat("run", "--preset", "demo")
    assert outcome.code == 5
    assert "checkpoints do not fit" in outcome.err and "--home DIR" in outcome.err


def test_a_home_that_no_folder_can_be_made_in_exits_with_4(nanochat, tmp_path, monkeypatch) -> None:
    """Files of the kernel have no disk that could be full."""
    (tmp_path / "file").write_text("in the way")
    for home, total in ((tmp_path / "file", 2000), (tmp_path / "file" / "deeper", 0)):
        free = total and 10**12
        monkeypatch.setattr("shutil.disk_usage", lambda _path, n=total, m=free: SimpleNamespace(total=n, free=m))
        outcome = nanochat("run", "--preset", "demo", "--home", str(home))
        assert outcome.code == 4 and "cannot be" in outcome.err, outcome.err


def test_an_error_names_no_stage_of_a_run_that_has_none(nanochat, home) -> None:
    make_run(home, "r")
    outcome = nanochat("train", "base", "--run", "r", "--set", "model.depth=2", "--dry-run")
    assert outcome.code == 3  # not 2: nothing is trained yet, so the depth may change
