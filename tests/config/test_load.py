from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanochat.config.load import (
    apply_wishes,
    differing_keys,
    find_empty,
    find_misspelt,
    flatten,
    list_fields,
    list_presets,
    load_settings,
    parse_value,
    read_environment,
    read_saved,
    read_toml,
    save_settings,
    tomllib,
)
from nanochat.config.settings import Settings
from nanochat.config.toml_lines import find_line
from nanochat.errors import UsageError


def test_each_layer_wins_over_the_one_below_and_says_so(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text("[base]\nnum_steps = 7\nwarmdown = 0.3\nwarmup = 0.1\n")
    environ = {"NANOCHAT_BASE__WARMDOWN": "0.25", "NANOCHAT_BASE__WARMUP": "0.2", "HOME": "/nowhere"}
    settings, origins = load_settings("demo", file, ["base.warmup=0.5"], environ)
    assert (settings.base.num_steps, settings.base.warmdown, settings.base.warmup) == (7, 0.25, 0.5)
    assert settings.model.depth == 4
    assert origins["base.warmup"] == "--set"
    assert origins["base.warmdown"] == "NANOCHAT_BASE__WARMDOWN"
    assert origins["base.num_steps"] == f"{file}:2"
    assert origins["model.depth"] == "preset demo"
    assert origins["base.matrix_lr"] == "default"
    assert list(origins) == list(list_fields())


def test_the_last_of_two_options_wins() -> None:
    assert load_settings(None, None, ["model.depth=3", "model.depth=5"], {})[0].model.depth == 5


@pytest.mark.parametrize(
    "key, text, value",
    [
        ("base.num_steps", "300", 300),
        ("base.num_steps", "none", None),
        ("base.flops", "1e18", 1e18),
        ("batch.total_tokens", "524_288", 524288),
        ("data.dataset", "mine", "mine"),
        ("data.dataset", "2024", "2024"),
        ("data.dataset", '"mine"', "mine"),
        ("mid.mixture", "letters:5,identity*2", ["letters:5", "identity*2"]),
        ("mid.mixture", '["letters:5"]', ["letters:5"]),
        ("mid.mixture", "", []),
        ("runtime.compile", "false", False),
        ("runtime.compile", "0", False),
        ("runtime.compile", "True", True),
        ("tokenizer.pattern", r"\p{L}+", r"\p{L}+"),
        ("data.dataset", "a\nb = 1", "a\nb = 1"),
    ],
)
def test_text_is_read_as_its_field_wants_it(key: str, text: str, value: object) -> None:
    assert parse_value(key, text) == value


@given(st.integers(1, 256), st.floats(1e-6, 1e3), st.sampled_from(["cpu", "cuda", "auto"]))
def test_what_is_written_as_json_is_read_back(depth: int, lr: float, device: str) -> None:
    overrides = [f"model.depth={depth}", f"base.matrix_lr={lr}", f"runtime.device={device}"]
    settings, _ = load_settings(None, None, overrides, {})
    assert (settings.model.depth, settings.base.matrix_lr, settings.runtime.device) == (depth, lr, device)


def test_the_environment_means_what_the_option_means() -> None:
    for key in ("base.n_steps", "model.depth"):
        name = "NANOCHAT_" + key.upper().replace(".", "__")
        if key in list_fields():
            assert read_environment({name: "3"})[0].value == 3
        else:
            with pytest.raises(UsageError, match=name):
                read_environment({name: "3"})


KUBERNETES = """NANOCHAT_PORT=tcp://10.43.1.39:8000 NANOCHAT_SERVICE_HOST=10.43.1.39 NANOCHAT_SERVICE_PORT=8000
    NANOCHAT_SERVICE_PORT_HTTP=8000 NANOCHAT_PORT_8000_TCP=tcp://10.43.1.39:8000 NANOCHAT_PORT_8000_TCP_PROTO=tcp
    NANOCHAT_PORT_8000_TCP_PORT=8000 NANOCHAT_PORT_8000_TCP_ADDR=10.43.1.39"""


def test_what_kubernetes_puts_into_a_pod_is_no_setting() -> None:
    environ = dict(item.split("=") for item in KUBERNETES.split()) | {"NANOCHAT_UPDATE_SNAPSHOTS": "1"}
    assert load_settings("demo", environ=environ) == load_settings("demo", environ={})
    assert find_misspelt(environ) == {}


@pytest.mark.parametrize(
    "name, meant",
    [
        ("HME", "HOME"),
        ("OFLINE", "OFFLINE"),
        ("APIKEY", "API_KEY"),
        ("BASE_NUM_STEPS", "BASE__NUM_STEPS"),
        ("BASE__NUM_STPS", "BASE__NUM_STEPS"),
        ("base__num_steps", "BASE__NUM_STEPS"),
        ("MATRIX_LR", "BASE__MATRIX_LR"),
        ("DEVICE", "RUNTIME__DEVICE"),
    ],
)
def test_a_variable_that_looks_like_a_misspelt_setting_is_found(name: str, meant: str) -> None:
    assert find_misspelt({f"NANOCHAT_{name}": "1"}) == {f"NANOCHAT_{name}": f"NANOCHAT_{meant}"}


@pytest.mark.parametrize("value", ["", " "])
def test_an_empty_variable_says_nothing(value: str) -> None:
    environ = {"NANOCHAT_BASE__NUM_STEPS": value, "NANOCHAT_BASE__MATRIX_LR": value, "NANOCHAT_SFT__MIXTURE": value}
    assert load_settings("demo", environ=environ) == load_settings("demo", environ={})
    assert find_empty(environ) == sorted(environ)
    unset = {"NANOCHAT_BASE__NUM_STEPS": "none"}
    assert load_settings("demo", environ=unset)[0].base.num_steps is None and find_empty(unset) == []


@pytest.mark.parametrize(
    "text, place",
    [
        ("[base]\n\nnum_stps = 1\n", "f:3"),
        ("base.num_stps = 1\n", "f:1"),
        ("# c\nbase = { num_stps = 1 }\n", "f:2"),
        ("[ base ]\n'num_stps' = 1\n", "f:2"),
        ('[tokenizer]\npattern = """\nnum_stps = 1\n"""\n[base]\nnum_stps = 2\n', "f:6"),
        ("[mid]\nwarmup = 0.1\n[base]\nnum_stps=1", "f:4"),
    ],
)
def test_an_unknown_key_is_shown_with_its_line(text: str, place: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_toml(text, "f")
    assert caught.value.message == f"{place}: unknown key base.num_stps"
    assert caught.value.hint == "did you mean base.num_steps?"


@pytest.mark.parametrize("name", list(list_presets()))
def test_every_key_of_a_preset_is_found_by_line(name: str) -> None:
    text = list_presets()[name]
    for section, values in tomllib.loads(text).items():
        for key in values:
            line = find_line(text, f"{section}.{key}")
            assert line is not None and text.splitlines()[line - 1].startswith(key)


@pytest.mark.parametrize("name", list(list_presets()))
def test_presets_state_only_what_differs_from_the_defaults(name: str) -> None:
    defaults = flatten(Settings().model_dump())
    same = [key for key, value in flatten(tomllib.loads(list_presets()[name])).items() if defaults[key] == value]
    assert same in ([], ["model.depth"])  # d20 is the default depth, and a preset names its depth


def test_every_field_has_help() -> None:
    undescribed = [key for key, field in list_fields().items() if not field.description]
    assert undescribed == []


def test_saved_settings_come_back_whole(tmp_path: Path) -> None:
    settings, origins = load_settings("demo", None, ["base.flops=none", "eval.tasks=letters"], {})
    save_settings(tmp_path / "r" / "settings.json", "demo", settings, origins, "1")
    assert read_saved(tmp_path / "r" / "settings.json") == ("demo", settings, origins)


def test_wishes_over_saved_settings_keep_the_other_origins() -> None:
    settings, origins = load_settings("demo", environ={})
    changed, after = apply_wishes(settings, read_toml("[eval]\nbatch_size = 4\n", "my.toml"), origins)
    assert differing_keys(settings, changed) == {"eval.batch_size": (32, 4)}
    assert {key for key in after if after[key] != origins[key]} == {"eval.batch_size"}


def test_files_mean_the_folder_where_they_were_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "my.toml").write_text(
        '[mid]\nmixture = ["custom:mine.jsonl*10", "identity*8"]\n[eval]\ntasks = ["../own.py:Class", "letters"]\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/me")
    told = ["sft.mixture=own.py:Class:200,custom:~/a b.jsonl:0:7:2*3,gsm8k:0:70:2,package.module:Class"]
    environ = {"NANOCHAT_RL__TASK": "none.py:Class:9"}
    settings, origins = load_settings("demo", Path("there/my.toml"), told, environ)
    save_settings(tmp_path / "settings.json", "demo", settings, origins, "1")
    monkeypatch.chdir("/")
    again = read_saved(tmp_path / "settings.json")[1]
    assert again.mid.mixture == [f"custom:{tmp_path}/there/mine.jsonl*10", "identity*8"]
    assert again.eval.tasks == [f"{tmp_path}/there/../own.py:Class", "letters"]
    assert again.sft.mixture == [
        *(f"{tmp_path}/own.py:Class:200", "custom:/home/me/a b.jsonl:0:7:2*3", "gsm8k:0:70:2"),
        "package.module:Class",
    ]
    assert again.rl.task == f"{tmp_path}/none.py:Class:9"
