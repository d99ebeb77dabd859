"""What was learnt of the backends, kept over a restart."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import msgspec

from aiosd.models.estimator import Learnt
from aiosd.models.member import Member
from aiosd.state import learnt as rows
from aiosd.state.database import Database
from aiosd.state.upgrade import LedgerFailed

logger = logging.getLogger(__name__)


class Learning:
    """Made by open_learning."""

    def __init__(self, database: Database, known: Mapping[tuple[str, str], Learnt]) -> None:
        self._database = database
        self._known = known

    def of(self, backend: str, model: str) -> Learnt | None:
        """What an earlier daemon learnt of this model behind this backend."""
        return self._known.get((backend, model))

    async def save(self, members: Sequence[Member]) -> None:
        """A ledger that cannot be written costs no more than what was learnt since."""
        kept = [(m.name, m.backend.model, msgspec.json.encode(m.learnt).decode()) for m in members]
        try:
            await self._database.write(lambda c: rows.put(c, kept))
        except LedgerFailed as exc:
            logger.warning("what was learnt of the models is not kept", extra={"reason": str(exc)})


async def open_learning(database: Database) -> Learning:
    """What is written down; a row in another form than today's is as good as none."""
    known = {}
    for backend, model, text in await database.read(rows.every):
        try:
            known[backend, model] = msgspec.json.decode(text, type=Learnt)
        except msgspec.DecodeError:
            logger.warning("what was learnt of a model cannot be read", extra={"backend": backend})
    return Learning(database, known)
