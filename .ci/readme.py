"""Runs the shell blocks of a README that are marked to be run.

A block is run if the line before its fence is `<!-- run -->`; each runs in its
own shell, in order, from the root of the project, up to the first failure.
`<!-- run: NEEDLE -->` also requires NEEDLE in the output of the block.
"""

import re
import subprocess
import sys
from pathlib import Path

BLOCK = re.compile(r"<!-- run(?:: (?P<needle>[^>]*?))? -->\n+```(?:sh|bash)\n(?P<code>.*?)```", re.S)


def main(path: str) -> int:
    blocks = list(BLOCK.finditer(Path(path).read_text(encoding="utf-8")))
    if not blocks:
        print(f"{path}: no block is marked <!-- run -->", file=sys.stderr)
        return 1
    for block in blocks:
        code = block["code"].strip()
        print(f"$ {code}", flush=True)
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", code],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=1440,
        )
        print(done.stdout, flush=True)
        if done.returncode != 0:
            print(f"{path}: exit status {done.returncode}", file=sys.stderr)
            return 1
        needle = block["needle"]
        if needle and needle not in done.stdout:
            print(f"{path}: the output has no {needle!r}", file=sys.stderr)
            return 1
    print(f"{len(blocks)} blocks of {path} ran")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
