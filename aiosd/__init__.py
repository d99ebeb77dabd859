"""aiosd: an AI operating system for one Linux user. Importing this package costs nothing."""
