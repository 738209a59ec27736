"""The command line, as a process of its own."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

import dezky
from dezky import Actor, AuditLog

UTC = datetime.timezone.utc
T0 = datetime.datetime(2026, 11, 21, 20, 12, 21, 123000, tzinfo=UTC)
FORMULAS = ("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", "＝1")


def dezky_(*arguments: str, store: str | None = None, stdin: str | None = None, **env: str) -> tuple[int, str, str]:
    """Runs the command; returns status, output and errors."""
    environment = {key: value for key, value in os.environ.items() if key != "DEZKY_STORE"}
    if store is not None:
        environment["DEZKY_STORE"] = store
    done = subprocess.run(
        [sys.executable, "-m", "dezky", *arguments],
        capture_output=True,
        env=environment | env,
        timeout=120,
        check=False,
        input=stdin.encode() if stdin is not None else None,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A log of twelve events, one of them odd."""
    url = f"sqlite://{tmp_path}/audit.db"
    with AuditLog.open(url) as log:
        log.append(
            [
                {
                    "action": "file.uploaded" if number % 2 else "tenant.suspended",
                    "actor": Actor.user(f"u-{number}", email=f"u{number}@acme.example"),
                    "at": T0 + datetime.timedelta(hours=number),
                    "outcome": "denied" if number == 3 else "success",
                    "tenant_slug": "acme" if number % 2 else None,
                    "resource_type": "file",
                    "resource_name": f"Übersicht {number}",
                    "metadata": {"n": number},
                }
                for number in range(11)
            ]
        )
        log.append(
            [
                {
                    "action": "odd.one",
                    "actor": Actor.user("\x1b[2J\u202eevil\nline"),
                    "at": T0 - datetime.timedelta(hours=1),
                    "resource_name": "=1+1",
                }
            ]
        )
    return url


def test_list_prints_the_newest_events_that_match(store: str) -> None:
    status, out, error = dezky_("list", store=store)
    assert (status, error) == (0, "")
    lines = out.splitlines()
    assert len(lines) == 12
    assert "2026-11-22 06:12:21.123Z" in lines[0] and "tenant.suspended" in lines[0]
    assert "Übersicht 10" in lines[0]
    # What steers a terminal does not reach it.
    assert "\x1b" not in out and "\u202e" not in out
    assert "·[2J·evil·line" in lines[-1]
    for arguments, count in [
        (["--limit", "3"], 3),
        (["--action", "file."], 5),
        (["--tenant", "acme"], 5),
        (["--tenant", ""], 7),
        (["--outcome", "denied"], 1),
        (["--since", "2026-11-22"], 7),
        (["--since", "2026-11-22T00:12:21.123Z", "--until", "2026-11-22T01:12:21.123+00:00"], 1),
        (["--since", "2026-11-22T01:12:21.123+01:00", "--until", "2026-11-22T02:12:21.123+01:00"], 1),
        (["--actor-email", "U7@acme.example"], 1),
        (["--actor-id", "u-7"], 1),
        (["--search", "ÜBERSICHT 7"], 1),
        (["--resource-type", "file"], 11),
        (["--source", "platform-api"], 12),
        (["--source", "ocis"], 0),
        (["--all"], 12),
    ]:
        status, out, error = dezky_("list", *arguments, store=store)
        assert (status, len(out.splitlines()), error) == (0, count, ""), arguments


def test_list_as_json_is_what_the_server_sends(store: str) -> None:
    status, out, _ = dezky_("list", "--json", "--store", store)
    events = [json.loads(line) for line in out.splitlines()]
    assert (status, len(events)) == (0, 12)
    assert events[0]["actorEmail"] == "u10@acme.example"
    assert events[0]["at"] == "2026-11-22T06:12:21.123Z"
    assert events[-1]["actorId"] == "\x1b[2J\u202eevil\nline"
    assert "\x1b" not in out and "\u202e" not in out
    # In another encoding it stays JSON of the same value.
    status, out, _ = dezky_("list", "--json", store=store, PYTHONIOENCODING="ascii")
    assert [json.loads(line) for line in out.splitlines()] == events


def test_tail_follows_from_a_position_and_ends_with_ctrl_c(store: str) -> None:
    status, out, _ = dezky_("tail", "--from", "10", "--no-follow", "--json", store=store)
    assert [json.loads(line)["seq"] for line in out.splitlines()] == [10, 11]
    status, out, _ = dezky_("tail", "--no-follow", store=store)
    assert (status, out) == (0, "")
    process = subprocess.Popen(
        [sys.executable, "-m", "dezky", "tail", "--json", "--store", store],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    reader = threading.Thread(target=lambda: lines.extend(iter(process.stdout.readline, "")))  # type: ignore[union-attr]
    reader.start()
    with AuditLog.open(store) as log:
        end = time.monotonic() + 60
        # Recorded again until the tail has begun.
        while not lines and time.monotonic() < end:
            log.record("tail.seen", actor=Actor.system())
            time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    reader.join(60)
    assert json.loads(lines[0])["action"] == "tail.seen"
    assert process.stderr is not None
    assert process.stderr.read() == ""


def test_verify_says_whether_the_log_is_intact(store: str, tmp_path: Path) -> None:
    status, out, error = dezky_("verify", store=store)
    assert (status, error) == (0, "")
    assert out.startswith("ok: 12 events, head 11:")
    head = out.split()[-1]
    kept = tmp_path / "head.txt"
    for content in (head, f"{head}\n", out):
        kept.write_text(content)
        assert dezky_("verify", "--head", str(kept), store=store)[0] == 0
    assert dezky_("verify", "--head", head, store=store)[0] == 0
    status, out, _ = dezky_("verify", "--json", store=store)
    answer = json.loads(out)
    assert (status, answer["ok"], answer["verified"]) == (0, True, 12)
    assert f"{answer['head']['seq']}:{answer['head']['hash']}" == head
    # A log that was cut.
    status, out, error = dezky_("verify", "--head", f"40:{head.split(':')[1]}", store=store)
    assert status == 1
    assert error.startswith("dezky: the log differs from what was recorded, from seq ")
    status, out, _ = dezky_("verify", "--json", "--head", f"40:{head.split(':')[1]}", store=store)
    assert (status, json.loads(out)["ok"], json.loads(out)["finding"]["kind"]) == (1, False, "cut")
    for wrong in ("41", "x:y", str(tmp_path), str(tmp_path / "none")):
        status, out, error = dezky_("verify", "--head", wrong, store=store)
        assert (status, out) == (2, ""), wrong
        assert error.count("\n") == 1 and "head" in error
    (tmp_path / "junk").write_bytes(b"\xff\x00junk" * 10_000)
    assert dezky_("verify", "--head", str(tmp_path / "junk"), store=store)[0] == 2


def test_an_altered_log_is_found(store: str) -> None:
    # In another process, because the locks of SQLite belong to the process.
    script = (
        "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]);"
        "names = [r[0] for r in c.execute(\"SELECT name FROM sqlite_master WHERE type = 'trigger'\")];"
        "[c.execute(f'DROP TRIGGER \"{name}\"') for name in names];"
        "c.execute(\"UPDATE dezky_audit_events SET action = 'x.y' WHERE seq = 5\"); c.commit()"
    )
    subprocess.run([sys.executable, "-c", script, store.removeprefix("sqlite://")], check=True)
    status, out, error = dezky_("verify", store=store)
    assert status == 1, (out, error)
    assert "seq 5" in error
    # Also if nobody reads the text, or it can't be written.
    for arguments in (["verify"], ["verify", "--json"]):
        for buffered in ("", "1"):
            assert without_reader(arguments, store, buffered) == 1
            with open("/dev/full", "wb") as full:
                assert without_reader(arguments, store, buffered, full) == 1


def without_reader(arguments: list[str], store: str, unbuffered: str, output: IO[bytes] | None = None) -> int:
    """The status of a command whose output goes nowhere: into a closed pipe, or a full disk."""
    env = os.environ | {"DEZKY_STORE": store, "PYTHONUNBUFFERED": unbuffered}
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "dezky", *arguments],
            stdout=writer if output is None else output,
            stderr=subprocess.PIPE,
            env=env,
            check=False,
        )
    finally:
        os.close(writer)
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr
    return done.returncode


def test_a_status_that_is_an_answer_is_given_without_a_reader(store: str, tmp_path: Path) -> None:
    file = tmp_path / "flags.json"
    file.write_text(FLAGS)
    decide = ["--tenant-id", "t-1", "--flags", str(file)]
    for unbuffered in ("", "1"):
        assert without_reader(["eval", "dark", *decide], "", unbuffered) == 0
        assert without_reader(["eval", "old", *decide], "", unbuffered) == 1
        assert without_reader(["verify"], store, unbuffered) == 0
        with open("/dev/full", "wb") as full:
            # Neither on nor off, neither intact nor altered.
            assert without_reader(["eval", "dark", *decide], "", unbuffered, full) == 2
            assert without_reader(["verify", "--json"], store, unbuffered, full) == 2


FLAGS = json.dumps(
    [
        {"key": "chat_v2", "state": "targeted", "scope": {"plans": ["pro"]}},
        {"key": "dark", "state": "on"},
        {"key": "old", "state": "off"},
    ]
)


def test_eval_decides_by_a_file(tmp_path: Path) -> None:
    file = tmp_path / "flags.json"
    file.write_text(FLAGS)

    def run(*arguments: str) -> tuple[int, str, str]:
        return dezky_("eval", *arguments, "--flags", str(file))

    assert run("dark", "--tenant-id", "t-1")[:2] == (0, "dark: on (on)\n")
    assert run("chat_v2", "--tenant-id", "t-1", "--plan", "pro")[:1] == (0,)
    assert run("chat_v2", "--tenant-id", "t-1", "--plan", "free")[:1] == (1,)
    assert run("none", "--tenant-id", "t-1")[:2] == (1, "none: off (unknown_flag)\n")
    status, out, _ = run("--tenant-id", "t-1", "--plan", "pro", "--json")
    assert (status, json.loads(out)) == (0, {"chat_v2": True, "dark": True, "old": False})
    status, out, _ = run("--tenant-id", "t-1")
    assert out.splitlines() == ["chat_v2  off", "dark     on", "old      off"]
    status, out, _ = run("old", "--tenant-id", "t-1", "--json")
    assert (status, json.loads(out)["value"], json.loads(out)["reason"]) == (1, False, "off")
    file.write_text("{oops")
    assert run("dark", "--tenant-id", "t-1")[0] == 2
    file.unlink()
    status, _, error = run("dark", "--tenant-id", "t-1")
    assert (status, error.count("\n")) == (2, 1)
    assert dezky_("eval", "dark", "--flags", "x", "--store", "memory:")[0] == 2


def test_eval_decides_by_a_store(store: str) -> None:
    status, out, error = dezky_("eval", "none", "--tenant-id", "t-1", store=store)
    assert (status, out, error) == (1, "none: off (unknown_flag)\n", "")


@pytest.mark.parametrize("url", ["postgres://dezky@127.0.0.1:1/x?acquire_timeout_seconds=1", "http://127.0.0.1:1"])
def test_eval_without_an_answer_is_not_off(url: str) -> None:
    status, out, error = dezky_("eval", "dark", "--tenant-id", "t-1", store=url)
    assert (status, out, error.count("\n")) == (2, "", 1), error


def test_export_writes_json_lines(store: str, tmp_path: Path) -> None:
    out = tmp_path / "events.ndjson"
    status, said, error = dezky_("export", str(out), store=store)
    assert (status, said, error) == (0, f"12 events are in {out}\n", "")
    events = [json.loads(line) for line in out.read_text().splitlines()]
    assert [event["seq"] for event in events] == [*range(10, -1, -1), 11]
    assert out.stat().st_mode & 0o777 == 0o600
    status, text, _ = dezky_("export", "-", "--action", "file.", store=store)
    assert (status, len(text.splitlines())) == (0, 5)
    assert sorted(os.listdir(tmp_path)) == sorted({"audit.db", "events.ndjson", *os.listdir(tmp_path)})


def test_export_writes_csv_in_which_no_cell_is_a_formula(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/formulas.db"
    with AuditLog.open(url) as log:
        for formula in FORMULAS:
            log.record("login.failed", actor=Actor.anonymous(), resource_name=formula, metadata={"ü": formula})

    def read(text: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO(text, newline="")))

    out = tmp_path / "events.csv"
    assert dezky_("export", str(out), store=url)[0] == 0
    rows = read(out.read_bytes().decode())
    assert [row["resource_name"] for row in reversed(rows)] == [f"'{formula}" for formula in FORMULAS]
    for row in rows:
        assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in row.values())
    assert json.loads(rows[0]["metadata"]) == {"ü": FORMULAS[-1]}
    assert rows[0]["at"].endswith("Z") and len(rows[0]["hash"]) == 64
    assert rows[0]["tenant_slug"] == ""
    status, text, _ = dezky_("export", "-", "--format", "csv", "--exact", store=url)
    exact = subprocess.run(
        [sys.executable, "-m", "dezky", "export", "-", "--format", "csv", "--exact", "--store", url],
        capture_output=True,
        check=True,
    ).stdout.decode()
    assert [row["resource_name"] for row in reversed(read(exact))] == list(FORMULAS)
    assert dezky_("export", "x.parquet", "--exact", store=url)[0] == 2


def test_exact_csv_has_the_metadata_as_the_log_keeps_it(tmp_path: Path) -> None:
    url = f"sqlite://{tmp_path}/numbers.db"
    with AuditLog.open(url) as log:
        log.record("a.b", actor=Actor.system(), metadata={"n": [1e300, 1.0, 1e-7, 2**60], "t": "\u2028ü"})
        [event] = log.list()
        kept = event.metadata_json
    out = tmp_path / "events.csv"
    assert dezky_("export", str(out), "--exact", store=url)[0] == 0
    [row] = csv.DictReader(io.StringIO(out.read_bytes().decode(), newline=""))
    assert row["metadata"] == kept


def test_export_writes_parquet(store: str, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    out = tmp_path / "events.parquet"
    status, said, error = dezky_("export", str(out), "--limit", "7", store=store)
    assert (status, said, error) == (0, f"7 events are in {out}\n", "")
    assert pq.read_table(out).num_rows == 7
    assert dezky_("export", "-", "--format", "parquet", store=store)[0] == 2


def test_without_pyarrow_export_says_what_to_install(store: str, tmp_path: Path) -> None:
    (tmp_path / "no").mkdir()
    (tmp_path / "no" / "pyarrow.py").write_text("raise ImportError('gone')")
    path = f"{tmp_path / 'no'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    out = tmp_path / "events.parquet"
    status, said, error = dezky_("export", str(out), store=store, PYTHONPATH=path)
    assert (status, said) == (2, "")
    assert error == "dezky: Parquet needs pyarrow: pip install pyarrow\n"
    assert not out.exists()


def test_export_replaces_nothing_unless_told_and_leaves_no_pieces(store: str, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    out = folder / "events.ndjson"
    out.write_text("precious")
    status, _, error = dezky_("export", str(out), store=store)
    assert (status, out.read_text()) == (2, "precious")
    assert "--force" in error
    assert dezky_("export", str(out), "--force", store=store)[0] == 0
    assert len(out.read_text().splitlines()) == 12
    (folder / "folder.csv").mkdir()
    (folder / "link.csv").symlink_to(folder / "target")
    for name in ("folder.csv", "link.csv"):
        for force in ([], ["--force"]):
            assert dezky_("export", str(folder / name), *force, store=store)[0] == 2
    for name in ("no-suffix", "unknown.xlsx"):
        status, _, error = dezky_("export", str(folder / name), store=store)
        assert (status, "--format" in error) == (2, True)
    missing = folder / "none" / "x.csv"
    status, _, error = dezky_("export", str(missing), store=store)
    assert (status, error) == (1, f"dezky: {missing}: No such file or directory\n")
    assert sorted(os.listdir(folder)) == ["events.ndjson", "folder.csv", "link.csv"]


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A log whose export takes a while."""
    url = f"sqlite://{tmp_path_factory.mktemp('large')}/audit.db"
    with AuditLog.open(url) as log:
        for part in range(2):
            log.append(
                [
                    {"action": "a.b", "actor": Actor.system(), "metadata": {"n": part * 10_000 + n}}
                    for n in range(10_000)
                ]
            )
    return url


@pytest.mark.parametrize("name", ["events.csv", "events.ndjson", "events.parquet"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_the_name_and_no_pieces(
    large: str, tmp_path: Path, number: signal.Signals, name: str
) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-m", "dezky", "export", str(folder / name), "--store", large],
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 60
    while not os.listdir(folder) and process.poll() is None and time.monotonic() < end:
        time.sleep(0.005)
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == (130 if number == signal.SIGINT else 143), error
    assert (error, os.listdir(folder)) == ("", [])


def test_a_reader_that_has_seen_enough_is_no_error(store: str) -> None:
    for command in ("list --all", "list --json", "export -", "tail --from 0 --no-follow"):
        done = subprocess.run(
            ["bash", "-c", f"'{sys.executable}' -m dezky {command} --store '{store}' | head -n 1; exit ${{PIPESTATUS[0]}}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), command
        assert len(done.stdout.splitlines()) == 1
    # A pipe that is closed before the first byte.
    process = subprocess.Popen(
        [sys.executable, "-m", "dezky", "list", "--store", store], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (0, b"")


def test_a_full_disk_is_an_error_in_one_line(store: str) -> None:
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "dezky", "list", "--store", store], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"dezky: No space left on device\n"


def test_no_output_at_all_is_fine(store: str) -> None:
    for command in ("list", "verify", "tail --no-follow"):
        done = subprocess.run(
            ["bash", "-c", f"'{sys.executable}' -m dezky {command} --store '{store}' >&- 2>&-"], check=False
        )
        assert done.returncode == 0, command


SECRET = "hunter2-very-secret"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["list", "--store", f"postgres://dezky:{SECRET}@127.0.0.1:1/x?acquire_timeout_seconds=1"], 1),
        (["verify", "--store", f"postgres://dezky:{SECRET}@127.0.0.1:1/x?acquire_timeout_seconds=1"], 2),
        (["list", "--store", f"mysql://dezky:{SECRET}@host/x"], 2),
        (["list", "--store", f"mysql://dezky:pa/{SECRET}@host/x"], 2),
        (["list", f"postgres://dezky:pa/{SECRET}@host/x"], 2),
        (["list", f"postgres://host/x?password={SECRET}&sslmode=require"], 2),
        (["list", "--since", f"postgres://host/x?PASSWORD={SECRET}"], 2),
        (["list", "--store", f"postgres://host/x?password={SECRET}&nonsense=1"], 2),
        (["list", "--store", f"postgres://dezky:{SECRET}@a@b/x"], 2),
        (["list", "--store", f"postgres://dezky:{SECRET}@host/x?nonsense=1"], 2),
        ([f"postgres://dezky:{SECRET}@host/x", "list"], 2),
        (["list", f"postgres://dezky:{SECRET}@host/x"], 2),
        (["list", "--since", f"postgres://dezky:{SECRET}@host/x"], 2),
        (["list", "--limit", f"postgres://dezky:{SECRET}@host/x"], 2),
        (["export", f"postgres://dezky:{SECRET}@host/x"], 2),
        (["list"], 2),
    ],
)
def test_passwords_are_never_printed(arguments: list[str], status: int) -> None:
    done, out, error = dezky_(*arguments, store=None)
    assert SECRET not in out + error
    assert (done, out) == (status, ""), error
    assert "Traceback" not in error


def test_the_variable_is_used_and_never_printed() -> None:
    status, out, error = dezky_("list", store=f"postgres://dezky:{SECRET}@127.0.0.1:1/x?acquire_timeout_seconds=1")
    assert status == 1
    assert SECRET not in out + error
    status, _, error = dezky_("list", store="audit.db")
    assert status == 2 and error.startswith("dezky: DEZKY_STORE must be a URL: sqlite://"), error
    status, _, error = dezky_("list", "--store", "audit.db")
    assert status == 2 and error.startswith("dezky: --store must be a URL: sqlite://"), error
    status, _, error = dezky_("list", store="")
    assert (status, error) == (2, "dezky: which store? Use --store URL or the variable DEZKY_STORE\n")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["list", "--limit", "0"],
        ["list", "--limit", "-1"],
        ["list", "--limit", "9" * 30],
        ["list", "--limit", "٣"],
        ["list", "--since", "yesterday"],
        ["list", "--since", "2026-12-01T10:00"],
        ["list", "--since", ""],
        ["list", "--outcome", "maybe"],
        ["list", "--action", "x" * 10_000],
        ["tail", "--from", "-1"],
        ["list", "--store", "sqlite:///nowhere/at/all.db"],
        ["list", "--store", "memory"],
    ],
)
def test_wrong_use_is_status_2_without_a_traceback(arguments: list[str], store: str) -> None:
    status, out, error = dezky_(*arguments, store=store)
    assert status == 2, error
    assert out == "" and error
    assert "Traceback" not in error


def test_reading_creates_and_changes_nothing(tmp_path: Path) -> None:
    before = os.listdir(tmp_path)
    for command in ("list", "verify", "tail", "export -"):
        assert dezky_(*command.split(), store=f"sqlite://{tmp_path}/none.db")[0] in (1, 2)
    assert os.listdir(tmp_path) == before


def test_help_shows_everything() -> None:
    status, out, _ = dezky_("--help")
    assert status == 0 and "exit status" in out
    assert dezky_("--version")[1] == f"dezky {dezky.__version__}\n"
    for command in ("list", "tail", "verify", "eval", "export"):
        status, out, _ = dezky_(command, "--help")
        assert (status, "--store" in out) == (0, True)


def test_the_script_is_the_same_program() -> None:
    from dezky.__main__ import main

    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0


def test_the_program_may_be_called_from_any_thread(store: str, tmp_path: Path) -> None:
    from dezky.__main__ import main

    statuses: list[int] = []
    out = tmp_path / "events.ndjson"
    thread = threading.Thread(target=lambda: statuses.append(main(["export", str(out), "--store", store])))
    thread.start()
    thread.join()
    assert statuses == [0]
    assert len(out.read_text().splitlines()) == 12


@pytest.mark.parametrize("rich", [True, False])
def test_progress_is_shown_on_a_terminal_only(store: str, tmp_path: Path, rich: bool) -> None:
    path = os.environ.get("PYTHONPATH", "")
    if not rich:
        (tmp_path / "no").mkdir()
        (tmp_path / "no" / "rich.py").write_text("raise ImportError('gone')")
        path = f"{tmp_path / 'no'}{os.pathsep}{path}"
    for out, error in run_on_terminal(
        [sys.executable, "-m", "dezky", "verify", "--store", store], os.environ | {"PYTHONPATH": path, "TERM": "xterm"}
    ):
        assert "ok: 12 events" in out
        assert "Traceback" not in error


def run_on_terminal(command: list[str], env: dict[str, str]) -> Iterator[tuple[str, str]]:
    parent, terminal = pty.openpty()
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=terminal, env=env, check=True, text=True)
        os.close(terminal)
        shown = b""
        try:
            while piece := os.read(parent, 65536):
                shown += piece
        except OSError:
            pass
        yield done.stdout, shown.decode()
    finally:
        os.close(parent)


def test_the_plain_progress_says_how_far_and_how_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    from dezky import _terminal

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    now = iter(range(100, 200, 2))
    shown = Terminal()
    monkeypatch.setattr(sys, "stderr", shown)
    monkeypatch.setattr(time, "monotonic", lambda: float(next(now)))
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with _terminal.progress("events", 100) as report:
        report(10)
        report(60)
    assert shown.getvalue() == "\r\x1b[Kevents: 10 of 100, 5/s\r\x1b[Kevents: 60 of 100, 15/s\r\x1b[K"


def test_list_reads_every_engine(durable_url: str) -> None:
    with AuditLog.open(durable_url) as log:
        log.record("a.b", actor=Actor.system())
    status, out, error = dezky_("list", "--json", store=durable_url)
    assert (status, error) == (0, "")
    assert json.loads(out)["action"] == "a.b"
    assert dezky_("verify", store=durable_url)[0] == 0

