"""Small CORE bundles, written to a folder."""

import json
import random
from collections.abc import Sequence
from pathlib import Path

WORDS = "the red cat sat on a mat and saw one big dog run far away from its old green hat".split()
KINDS = {
    "copa": ("multiple_choice", 0, 50.0, " "),
    "arc_easy": ("multiple_choice", 3, 25.0, "\nAnswer: "),
    "commonsense_qa": ("multiple_choice", 2, 40.3, " "),
    "winograd": ("schema", 0, 50.0, " "),
    "winogrande": ("schema", 2, 50.0, " "),
    "lambada_openai": ("language_modeling", 0, 0.0, " "),
    "jeopardy": ("language_modeling", 4, 0.0, "\nAnswer: "),
    "bigbench_dyck_languages": ("language_modeling", 10, 0.0, " "),
}


def make_example(kind: str, rng: random.Random, letters: bool = False) -> dict:
    def say(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    if kind == "language_modeling":
        return {"context": f"{say(2, 9)}: ", "continuation": say(1, 2)}
    if kind == "schema":
        start = say(3, 6)
        return {
            "context_options": [f"{start} {end}" for end in rng.sample(WORDS, 2)],
            "continuation": say(1, 4),
            "gold": rng.randrange(2),
        }
    choices = ["A", "B", "C", "D"] if letters else [say(1, 5) for _ in range(rng.choice((2, 4)))]
    return {"query": f"Question: {say(2, 8)}?", "choices": choices, "gold": rng.randrange(len(choices))}


def write_bundle(folder: Path, labels: Sequence[str] = tuple(KINDS), num_items: int = 12) -> Path:
    """Write a bundle with `num_items` questions a task; labels without an entry above are two-choice questions."""
    listed, baselines = ["icl_tasks:"], ["Eval Task,Task Category,Random baseline"]
    for label in labels:
        kind, shots, baseline, delimiter = KINDS.get(label, ("multiple_choice", 0, 50.0, " "))
        rng = random.Random(label)
        examples = [make_example(kind, rng, label == "commonsense_qa") for _ in range(num_items)]
        path = folder / "eval_data" / "all" / f"{label}.jsonl"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(example) + "\n" for example in examples), encoding="utf-8")
        listed += ["-", f"  label: {label}", f"  dataset_uri: all/{label}.jsonl", f"  num_fewshot: [{shots}]"]
        listed.append(f"  icl_task_type: {kind}")
        if delimiter != " ":
            listed.append(f"  continuation_delimiter: {json.dumps(delimiter)}")
        baselines.append(f"{label},some,{baseline:g}")
    (folder / "core.yaml").write_text("\n".join(listed) + "\n")
    (folder / "eval_meta_data.csv").write_text("\n".join(baselines) + "\n")
    return folder
