"""Which processes of the sandbox there are on this machine, whoever started them."""

import subprocess

MARK = "nanochat.tools.sandbox.child import main"


def list_sandboxed() -> set[str]:
    """Their numbers and command lines; bubblewrap's own around them included."""
    shown = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return {line for line in shown.splitlines() if MARK in line}
