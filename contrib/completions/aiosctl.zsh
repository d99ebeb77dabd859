#compdef aiosctl

_aiosctl_completion() {
  eval $(env _TYPER_COMPLETE_ARGS="${words[1,$CURRENT]}" _AIOSCTL_COMPLETE=complete_zsh aiosctl)
}

compdef _aiosctl_completion aiosctl
