"""State: the SQLite ledger of sessions, turns, tasks, events and memories."""
