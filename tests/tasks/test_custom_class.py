import sys
from pathlib import Path

import pytest

from nanochat.errors import DataError, MissingError, UsageError
from nanochat.tasks.catalog import build_mixture, build_task

EXAMPLE = Path(__file__).parents[2] / "examples" / "reversal.py"
HEAD = "from nanochat.tasks.task import Task\nfrom nanochat.conversation import Conversation, assistant, user\n"
BODY = """
class Mine(Task):
    def __init__(self, split):
        self.split = split
    def num_examples(self):
        return 10
    def example(self, index):
        return Conversation((user(str(index)), assistant(self.split)))
    def evaluate(self, conversation, completion):
        return completion == self.split
"""


def test_the_example_of_the_documentation_is_a_task() -> None:
    train, test = (build_task(f"{EXAMPLE}:Reversal", split) for split in ("train", "test"))
    assert train.name == "reversal" and (len(train), len(test)) == (5_000, 500)
    assert not {conversation.messages[0] for conversation in train} & {c.messages[0] for c in test}
    for conversation in test:
        word = conversation.messages[0].text.split()[1]
        assert test.evaluate(conversation, "-".join(word[::-1]) + ".")
        assert test.evaluate(conversation, conversation.messages[-1].text)
        assert not test.evaluate(conversation, "") and not test.evaluate(conversation, word + "x")
    assert len(build_mixture([f"{EXAMPLE}:Reversal:20:40:2*3", "identity"])) == 30 + 286


def test_a_class_without_a_name_is_named_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(HEAD + BODY)
    task = build_task(f"{path}:Mine", "test", 3)
    assert task.name == "mine.py:Mine" and len(task) == 3 and task.evaluate(task[0], "test")


def test_a_class_of_a_module_is_a_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_tasks_module.py").write_text(HEAD + BODY)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert len(build_task("my_tasks_module:Mine")) == 10
    sys.modules.pop("my_tasks_module")


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (HEAD + BODY.replace("Mine", "Main"), UsageError, "has no class 'Mine'"),
        ("class Mine: pass\n", UsageError, "is not a Task"),
        (HEAD + "class Mine(Task):\n    def num_examples(self): return 1\n", UsageError, "lacks evaluate, example"),
        ("x = 1\nclass Mine(\n", DataError, r"SyntaxError: .*mine.py:2\)"),
        ("import no_such_thing\n", DataError, r"No module named 'no_such_thing' .*mine.py:1\)"),
        (HEAD + BODY.replace("self.split = split", "1 / 0"), DataError, r"ZeroDivisionError: .*mine.py:6\)"),
        (HEAD + BODY.replace("(self, split)", "(self)"), DataError, "TypeError"),
    ],
)
def test_what_is_wrong_with_a_class_is_said(tmp_path: Path, text: str, kind: type, said: str) -> None:
    path = tmp_path / "mine.py"
    path.write_text(text)
    with pytest.raises(kind, match=said):
        build_task(f"{path}:Mine")


def test_a_class_of_another_spelling_is_suggested() -> None:
    with pytest.raises(UsageError) as error:
        build_task(f"{EXAMPLE}:Reversl")
    assert error.value.hint == f"did you mean {EXAMPLE}:Reversal?"


def test_a_file_or_module_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="no file"):
        build_task(f"{tmp_path}/none.py:Mine")
    with pytest.raises(MissingError, match="no module 'no_such_package.tasks'"):
        build_task("no_such_package.tasks:Mine")
