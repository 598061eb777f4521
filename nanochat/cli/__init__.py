"""The command line: parse, validate, launch, show."""
