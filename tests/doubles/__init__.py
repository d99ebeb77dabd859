"""Servers that the tests talk to over real sockets, in place of ones that need a network or weights."""
