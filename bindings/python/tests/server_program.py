"""The program `dezky-server` for tests: flags edited by its command line, and a server."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BINARY = Path(__file__).parents[3] / "target" / "debug" / "dezky-server"
TOKEN = "operator-token-0123456789"


def environment(**more: str) -> dict[str, str]:
    """An environment without settings of the caller's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DEZKY_")}
    return {**kept, "DEZKY_LOG": "info", **more}


def cli(folder: Path, url: str, *arguments: str) -> str:
    """Runs a command on a store."""
    assert BINARY.exists(), f"{BINARY} is missing: cargo build --workspace --all-features --bin dezky-server"
    done = subprocess.run(
        [BINARY, *arguments, "--store", url], cwd=folder, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def set_flag(folder: Path, url: str, key: str, *options: str) -> None:
    """Changes a flag, as an operator would; with `--create` it is made."""
    cli(folder, url, "flags", "set", key, *options)


class Server:
    """A running server."""

    def __init__(self, folder: Path, store: str, listen: str = "127.0.0.1:0") -> None:
        self._errors = (folder / "stderr").open("w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [BINARY, "serve", "--store", store],
            cwd=folder,
            env=environment(DEZKY_LISTEN=listen, DEZKY_OPERATOR_TOKEN=TOKEN),
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], 60)[0]:
            self._process.kill()
            raise AssertionError("the server says nothing: " + (folder / "stderr").read_text(encoding="utf-8"))
        line = self._process.stdout.readline().strip()
        self.url = line.removeprefix("dezky-server listens on ")
        assert self.url.startswith("http://"), line + (folder / "stderr").read_text(encoding="utf-8")
        self.address = self.url.removeprefix("http://")

    def stop(self) -> None:
        """Stops the server as an operator would."""
        self._process.terminate()
        self._process.communicate(timeout=60)
        self._errors.close()


@contextmanager
def serving(folder: Path, store: str) -> Iterator[Server]:
    """A server until the end of the block."""
    server = Server(folder, store)
    try:
        yield server
    finally:
        server.stop()
