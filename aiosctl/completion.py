"""aiosctl completion: the lines that make a shell complete verbs, options, ids and names."""

from __future__ import annotations

import os
from typing import Annotated, Literal

import typer

from aiosctl import render

VARIABLE = "_AIOSCTL_COMPLETE"
"""Set by those lines when they ask us."""

Shell = Literal["bash", "zsh", "fish"]


def completion(shell: Annotated[Shell, typer.Argument(help="Which shell.")]) -> None:
    """Print what makes a shell complete verbs, options, ids and names.

    \b
    aiosctl completion bash > ~/.local/share/bash-completion/completions/aiosctl
    aiosctl completion zsh > ~/.zfunc/_aiosctl
    aiosctl completion fish > ~/.config/fish/completions/aiosctl.fish
    """
    from typer._completion_shared import get_completion_script

    render.out(get_completion_script(prog_name="aiosctl", complete_var=VARIABLE, shell=shell))


def prepare() -> None:
    """Where a shell asks: lets Typer answer in the form that its lines expect."""
    if VARIABLE in os.environ:
        from typer._completion_classes import completion_init

        completion_init()
