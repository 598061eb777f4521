"""Print the dependencies of pyproject.toml with the dev extra, one a line, for pip."""

import re
import sys
from pathlib import Path

text = Path(sys.argv[1]).read_text(encoding="utf-8")
for table in (r"^dependencies = \[\n(.*?)^\]", r"^dev = \[\n(.*?)^\]"):
    found = re.search(table, text, re.DOTALL | re.MULTILINE)
    assert found, table
    print("\n".join(re.findall(r'^\s*"(.*)",$', found[1], re.MULTILINE)))
