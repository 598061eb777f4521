"""Grade HumanEval's own solutions, cheats and endless programs in the sandbox.

    python benchmarks/sandbox.py TASKS [--endless 200] [--cheats-on 164]

All solutions of the data set have to pass, no cheat may on any question, and an endless program leaves no process.
TASKS: the folder of downloaded tasks, $NANOCHAT_HOME/tasks; `nanochat download tasks humaneval` brings it.
"""

import argparse
import json
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from nanochat.machine import cpu_name, usable_cores
from nanochat.tasks.catalog import build_task
from nanochat.tasks.humaneval import HumanEvalTask
from nanochat.tools.sandbox.grading import grade_programs
from nanochat.tools.sandbox.probe import require_isolation
from nanochat.tools.sandbox.process import Limits
from tests.tools.sandbox.cheats import CHEATS
from tests.tools.sandbox.listing import list_sandboxed

ENDLESS = {
    "computes": "def NAME(*a, **k):\n    while True: pass",
    "sleeps": "import time\ndef NAME(*a, **k): time.sleep(10**6)",
    "ignores signals": (
        "import signal\nfor number in range(1, 32):\n    try: signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError): pass\ndef NAME(*a, **k):\n    while True: pass"
    ),
    "starts others": (
        "import os\ndef NAME(*a, **k):\n    while True:\n        try: os.fork()\n        except OSError: pass"
    ),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", type=Path)
    parser.add_argument("--endless", type=int, default=200)
    parser.add_argument("--cheats-on", type=int, default=None, help="so many questions; default: all")
    wish = parser.parse_args()
    task = build_task("humaneval", "test", folder=wish.tasks)
    assert isinstance(task, HumanEvalTask)
    isolation = require_isolation(False)
    examples = list(task)
    programs = [task.build_program(example, example.messages[1].text) for example in examples]
    started = time.perf_counter()
    verdicts = grade_programs(programs, isolation)
    seconds = time.perf_counter() - started
    passed = sum(verdict.passed is True for verdict in verdicts)
    print(f"solutions: {passed} of {len(programs)} pass, {1000 * seconds / len(programs):.0f} ms each; {isolation}")

    cheating = [
        (name, replace(program, code=code.replace("NAME", program.entry_point)))
        for name, code in CHEATS.items()
        for program in programs[: wish.cheats_on]
    ]
    started = time.perf_counter()
    found = grade_programs([program for _, program in cheating], isolation, Limits(cpu_seconds=2, wall_seconds=20))
    cheat_seconds = time.perf_counter() - started
    false = Counter(name for (name, _), verdict in zip(cheating, found, strict=True) if verdict.passed)
    lacking = Counter(name for (name, _), verdict in zip(cheating, found, strict=True) if verdict.passed is None)
    print(f"cheats: {len(CHEATS)} x {len(programs[: wish.cheats_on])}: {false.total()} false passes {dict(false)}, "
          f"{lacking.total()} without a verdict {dict(lacking)}, {cheat_seconds:.0f} s")  # fmt: skip

    kinds = list(ENDLESS.values())
    endless = [
        replace(program, code=kinds[number % len(kinds)].replace("NAME", program.entry_point))
        for number, program in enumerate((programs * (1 + wish.endless // len(programs)))[: wish.endless])
    ]
    before = list_sandboxed()
    started = time.perf_counter()
    ended = grade_programs(endless, isolation, Limits(cpu_seconds=1, wall_seconds=3))
    endless_seconds = time.perf_counter() - started
    left = len(list_sandboxed() - before)
    failed = sum(verdict.passed is False for verdict in ended)
    print(f"endless: {failed} of {len(endless)} failed, {left} processes left, {endless_seconds:.0f} s")

    result = {
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "python": sys.version.split()[0],
        "isolation": str(isolation),
        "solutions": {"passed": passed, "of": len(programs), "ms_each": round(1000 * seconds / len(programs), 1)},
        "cheats": {
            "kinds": len(CHEATS),
            "programs": len(cheating),
            "false_passes": false.total(),
            "without_verdict": lacking.total(),
            "seconds": round(cheat_seconds),
        },
        "endless": {"programs": len(endless), "failed": failed, "processes_left": left},
    }
    path = Path(__file__).parent / "results" / "sandbox.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0 if passed == len(programs) and not false and not lacking and not left and failed == len(endless) else 1


if __name__ == "__main__":
    sys.exit(main())
