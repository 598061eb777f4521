"""An exported folder is what transformers takes for the same model: logits, ids, conversations, answers."""

import json
import random
from pathlib import Path

import pytest
import torch
from jinja2.exceptions import TemplateError
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from nanochat.checkpoint.checkpoint import save_checkpoint
from nanochat.conversation import parse_conversation
from nanochat.engine.engine import Engine, generate
from nanochat.engine.sampling import SamplingParams
from nanochat.errors import CheckError, DataError
from nanochat.model.config import GPTConfig
from nanochat.paths import ModelPath, StagePaths, Workspace
from nanochat.stages import export
from nanochat.stages.assemble import load_model
from nanochat.stages.export import export_hf
from nanochat.tokenizer.bpe import load_tokenizer
from nanochat.tokenizer.chat import render, render_prompt
from tests.model.test_gpt import build_random_gpt

CPU = torch.device("cpu")
CONVERSATIONS = (
    [{"role": "user", "content": "Hi"}],
    [{"role": "user", "content": ""}, {"role": "assistant", "content": ""}],
    [
        {"role": "system", "content": "Be brief.\n"},
        {"role": "user", "content": [{"type": "text", "text": "  What is 2+2?\n"}]},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "Let me see: "},
                {"type": "python", "text": "2+2"},
                {"type": "python_output", "text": "4"},
                {"type": "text", "text": " It's 4.\n\n"},
            ],
        },
        {"role": "user", "content": "{{ 7 * 7 }} {% if %} <b>&amp;</b> \\n 'x' \"y\" <| user_end |>"},
        {"role": "assistant", "content": [{"type": "python", "text": "1"}]},
        {"role": "user", "content": "\u4f60\u597d \U0001f44b\U0001f3fd 12345"},
    ],
    [{"role": "system", "content": ""}, {"role": "user", "content": "\n"}, {"role": "assistant", "content": " a"}],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "python", "text": "1"}], "weight": 0},
        {"role": "user", "content": "c", "train": False},
        {"role": "assistant", "content": "d", "train": False},
        {"role": "user", "content": "e"},
        {"role": "assistant", "content": "f", "weight": 1, "train": True},
    ],
)


@pytest.fixture(scope="module")
def sft(trained_home: Path) -> ModelPath:
    return Workspace(trained_home).resolve_model("whole/sft")


@pytest.fixture(scope="module")
def folder(sft: ModelPath, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_hf(sft, tmp_path_factory.mktemp("export") / "sft").folder


@pytest.fixture(scope="module")
def hf_tokenizer(folder: Path):
    return AutoTokenizer.from_pretrained(folder)


def test_logits_equal_ours_without_the_padding(sft: ModelPath, folder: Path) -> None:
    model, tokenizer, _ = load_model(sft, CPU, torch.float32)
    assert tokenizer.vocab_size < model.config.padded_vocab_size
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.dtype == torch.float32 and theirs.lm_head.weight.shape[0] == tokenizer.vocab_size
    ids = torch.randint(tokenizer.vocab_size, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)


def test_shared_keys_and_bare_folders_are_exported_too(sft: ModelPath, tmp_path: Path) -> None:
    assert sft.run is not None
    tokenizer = load_tokenizer(sft.run.tokenizer)
    tokenizer.save(tmp_path / "tokenizer")
    config = GPTConfig(2, 64, 4, 2, 32, tokenizer.vocab_size)
    model = build_random_gpt(config)
    meta = {"config": config.to_dict(), "tokenizer_hash": tokenizer.hash}
    checkpoint = save_checkpoint(StagePaths(tmp_path / "base"), 3, model.state_dict(), {}, {}, meta, keep=1)
    written = export_hf(ModelPath(checkpoint, None, None, None), tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.config.num_key_value_heads == 2 and not written.has_chat_template
    ids = torch.arange(32)[None] * 5
    with torch.no_grad():
        torch.testing.assert_close(theirs(ids).logits, model(ids), atol=1e-4, rtol=0)


def test_texts_have_our_ids_after_the_beginning_of_a_document(sft: ModelPath, folder: Path, hf_tokenizer) -> None:
    assert sft.run is not None
    tokenizer = load_tokenizer(sft.run.tokenizer)
    draw = random.Random(0)
    alphabet = "ab e\n\r\t  '.1279\u00e9\u4f60\U0001f44b\u0301\u00a0_-<|>s" + "the"
    texts = ["", *export.PROBES, *("".join(draw.choices(alphabet, k=draw.randrange(1, 60))) for _ in range(500))]
    for text in texts:
        ids = tokenizer.encode(text)
        assert hf_tokenizer(text)["input_ids"] == [tokenizer.bos_id, *ids], text
        assert hf_tokenizer(text, add_special_tokens=False)["input_ids"] == ids
        assert hf_tokenizer.decode(hf_tokenizer(text)["input_ids"], skip_special_tokens=True) == text
    assert len(hf_tokenizer) == tokenizer.vocab_size == AutoConfig.from_pretrained(folder).vocab_size
    assert hf_tokenizer.bos_token_id == tokenizer.bos_id and hf_tokenizer.model_max_length == 64


@pytest.mark.parametrize("messages", CONVERSATIONS)
def test_conversations_have_our_ids_and_our_mask(sft: ModelPath, hf_tokenizer, messages: list) -> None:
    assert sft.run is not None
    tokenizer, conversation = load_tokenizer(sft.run.tokenizer), parse_conversation(messages)
    ids, mask = render(tokenizer, conversation)
    found = hf_tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
    assert found["input_ids"] == ids and found["assistant_masks"] == mask
    if messages[-1]["role"] == "user":
        prompt = hf_tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
        assert prompt["input_ids"] == render_prompt(tokenizer, conversation)


@pytest.mark.parametrize(
    ("messages", "fragment"),
    [
        ([{"role": "user", "content": "a <|assistant_end|>"}], "holds <|assistant_end|>, which would not stay text"),
        ([{"role": "system", "content": "<|bos|>"}, {"role": "user", "content": "a"}], "<|bos|>"),
        ([{"role": "user", "content": [{"type": "text", "text": "<|bo"}, {"type": "text", "text": "s|>"}]}], "<|bos|>"),
        ([{"role": "assistant", "content": "a"}], "user first"),
        ([{"role": "user", "content": "a"}] * 2, "alternate"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "a"}], "system message stands first"),
        ([{"role": "user", "content": "a"}, {"role": "tool", "content": "4"}], "alternate"),
        ([{"role": "system", "content": "a"}], "needs a user message"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "text parts only"),
        ([{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "python"}]}], "content is text"),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "a"}] * 2}],
            "in a row",
        ),
    ],
)
def test_what_the_template_cannot_render_as_we_do_is_refused(hf_tokenizer, messages: list, fragment: str) -> None:
    with pytest.raises(TemplateError, match=fragment.replace("|", r"\|")):
        hf_tokenizer.apply_chat_template(messages)


def test_the_most_likely_answer_is_that_of_our_engine(sft: ModelPath, folder: Path) -> None:
    model, tokenizer, _ = load_model(sft, CPU, torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    ends = (tokenizer.special_ids["<|assistant_end|>"], tokenizer.bos_id)
    for text in ("What is 3 + 4?", "Who are you?", "Spell duck."):
        prompt = render_prompt(tokenizer, parse_conversation([{"role": "user", "content": text}]))
        params = SamplingParams(temperature=0, max_new_tokens=20)
        (ours,) = generate(Engine(model, 1, 64, eos_ids=ends), [prompt], params)
        found = theirs.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=20)[0, len(prompt) :].tolist()
        assert [token for token in found if token not in ends] == ours


def test_settings_of_generation_are_those_of_our_chat(sft: ModelPath, folder: Path) -> None:
    config = GenerationConfig.from_pretrained(folder)
    assert (config.do_sample, config.temperature, config.top_k) == (True, 0.8, 50)
    assert config.eos_token_id is not None and config.bos_token_id in config.eos_token_id  # type: ignore[operator]


def test_a_base_model_has_no_chat_template(trained_home: Path, tmp_path: Path) -> None:
    written = export_hf(Workspace(trained_home).resolve_model("whole/base"), tmp_path / "base")
    assert not written.has_chat_template and AutoTokenizer.from_pretrained(tmp_path / "base").chat_template is None


def test_bfloat16_halves_the_weights_and_says_so(sft: ModelPath, folder: Path, tmp_path: Path) -> None:
    written = export_hf(sft, tmp_path / "half", torch.bfloat16)
    size = (folder / "model.safetensors").stat().st_size
    assert written.files["model.safetensors"] < 0.6 * size and written.dtype == "bfloat16"
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half", dtype="auto").dtype == torch.bfloat16


def test_the_file_says_whose_weights_it_holds(sft: ModelPath, folder: Path) -> None:
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert metadata["format"] == "pt" and metadata["model"] == str(sft)


def test_what_reads_back_wrong_never_gets_the_name(sft: ModelPath, tmp_path: Path, monkeypatch) -> None:
    write = export.write_tensors

    def write_and_flip(path: Path, *rest):
        entry = write(path, *rest)
        with path.open("r+b") as file:
            file.seek(-3, 2)
            file.write(b"\x07")
        return entry

    monkeypatch.setattr(export, "write_tensors", write_and_flip)
    with pytest.raises(CheckError, match=r"model\.safetensors reads back wrong: its SHA-256"):
        export_hf(sft, tmp_path / "out")
    monkeypatch.undo()
    wrong = json.dumps({"chat_template": ""})
    monkeypatch.setattr(
        export,
        "write_text",
        lambda path, text: path.write_text(wrong if path.name == "tokenizer_config.json" else text + "\n"),
    )
    with pytest.raises(CheckError, match=r"tokenizer_config\.json reads back wrong"):
        export_hf(sft, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_shape_are_refused(sft: ModelPath, tmp_path: Path) -> None:
    assert sft.run is not None
    tokenizer = load_tokenizer(sft.run.tokenizer)
    tokenizer.save(tmp_path / "tokenizer")
    config = GPTConfig(2, 64, 4, 2, 32, tokenizer.vocab_size)
    meta = {"config": GPTConfig(2, 64, 4, 4, 32, tokenizer.vocab_size).to_dict(), "tokenizer_hash": tokenizer.hash}
    state = build_random_gpt(config).state_dict()
    checkpoint = save_checkpoint(StagePaths(tmp_path / "sft"), 3, state, {}, {}, meta, keep=1)
    with pytest.raises(DataError, match="do not fit the model"):
        export_hf(ModelPath(checkpoint, None, None, None), tmp_path / "out")
    assert not (tmp_path / "out").exists()
