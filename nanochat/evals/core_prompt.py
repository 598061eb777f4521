"""CORE questions as tokens: few-shot prompts, and what of them all options share. Knows no model.

An item becomes a tree: the tokens that all its options begin with, once, and a tail for each option. The last tokens
of a tail are scored: the choice (multiple choice), the shared continuation (schema), the continuation (language
modelling). Delimiters are set as llm-foundry does: a prompt never ends in a space, the continuation brings it along.
"""

import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from nanochat.data.core_bundle import CoreItem, CoreTask, Kind
from nanochat.tokenizer.bpe import Tokenizer

ENCODE_ITEMS = 256
"""Questions that are encoded at once: enough for the encoder's threads, few enough that their lists stay small."""


@dataclass(frozen=True)
class Tree:
    """Options that begin alike: option c is prefix + tails[c], and the prefix has at least one token.

    num_scored: how many tokens at the end of each tail count. The prefix takes 4 bytes a token: a task has millions.
    """

    prefix: Sequence[int]
    tails: tuple[tuple[int, ...], ...]
    num_scored: tuple[int, ...]


@dataclass(frozen=True)
class Question:
    """An item as tokens: its options in order, in one tree, or in one each where cutting left nothing shared.

    num_dropped: oldest tokens that the longest option lost because the context is shorter. trees is empty where an
    option needs more tokens to be scored than the context has: there is no answer then.
    """

    trees: tuple[Tree, ...]
    num_dropped: int = 0

    @property
    def is_too_long(self) -> bool:
        return not self.trees


def draw_shots(num_items: int, num_shots: int, index: int, seed: str) -> list[int]:
    """Numbers of other items, drawn for this item alone: neither a limit nor the number of ranks changes them.

    >>> 3 in draw_shots(5, 4, 3, "a"), len(set(draw_shots(5, 9, 3, "a")))
    (False, 4)
    """
    drawn = random.Random(f"core/{seed}/{index}").sample(range(num_items - 1), min(num_shots, num_items - 1))
    return [number + (number >= index) for number in drawn]


def render_prompt(task: CoreTask, items: Sequence[CoreItem], index: int, seed: int) -> tuple[str, list[str]]:
    """The prompt of an item's first option without a trailing space, and every option in full."""
    shots = draw_shots(len(items), task.num_fewshot, index, f"{seed}/{task.label}")
    solved = (task.continuation_delimiter.join(items[shot].options[items[shot].gold]) for shot in shots)
    before = "".join(text + task.example_delimiter for text in solved)
    item = items[index]
    prompt = before + item.options[0][0] + task.continuation_delimiter.rstrip()
    return prompt, [before + task.continuation_delimiter.join(option) for option in item.options]


def iter_questions(
    task: CoreTask, items: Sequence[CoreItem], indices: Sequence[int], tokenizer: Tokenizer, context: int, seed: int
) -> Iterator[Question]:
    """The chosen items as tokens, in their order."""
    for start in range(0, len(indices), ENCODE_ITEMS):
        rendered = [render_prompt(task, items, index, seed) for index in indices[start : start + ENCODE_ITEMS]]
        ids = iter(tokenizer.encode_batch([text for prompt, options in rendered for text in (prompt, *options)]))
        for _, options in rendered:
            prompt_ids = [tokenizer.bos_id, *next(ids)]
            option_ids = [[tokenizer.bos_id, *next(ids)] for _ in options]
            yield build_question(task.kind, prompt_ids, option_ids, context)


def build_question(kind: Kind, prompt: list[int], options: list[list[int]], context: int) -> Question:
    """Find what is shared and what is scored, and leave out the oldest tokens where an option outgrows the context.

    The model reads all but the last token of an option, at most `context` of them, and at least one comes before the
    first scored token. All options lose the same tokens, so that they stay comparable, as long as they share any.

    >>> build_question("multiple_choice", [], [[9, 1, 2, 3], [9, 1, 4]], 8).trees
    (Tree(prefix=array('i', [9, 1]), tails=((2, 3), (4,)), num_scored=(2, 1)),)
    >>> build_question("schema", [], [[9, 1, 5, 6], [9, 2, 3, 5, 6]], 4).trees
    (Tree(prefix=array('i', [9]), tails=((1, 5, 6), (2, 3, 5, 6)), num_scored=(2, 2)),)
    >>> build_question("language_modeling", [9, 1], [[9, 1, 2, 3]], 2)
    Question(trees=(Tree(prefix=array('i', [1]), tails=((2, 3),), num_scored=(2,)),), num_dropped=1)
    """
    shortest, longest = min(map(len, options)), max(map(len, options))
    if kind == "schema":
        scored = max(1, min(_count_shared([option[::-1] for option in options]), shortest - 1))
        num_scored = [scored] * len(options)
        shared = min(_count_shared(options), shortest - scored)
    else:
        rows = options if kind == "multiple_choice" else [prompt, *options]
        shared = min(_count_shared(rows), shortest - 1)
        num_scored = [len(option) - shared for option in options]
    if max(num_scored) > context:
        return Question((), longest - 1 - context)
    dropped = max(0, longest - 1 - context)
    if dropped < shared:
        tails = tuple(tuple(option[shared:]) for option in options)
        return Question((Tree(array("i", options[0][dropped:shared]), tails, tuple(num_scored)),), dropped)
    newest = [option[-1 - context :] for option in options]
    pairs = zip(newest, num_scored, strict=True)
    return Question(tuple(Tree(array("i", o[:-n]), (tuple(o[-n:]),), (n,)) for o, n in pairs), dropped)


def _count_shared(rows: Sequence[Sequence[int]]) -> int:
    """Length of the common beginning.

    >>> _count_shared([[1, 2, 3], [1, 2], [1, 2, 4]])
    2
    """
    count = 0
    for tokens in zip(*rows, strict=False):
        if len(set(tokens)) > 1:
            break
        count += 1
    return count
