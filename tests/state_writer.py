"""A program that writes to the ledger until it is killed, and prints the number of each write that was
acknowledged. Arguments: the file, and the first number to write."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import anyio

from aiosd.records import Memory
from aiosd.state import memories
from aiosd.state.database import Connection, Database, open_database

WRITERS = 8


def numbered(number: int) -> Memory:
    return Memory(
        memory_id=str(UUID(int=number)),
        user_id="ada",
        session_id=str(UUID(int=0)),
        content=f"memory {number} " + "x" * (number % 5000),
        speaker=None,
        kind="note",
        source="user",
        trust=1.0,
        privacy="any",
        created_at=datetime(2026, 1, 1, tzinfo=UTC),
        metadata={"number": number},
    )


async def write(database: Database, number: int) -> None:
    while True:
        memory = numbered(number)

        def add(c: Connection, memory: Memory = memory) -> None:
            memories.add(c, [memory])

        await database.write(add)
        os.write(1, b"%d\n" % number)
        number += WRITERS


async def main(path: Path, first: int) -> None:
    async with open_database(path) as database, anyio.create_task_group() as tasks:
        for i in range(WRITERS):
            tasks.start_soon(write, database, first + i)


if __name__ == "__main__":
    anyio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
