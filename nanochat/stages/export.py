"""A model as a folder that Hugging Face's transformers loads: weights, shape, tokenizer, chat template.

transformers itself takes no part: the files are written here, read back, and compared with what they were made from.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer as ExportedTokenizer
from torch import Tensor

from nanochat import __version__
from nanochat.chat.session import CHAT_SAMPLING
from nanochat.checkpoint.manifest import read_manifest
from nanochat.checkpoint.tensors import write_tensors
from nanochat.errors import CheckError
from nanochat.files import CHOOSE_ANOTHER, SPARE_BYTES, check_space, hash_file, new_folder, write_text
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.model.hf import build_hf_config, to_hf_state
from nanochat.paths import ModelPath
from nanochat.stages.assemble import check_tokenizer, find_tokenizer, load_newest, load_weights, read_config
from nanochat.tokenizer.bpe import SPECIAL_TOKENS, Tokenizer, load_tokenizer
from nanochat.tokenizer.export import build_exported, build_tokenizer_config

WEIGHTS = "model.safetensors"
PROBES = (
    "The quick brown fox, in 1999 (or 12,345 years ago), said: don't!",
    "  two spaces\n\n\ttab\r\n    def f(x):\n        return x ** 2  # why?\n",
    "na\u00efve \u00dcbung, \u4f60\u597d, \u041f\u0440\u0438\u0432\u0435\u0442, \u0645\u0631\u062d\u0628\u0627, "
    "\U0001f44b\U0001f3fd e\u0301 \u00a0\u2028",
)
"""Texts whose ids are compared: words, digits, spaces, code, several scripts."""


@dataclass(frozen=True)
class Export:
    """What was written. files: bytes by name."""

    folder: Path
    model: str
    dtype: str
    num_params: int
    has_chat_template: bool
    files: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"folder": str(self.folder)}


def export_hf(
    model_path: ModelPath,
    folder: Path,
    dtype: torch.dtype = torch.float32,
    say: Callable[[str], None] = lambda text: None,
) -> Export:
    """Write the folder in one step and verify it before it gets its name; what stood there is replaced.

    A base model gets no chat template: it has not learnt conversations. dtype: of the weights. Raises what
    `load_newest` raises, CapacityError if the disk is full, CheckError if what was written reads back differently.
    """
    model_path, checkpoint = load_newest(model_path, say)
    name = str(model_path)
    tokenizer = load_tokenizer(find_tokenizer(model_path))
    check_tokenizer(checkpoint.meta, tokenizer, name)
    config = read_config(checkpoint.meta, name)
    with torch.device("meta"):
        model = GPT(config)
    load_weights(model, checkpoint.model, name, assign=True)
    tensors = {key: tensor.to(dtype) for key, tensor in to_hf_state(model.state_dict(), config).items()}
    stage = model_path.stage or read_manifest(model_path.checkpoint).get("stage")
    is_chat = stage != "base"
    texts = {
        "config.json": json.dumps(_describe_model(config, tokenizer, dtype, is_chat), indent=2),
        "generation_config.json": json.dumps(_describe_generation(tokenizer, is_chat), indent=2),
        "tokenizer.json": build_exported(tokenizer.merges, tokenizer.pattern, tokenizer.special_ids).to_str(),
        "tokenizer_config.json": json.dumps(build_tokenizer_config(config.context, is_chat), indent=2),
    }
    metadata = {"format": "pt", "model": name, "nanochat": __version__, "tokenizer_sha256": tokenizer.hash}
    needed = sum(tensor.nbytes for tensor in tensors.values()) + SPARE_BYTES
    with new_folder(folder, CHOOSE_ANOTHER) as temporary:
        check_space(folder.parent, needed, f"an export of {name}")
        entry = write_tensors(temporary / WEIGHTS, tensors, metadata)
        for file, text in texts.items():
            write_text(temporary / file, text)
        verify_weights(temporary / WEIGHTS, str(entry["sha256"]), tensors)
        verify_texts(temporary, texts, tokenizer)
        files = {path.name: path.stat().st_size for path in sorted(temporary.iterdir())}
    num_params = sum(tensor.numel() for tensor in tensors.values())
    return Export(folder, name, str(dtype).removeprefix("torch."), num_params, is_chat, files)


def verify_weights(path: Path, sha256: str, tensors: dict[str, Tensor]) -> None:
    """Raise CheckError if a file is not what was written, or is read as other tensors."""
    if hash_file(path) != sha256:
        raise _describe_damage(path, "its SHA-256 is not that of what was written")
    try:
        with safe_open(path, framework="pt") as file:
            if set(file.keys()) != set(tensors):
                raise _describe_damage(path, "it holds other names")
            for name, tensor in tensors.items():
                if not torch.equal(file.get_tensor(name), tensor):
                    raise _describe_damage(path, f"{name} is another tensor")
    except SafetensorError as error:
        raise _describe_damage(path, str(error)) from error


def verify_texts(folder: Path, texts: dict[str, str], tokenizer: Tokenizer) -> None:
    """Raise CheckError if a text is not what was written, or the tokenizer gives other ids than ours."""
    for name, text in texts.items():
        if (folder / name).read_text(encoding="utf-8") != text + "\n":
            raise _describe_damage(folder / name, "it is not what was written")
    path = folder / "tokenizer.json"
    exported = ExportedTokenizer.from_file(str(path))
    for text in PROBES:
        if exported.encode(text).ids != [tokenizer.bos_id, *tokenizer.encode(text)]:
            raise _describe_damage(path, f"it gives other ids for {text!r}")
    if exported.encode("".join(SPECIAL_TOKENS), add_special_tokens=False).ids != list(tokenizer.special_ids.values()):
        raise _describe_damage(path, "its special tokens have other ids")
    if exported.get_vocab_size() != tokenizer.vocab_size:
        raise _describe_damage(path, f"it has {exported.get_vocab_size()} ids, not {tokenizer.vocab_size}")


def _describe_model(config: GPTConfig, tokenizer: Tokenizer, dtype: torch.dtype, is_chat: bool) -> dict[str, Any]:
    eos_id = tokenizer.special_ids["<|assistant_end|>"] if is_chat else tokenizer.bos_id
    return build_hf_config(config, tokenizer.bos_id, eos_id) | {"dtype": str(dtype).removeprefix("torch.")}


def _describe_generation(tokenizer: Tokenizer, is_chat: bool) -> dict[str, Any]:
    """An answer ends as in our engine, and a chat samples as ours does."""
    end = [tokenizer.special_ids["<|assistant_end|>"], tokenizer.bos_id]
    values = {"bos_token_id": tokenizer.bos_id, "eos_token_id": end, "pad_token_id": tokenizer.bos_id}
    if is_chat:
        values |= {"do_sample": True, "temperature": CHAT_SAMPLING.temperature, "top_k": CHAT_SAMPLING.top_k}
    return values


def _describe_damage(path: Path, what: str) -> CheckError:
    return CheckError(f"{path.name} reads back wrong: {what}", "nanochat doctor  # looks at the disks")
