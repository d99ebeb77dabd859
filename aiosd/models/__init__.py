"""Models: which backend answers a request, and how each is spoken to."""
