"""The command line: parse, validate, launch, show; everything heavy is imported inside the functions."""
