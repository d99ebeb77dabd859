"""python -m aiosctl, where no script is installed."""

from aiosctl.main import main

main()
