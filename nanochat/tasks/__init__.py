"""Tasks: conversations to learn from and to be graded on."""
