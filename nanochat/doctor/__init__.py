"""What this machine can do: findings with the command that mends each. Prints nothing; loads torch only when asked."""
