"""The backend without weights: it quotes, calls tools whose arguments stand in the request, and otherwise abstains.

From the top: `backend` answers a request; `literal` and `sayings` find a tool call in it; `quoting` and `summary` choose
what to quote, by the `evidence` that `passages`, cut into `units`, hold for a `question`, compared by their `words`.
"""
