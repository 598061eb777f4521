"""The command `nanochat`, and `python -m nanochat` for where it is not on the path."""

import sys

INTERRUPTED = 130


def main() -> int:
    """Run the command line. A Ctrl-C while it still loads ends it without a traceback."""
    try:
        from nanochat.cli.main import main as run
    except KeyboardInterrupt:
        return INTERRUPTED
    return run()


if __name__ == "__main__":
    sys.exit(main())
