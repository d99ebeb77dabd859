"""What aiosd and aiosctl say to each other: the one place the contract is written, a file a noun.

A method is the type of its params; its `method` is its name on the wire, its `returns` the type of its
result. One is added here, then in `methods/`, then as a verb of aiosctl.
"""
