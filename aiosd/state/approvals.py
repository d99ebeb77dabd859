"""The rows of what users answered once and for all. Functions of a Connection, for Database.read and .write."""

from __future__ import annotations

from datetime import datetime

from aiosd.errors import NotFound
from aiosd.records import AlwaysRule
from aiosd.state.columns import known, micros, moment
from aiosd.state.database import Connection


def keep(c: Connection, rule_id: str, user_id: str, rule: str, created_at: datetime) -> None:
    """The last word on something holds: the opposite answer to the same question goes."""
    opposite = rule[1:] if rule.startswith("!") else f"!{rule}"
    c.execute("DELETE FROM always WHERE user_id = ? AND rule = ?", (user_id, opposite))
    c.execute(
        "INSERT INTO always (rule_id, user_id, rule, created_at) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING",
        (rule_id, user_id, rule, micros(created_at)),
    )


def rules(c: Connection, user_id: str | None = None) -> tuple[AlwaysRule, ...]:
    """Of all users, or of one; the oldest first."""
    rows = c.execute(
        "SELECT rule_id, user_id, rule, created_at FROM always WHERE ? IS NULL OR user_id = ?"
        " ORDER BY created_at, rule",
        (user_id, user_id),
    )
    return tuple(
        AlwaysRule(rule_id=rule_id, user_id=user, rule=rule, created_at=moment(at))
        for rule_id, user, rule, at in rows.fetchall()
    )


def revoke(c: Connection, rule_id: str) -> AlwaysRule:
    """The rule that was. Raises NotFound."""
    found = [rule for rule in rules(c) if rule.rule_id == known("rule", rule_id)]
    if not found:
        raise NotFound(f"no rule {rule_id}")
    c.execute("DELETE FROM always WHERE rule_id = ?", (rule_id,))
    return found[0]
