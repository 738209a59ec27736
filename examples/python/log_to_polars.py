"""From an audit log to a polars frame, and to a picture: failed logins by hour and tenant.

    pip install polars matplotlib
    python examples/python/log_to_polars.py [logins.png]
"""

from __future__ import annotations

import datetime
import random
import sys
import tempfile
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import polars as pl

import dezky

UTC = datetime.timezone.utc
MIDNIGHT = datetime.datetime(2026, 11, 21, tzinfo=UTC)
TENANTS = ("acme", "globex", "initech")


def fill(log: dezky.AuditLog) -> None:
    """A day of logins; somebody tries passwords at globex from 14:00 on."""
    chance = random.Random(7)
    events = []
    for _ in range(6_000):
        at = MIDNIGHT + datetime.timedelta(minutes=min(max(chance.gauss(780, 240), 0), 1439))
        failed = chance.random() < 0.12
        events.append((at, chance.choice(TENANTS), f"u-{chance.randrange(200)}", failed))
    for _ in range(260):
        at = MIDNIGHT + datetime.timedelta(minutes=840 + chance.expovariate(1 / 50))
        events.append((at, "globex", f"u-{chance.randrange(20)}", True))
    log.append(
        dezky.NewEvent(
            "authentik.login_failed" if failed else "authentik.login",
            actor=dezky.Actor.user(user),
            at=at,
            outcome="failure" if failed else "success",
            tenant_slug=tenant,
            source="authentik",
        )
        for at, tenant, user, failed in events
    )


def failures(log: dezky.AuditLog) -> pl.DataFrame:
    """Failed logins by hour and tenant. The events reach polars as Arrow, in bounded batches."""
    frame = pl.DataFrame(log.to_arrow(action="authentik.login", since=MIDNIGHT))
    return (
        frame.filter(pl.col("outcome") == "failure")
        .group_by(pl.col("at").dt.truncate("1h").alias("hour"), pl.col("tenant_slug").cast(pl.String).alias("tenant"))
        .len("failed")
        .sort("hour", "tenant")
    )


def draw(counts: pl.DataFrame, path: Path) -> None:
    figure, axes = plt.subplots(figsize=(9, 4), layout="constrained")
    for number, tenant in enumerate(TENANTS):
        one = counts.filter(pl.col("tenant") == tenant)
        shift = datetime.timedelta(minutes=18 * (number - 1))
        axes.bar([hour + shift for hour in one["hour"]], one["failed"], width=0.012, label=tenant)
    hours = [MIDNIGHT + datetime.timedelta(hours=hour) for hour in range(0, 25, 3)]
    axes.set(xticks=hours, xticklabels=[f"{hour:%H:%M}" for hour in hours])
    axes.set(title="Failed logins by hour, 21 November 2026", xlabel="hour (UTC)", ylabel="failed logins")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, dezky.AuditLog.open(f"sqlite://{folder}/audit.db") as log:
        fill(log)
        counts = failures(log)
        path = Path(sys.argv[1] if len(sys.argv) > 1 else Path(folder, "logins.png"))
        draw(counts, path)
        worst = counts.sort("failed", descending=True).row(0, named=True)
        print(f"{counts['failed'].sum()} failed logins; most at {worst['tenant']}, {worst['failed']} in one hour")
        assert (worst["tenant"], worst["hour"].hour) == ("globex", 14)
        assert path.read_bytes().startswith(b"\x89PNG")


if __name__ == "__main__":
    main()
