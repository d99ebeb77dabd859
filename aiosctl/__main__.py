"""python -m aiosctl, where no script is installed."""

from aiosctl.quick import main

main()
