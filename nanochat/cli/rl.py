"""`nanochat rl show`: the answers that a model sampled while it practised."""

import shlex
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from nanochat.cli.options import Invocation, command, new_group
from nanochat.cli.target import choose_run
from nanochat.errors import MissingError, UsageError

app = new_group("Look at reinforcement learning.")


@command(app, "show", "nanochat rl show demo --worst")
def show(
    invocation: Invocation,
    run: Annotated[str | None, typer.Argument(help="The run; default: the newest.")] = None,
    step: Annotated[int | None, typer.Option("--step", metavar="N", help="Whose answers; default: the newest.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Single answers, the highest advantage first.")] = False,
    worst: Annotated[bool, typer.Option("--worst", help="Single answers, the lowest advantage first.")] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, help="Questions or answers to show.")] = 8,
) -> None:
    """Show the sampled answers of a step: by question, or the best or the worst of all."""
    from nanochat.training.metrics import RolloutFiles

    if best and worst:
        again = ["nanochat", "rl", "show", *([run] if run else []), "--worst"]
        raise UsageError("--best and --worst are two orders: choose one", shlex.join(again))
    paths = choose_run(invocation, run)
    files = RolloutFiles(paths.stage("rl").root / "rollouts", 1)
    steps = files.steps()
    if not steps:
        raise MissingError(f"run {paths.name!r} has no sampled answers", f"nanochat train rl --run {paths.name}")
    if step is not None and step not in steps:
        kept = f"{steps[0]} to {steps[-1]}" if len(steps) > 1 else f"{steps[0]}"
        raise MissingError(
            f"the answers of step {step} are not kept, only those of {len(steps)} steps ({kept})",
            f"nanochat rl show {paths.name} --step {steps[-1]}",
        )
    chosen = steps[-1] if step is None else step
    others = [other for other in steps if other != chosen]
    again = f"nanochat rl show {paths.name} --step {others[-1]}" if others else f"nanochat runs show {paths.name}"
    records = files.read(chosen, again)
    if best or worst:
        records = sorted(records, key=lambda record: (record["advantage"], record["reward"]))
        records = records[::-1] if best else records
    if invocation.as_json:
        invocation.console.show_json(records[:limit] if best or worst else records)
        return
    console = invocation.console
    console.show(summarize(records))
    lines = map(describe_answer, records[:limit]) if best or worst else describe_questions(records, limit)
    for line in lines:
        console.show(line)


def summarize(records: Sequence[dict[str, Any]]) -> str:
    """One line for the whole step."""
    num = len(records)
    right, tokens = (sum(record[key] for record in records) for key in ("reward", "tokens"))
    cut = sum(bool(record.get("truncated")) for record in records)
    questions = len({record["question"] for record in records})
    return (
        f"step {records[0]['step']}: {questions} questions, {num} answers, {right / num:.1%} right, "
        f"{tokens / num:.1f} tokens on average, {cut} cut"
    )


def describe_questions(records: Sequence[dict[str, Any]], limit: int) -> list[str]:
    """Each question with its different answers, the most frequent first.

    >>> record = {"question": 1, "prompt": "2+2", "right": "4", "reward": 1.0, "answer": "It is 4.", "tokens": 5}
    >>> print(describe_questions([record, record], 8)[0])
    <BLANKLINE>
    2+2  (right: 4; 2 of 2 right)
      2x right  It is 4.
    """
    by_question: dict[Any, list[dict[str, Any]]] = {}
    for record in records:
        by_question.setdefault(record["question"], []).append(record)
    shown = []
    for group in list(by_question.values())[:limit]:
        num_right = sum(record["reward"] > 0 for record in group)
        lines = [
            f"\n{_line(group[0].get('prompt'))}  (right: {_line(group[0].get('right'))}; "
            f"{num_right} of {len(group)} right)"
        ]
        answers = Counter((_verdict(record), _line(record.get("answer"))) for record in group)
        lines += [f"  {count}x {verdict}  {answer}" for (verdict, answer), count in answers.most_common()]
        shown.append("\n".join(lines))
    return shown


def describe_answer(record: dict[str, Any]) -> str:
    return (
        f"\n{_line(record.get('prompt'))}  (right: {_line(record.get('right'))})\n"
        f"  {record['advantage']:+.3f} {_verdict(record)}, {record['tokens']} tokens  "
        f"{_line(record.get('answer'))}"
    )


def _verdict(record: dict[str, Any]) -> str:
    return ("right" if record["reward"] > 0 else "wrong") + (", cut" if record.get("truncated") else "")


def _line(text: object) -> str:
    from nanochat.text import escape_hidden

    return " ".join(escape_hidden(str(text)).split())
