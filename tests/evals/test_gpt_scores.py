"""The scores of a small random GPT equal those of the slow, obvious way."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch

from nanochat.engine.sampling import SamplingParams
from nanochat.evals.bpb import measure_bits
from nanochat.evals.chat import choose_letters, generate_answers
from nanochat.evals.core import score_trees
from nanochat.evals.core_prompt import Tree
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT

VOCAB = 40
SPECIAL = {
    name: VOCAB - 9 + index
    for index, name in enumerate(
        ["<|bos|>", "<|user_start|>", "<|user_end|>", "<|assistant_start|>", "<|assistant_end|>"]
        + ["<|python_start|>", "<|python_end|>", "<|output_start|>", "<|output_end|>"]
    )
}
TOKENIZER = SimpleNamespace(
    special_ids=SPECIAL,
    bos_id=SPECIAL["<|bos|>"],
    encode=lambda text: [ord(char) % 31 for char in text],
    decode=lambda ids: "".join(map(chr, ids)),
)


@pytest.fixture(scope="module")
def model() -> GPT:
    model = GPT(GPTConfig(n_layer=2, n_embd=32, n_head=2, n_kv_head=1, context=48, vocab_size=VOCAB))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(
                torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) / 4
            )
    return model


def make_prompts(count: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    lengths = torch.randint(3, 30, (count,), generator=generator).tolist()
    return [torch.randint(31, (length,), generator=generator).tolist() for length in lengths]


@torch.no_grad()
def test_bits_equal_the_log_softmax_of_the_logits(model: GPT) -> None:
    ids = torch.randint(VOCAB, (6, 16), generator=torch.Generator().manual_seed(3))
    targets = torch.randint(VOCAB, (6, 16), generator=torch.Generator().manual_seed(4))
    lengths = torch.tensor([1 + token % 3 if token < 31 else 0 for token in range(VOCAB)])
    nll = -torch.log_softmax(model(ids), -1).gather(-1, targets[..., None])[..., 0]
    expected = nll[lengths[targets] > 0].double().sum().item() / math.log(2)
    for size in (1, 4, 6):
        batches = [SimpleNamespace(ids=ids[i : i + size], targets=targets[i : i + size]) for i in range(0, 6, size)]
        bits = measure_bits(model, batches, lengths, 10_000)
        assert bits.bits == pytest.approx(expected, rel=1e-5)
        assert bits.num_bytes == int(lengths[targets].sum()) and bits.num_tokens == 96


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 5, 16])
def test_letters_equal_the_argmax_of_each_prompt_alone(model: GPT, batch_size: int) -> None:
    prompts, letters = make_prompts(16), [("A", "B", "C", "D")] * 16
    chosen = choose_letters(model, TOKENIZER, prompts, letters, batch_size, lambda done, num_all: None)  # type: ignore[arg-type]
    for prompt, choice in zip(prompts, chosen, strict=True):
        logits = model(torch.tensor([prompt]))[0, -1]
        scores = {letter: logits[TOKENIZER.encode(letter)[0]].item() for letter in "ABCD"}
        assert choice == max(scores, key=lambda letter: scores[letter])
    assert len(set(chosen)) > 1


@torch.no_grad()
@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_answers_equal_greedy_decoding_without_a_cache(model: GPT, batch_size: int) -> None:
    prompts = make_prompts(8)
    params = [SamplingParams(temperature=0.0, max_new_tokens=12)] * 8
    answers = [
        answer.text_ids
        for answer in generate_answers(model, TOKENIZER, prompts, params, batch_size, lambda done, num_all: None)
    ]  # type: ignore[arg-type]
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        while len(ids) < len(prompt) + 12:
            token = int(model(torch.tensor([ids]))[0, -1].argmax())
            if token in (SPECIAL["<|bos|>"], SPECIAL["<|assistant_end|>"]):
                break
            ids.append(token)
        if SPECIAL["<|python_end|>"] not in ids:  # a tool would have answered
            assert answer == ids[len(prompt) :]
    assert any(answers)


@torch.no_grad()
def test_scores_are_the_same_bits_with_weights_that_are_cast_once(model: GPT) -> None:
    trained = copy.deepcopy(model)
    trained.compute_dtype = torch.bfloat16
    prompts = make_prompts(16)
    params = [SamplingParams(temperature=1.0, seed=seed, max_new_tokens=12) for seed in range(16)]
    trees = [Tree(prompt, (tuple(prompt[:3]), tuple(prompt[-2:])), (2, 1)) for prompt in prompts]

    def score(model: GPT) -> tuple:
        def say(done: int, num_all: int) -> None: ...

        letters = choose_letters(model, TOKENIZER, prompts, [("A", "B", "C", "D")] * 16, 5, say)  # type: ignore[arg-type]
        answers = generate_answers(model, TOKENIZER, prompts, params, 8, say)  # type: ignore[arg-type]
        return letters, answers, score_trees(trees, model, 0, torch.device("cpu"))

    assert score(trained.cast_weights()) == score(trained)
