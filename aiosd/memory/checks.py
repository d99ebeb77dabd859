"""What a memory may be: what is given is checked here before it is kept. Rules, without I/O."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from uuid import uuid4

import msgspec

from aiosd.errors import InvalidParams
from aiosd.protocol.memory import Exported, NewMemory
from aiosd.records import Memory, Privacy, Session

MAX_CONTENT = 1024 * 1024
"""Bytes of UTF-8 in one memory. Longer texts are files."""

MAX_METADATA = 64 * 1024
"""Bytes of JSON."""

MAX_NAME = 256
"""Characters of kind, source and speaker."""

MAX_ORIGINS = 1_000
"""Of one memory."""

FOREIGN = re.compile(r"(tool|web|mcp|file|https?|ftp|email|rss)(:|$)", re.IGNORECASE)
"""Sources whose words are not the user's."""

FOREIGN_TRUST = 0.5
"""Trust in what came from the web or a tool, or what a model chose to remember; what the user said is 1."""

_UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_ID = re.compile(_UUID, re.ASCII)
_ORIGIN = re.compile(rf"(memory|task):{_UUID}", re.ASCII)


def trust_of(source: str) -> float:
    """How far what this source said is trusted: 1 is as the user's own words."""
    return FOREIGN_TRUST if FOREIGN.match(source) else 1.0


def strictest(*privacies: Privacy) -> Privacy:
    return "local" if "local" in privacies else "any"


def given(session: Session, new: NewMemory, trust: float, now: datetime, place: int) -> Memory:
    """The memory as it is kept. Raises InvalidParams, which names its place among those given."""
    memory = Memory(
        memory_id=str(uuid4()),
        user_id=session.user_id,
        session_id=session.session_id,
        content=new.content,
        speaker=new.speaker,
        kind=new.kind,
        source=new.source,
        trust=min(trust, trust_of(new.source)),
        privacy=session.privacy,
        created_at=now if new.created_at is None else in_utc(new.created_at),
        metadata=new.metadata,
    )
    _check(memory, place)
    return memory


def imported(memory: Exported, place: int) -> Exported:
    """The memory as it is kept. Raises InvalidParams, which names its place among those given."""
    for field, id in (("memory_id", memory.memory_id), ("session_id", memory.session_id)):
        if _ID.fullmatch(id) is None:
            raise InvalidParams(f"memories[{place}].{field}: expected a UUID, got {id!a:.80}")
    if not 0 < len(memory.user_id) <= MAX_NAME:
        raise InvalidParams(
            f"memories[{place}].user_id: expected 1 to {MAX_NAME} characters, got {len(memory.user_id)}"
        )
    if not 0 <= memory.trust <= 1:
        raise InvalidParams(f"memories[{place}].trust: expected 0 to 1, got {memory.trust}")
    if len(memory.derived_from) > MAX_ORIGINS or not all(map(_ORIGIN.fullmatch, memory.derived_from)):
        raise InvalidParams(
            f"memories[{place}].derived_from: expected at most {MAX_ORIGINS} of `memory:ID` and `task:ID`"
        )
    _check(memory, place)
    return msgspec.structs.replace(
        memory,
        created_at=in_utc(memory.created_at).astimezone(UTC),
        derived_from=tuple(sorted(set(memory.derived_from))),
    )


def memory_of(exported: Exported) -> Memory:
    """Without what it was made from."""
    fields = msgspec.structs.asdict(exported)
    del fields["derived_from"]
    return Memory(**fields)


def in_utc(time: datetime) -> datetime:
    """A time without a zone is UTC's."""
    return time.replace(tzinfo=UTC) if time.tzinfo is None else time


def _check(memory: Memory, place: int) -> None:
    if not memory.content.strip():
        raise InvalidParams(f"memories[{place}].content: expected a text, got none")
    try:
        if (size := len(memory.content.encode())) > MAX_CONTENT:
            raise InvalidParams(f"memories[{place}].content: {size} bytes; at most {MAX_CONTENT}")
        if (size := len(msgspec.json.encode(memory.metadata))) > MAX_METADATA:
            raise InvalidParams(f"memories[{place}].metadata: {size} bytes of JSON; at most {MAX_METADATA}")
    except UnicodeEncodeError as exc:
        raise InvalidParams(f"memories[{place}]: not Unicode: {exc}") from None
    for field, name in (("kind", memory.kind), ("source", memory.source), ("speaker", memory.speaker)):
        if name is not None and not 0 < len(name) <= MAX_NAME:
            raise InvalidParams(
                f"memories[{place}].{field}: expected 1 to {MAX_NAME} characters, got {len(name)}"
            )
    try:
        in_utc(memory.created_at).astimezone(UTC)
    except OverflowError:
        raise InvalidParams(
            f"memories[{place}].created_at: {memory.created_at.isoformat()} lies outside the years 1 to 9999 in UTC"
        ) from None
