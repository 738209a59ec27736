"""The hashes of tamper evidence, against the golden vectors that hold for every implementation."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest

from dezky import Actor, AuditLog, integrity

VECTORS = json.loads((Path(__file__).parents[3] / "vectors" / "leaf.json").read_text())


def in_python(vector: dict[str, Any]) -> dict[str, object]:
    """Returns the vector's event with the names of Python."""
    event = {re.sub("[A-Z]", lambda m: "_" + m[0].lower(), name): v for name, v in vector["event"].items()}
    return {**event, "metadata": vector["metadataCanonical"]}


def test_leaves_and_chain_are_those_of_the_golden_vectors() -> None:
    assert len(VECTORS["vectors"]) >= 20
    prev = integrity.GENESIS
    for vector in VECTORS["vectors"]:
        event, salt = in_python(vector), bytes.fromhex(vector["eventSalt"])
        assert integrity.leaf(event, salt).hex() == vector["leaf"], vector["seq"]
        leaf_hash = integrity.leaf_hash(event, salt)
        assert leaf_hash.hex() == vector["leafHash"]
        assert prev.hex() == vector["prevHash"]
        prev = integrity.chain_hash(prev, leaf_hash)
        assert prev.hex() == vector["hash"]


def test_salts_and_commitments_are_those_of_the_erased_vector() -> None:
    erased = VECTORS["erased"]
    vector = VECTORS["vectors"][erased["seq"]]
    salt = bytes.fromhex(vector["eventSalt"])
    event = in_python(vector)
    for tag, expected in erased["survivingSalts"].items():
        assert integrity.field_salt(salt, integrity.FIELDS[int(tag) - 1]).hex() == expected
    assert erased["commitments"]
    for tag, expected in erased["commitments"].items():
        field = integrity.FIELDS[int(tag) - 1]
        value = str(event[field]).encode()
        assert integrity.commitment(integrity.field_salt(salt, field), field, value).hex() == expected


def test_metadata_of_the_vectors_becomes_canonical_in_a_log() -> None:
    vectors = [vector for vector in VECTORS["vectors"] if is_plain(vector)]
    assert len({vector["metadataRaw"] for vector in vectors}) == 6
    with AuditLog.open("memory:") as log:
        for vector in vectors:
            log.record("a.b", actor=Actor.system(), metadata=json.loads(vector["metadataRaw"]))
        for vector, event in zip(vectors, log.tail(follow=False), strict=True):
            assert event.metadata_json == vector["metadataCanonical"]


def is_plain(vector: dict[str, Any]) -> bool:
    """Whether a dictionary can hold the metadata: no lone surrogate, and no integer beyond 64 bits."""
    raw = json.loads(vector["metadataRaw"])
    try:
        json.dumps(raw, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    numbers = [value for value in raw.values() if isinstance(value, (int, float))]
    return all(math.isfinite(n) if isinstance(n, float) else -(2**63) <= n < 2**64 for n in numbers)


def test_an_event_and_its_mapping_have_one_leaf() -> None:
    with AuditLog.open("memory:") as log:
        log.record("a.b", actor=Actor.user("u", ip="::1"), metadata={"b": 1, "a": 2.0}, tenant_slug="acme")
        (event,) = log.list()
    mapping = {name: getattr(event, name) for name in integrity.FIELDS}
    mapping["metadata"] = event.metadata_json
    assert integrity.leaf(event, bytes(32)) == integrity.leaf(mapping, bytes(32))
    assert integrity.leaf(event, bytes(32)) != integrity.leaf(event, b"\x01" * 32)


def test_wrong_arguments_are_refused() -> None:
    event = in_python(VECTORS["vectors"][0])
    with pytest.raises(ValueError, match="^salt must have 32 bytes, not 31$"):
        integrity.leaf(event, bytes(31))
    with pytest.raises(ValueError, match="^event has no action"):
        integrity.leaf({**event, "action": None}, bytes(32))
    with pytest.raises(TypeError, match="^at must be a datetime or an int, not str$"):
        integrity.leaf({**event, "at": "yesterday"}, bytes(32))
    with pytest.raises(TypeError, match="^actor_id must be a str, not int$"):
        integrity.leaf({**event, "actor_id": 7}, bytes(32))
    with pytest.raises(ValueError, match="^field must be one of id, at"):
        integrity.field_salt(bytes(32), "nonsense")
    with pytest.raises(ValueError, match="^prev_hash must have 32 bytes"):
        integrity.chain_hash(b"", bytes(32))
