"""The daemon, whose event loop stands still for good at SIGUSR1: what a blocking call by mistake would do."""

import signal
import time

from aiosd.__main__ import main

signal.signal(signal.SIGUSR1, lambda *_: time.sleep(1_000))
main()
