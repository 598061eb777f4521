"""Start a module as a process: `python /path/of/nanochat/start.py MODULE ARGUMENTS`. Run by its path, never imported.

`python -m` and `python -c` look for modules in the folder where the command was typed: a `torch.py` or a `nanochat/`
there would be run in place of ours. PYTHONSAFEPATH stops that, from Python 3.11 on only. A file that is run by its path
looks in its own folder, which is taken away here before anything is imported.
"""

import sys

if __name__ == "__main__" and not (sys.flags.isolated or getattr(sys.flags, "safe_path", False)):
    del sys.path[0]

import runpy
from pathlib import Path

INTERRUPTED = 130


def main() -> None:
    """Run the module that the first argument names; a Ctrl-C while it still loads ends it without a traceback."""
    root = str(Path(__file__).absolute().parents[1])
    if root not in sys.path:  # a checkout that is not installed
        sys.path.insert(0, root)
    del sys.argv[0]
    try:
        runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
