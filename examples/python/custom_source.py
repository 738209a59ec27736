"""A source of your own: the doors of a building write JSON lines into a file.

A source answers one question: which events come after this cursor? A pump asks it, and commits each
batch together with the new cursor. So wherever the process dies, nothing is lost or stored twice.

    python examples/python/custom_source.py
"""

from __future__ import annotations

import datetime
import json
import tempfile
from pathlib import Path

import dezky
from dezky.ingest import Batch, Pump, Quarantined, Source

# Three visitors, and a line that was damaged.
LINES = b"""\
{"id": 1, "at": "2026-09-01T08:00:00+00:00", "door": "main", "badge": "ana"}
{"id": 2, "at": "2026-09-01T08:02:10+00:00", "door": "lab", "badge": "ben", "refused": true}
{"id": 3, "at": "2026-09-01T08:0
{"id": 4, "at": "2026-09-01T08:05:00+00:00", "door": "main", "badge": "ana"}
"""


class Doors(Source):
    """The lines of a file that grows. The cursor is the position of the first unread byte."""

    name = "doors"
    size = 1_000

    def __init__(self, path: Path) -> None:
        self.path = path

    def pull(self, cursor: str | None) -> Batch:
        start = int(cursor or 0)
        with self.path.open("rb") as file:
            file.seek(start)
            # A last line without its end is still being written.
            lines = [line for line in file.readlines(1 << 20) if line.endswith(b"\n")][: self.size]
        events, odd = [], []
        for line in lines:
            try:
                events.append(self.event(line))
            except (ValueError, KeyError, TypeError) as problem:
                # A bad line neither stops the others nor goes unnoticed.
                odd.append(Quarantined("unreadable", raw=line, detail=type(problem).__name__))
        end = start + sum(map(len, lines))
        more = self.path.stat().st_size > end and bool(lines)
        return Batch(events, str(end), more=more, quarantine=odd)

    def event(self, line: bytes) -> dezky.NewEvent:
        entry = json.loads(line)
        return dezky.NewEvent(
            "door.opened",
            actor=dezky.Actor.user(entry["badge"]),
            at=datetime.datetime.fromisoformat(entry["at"]),
            outcome="denied" if entry.get("refused") else "success",
            resource_type="door",
            resource_id=entry["door"],
            # The source's own id: an event that is read again is stored only once.
            external_id=str(entry["id"]),
            metadata=entry,
        )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "doors.jsonl")
        path.write_bytes(LINES)
        with dezky.AuditLog.open(f"sqlite://{folder}/audit.db") as log:
            with Pump(log, Doors(path)) as pump:
                tick = pump.tick()
                print(f"first tick:  {tick.stored} stored, {tick.quarantined} quarantined")
                assert (tick.stored, tick.quarantined) == (3, 1)

                # Nothing new: the cursor is in the store.
                assert pump.tick().stored == 0

                with path.open("ab") as file:
                    file.write(LINES.splitlines(keepends=True)[0].replace(b'"id": 1', b'"id": 5'))
                tick = pump.tick()
                print(f"second tick: {tick.stored} stored")
                assert tick.stored == 1

            # As after a restart: another pump goes on where the last one ended.
            # `pump.run()` keeps ticking until Ctrl-C.
            with Pump(log, Doors(path)) as pump:
                assert pump.tick().stored == 0

            for event in log.list(action="door."):
                print(f"{event.at:%H:%M:%S}  {event.actor_id}  {event.resource_id:<5} {event.outcome}")
            [refused] = log.list(outcome="denied")
            assert refused.actor_id == "ben"
            [notice] = log.list(action="ingest.quarantined")
            assert notice.resource_id == "doors"
            assert log.verify()


if __name__ == "__main__":
    main()
