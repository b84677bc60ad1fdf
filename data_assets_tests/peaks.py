"""What a piece of work holds at its peak, told by Linux of a process of its own.

Here: running the code. Not here: what is held, and what it may come to (the tests of that).
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_ASKED = """
import sys
from pathlib import Path

def megabytes(what):
    return int(Path("/proc/self/status").read_text().split(f"{what}:")[1].split()[0]) / 1024

path = Path(sys.argv[1])
BEFORE
before = megabytes("VmRSS")
ASKED
sys.stdout.write(f"{answer} {megabytes('VmHWM') - before:.0f}")
"""


def answer_and_growth(before: str, asked: str, path: Path) -> tuple[int, int]:
    """The whole number ``answer`` that ``asked`` comes to, and by how many MB its peak exceeds what there was before.

    Args:
        before: code that imports and warms up; it and ``asked`` know ``path``.
        asked: code that sets ``answer``.
        path: a file; beside it there is room for others.
    """
    code = _ASKED.replace("BEFORE", before).replace("ASKED", asked)
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, str(path)], cwd=root, capture_output=True, text=True, check=True)
    answer, growth = map(int, done.stdout.split())
    return answer, growth
