"""`python -m nanochat`, for where the command is not on the path."""

from nanochat.cli.main import main

if __name__ == "__main__":
    main()
