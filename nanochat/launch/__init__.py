"""Processes of a stage, from outside: started, watched, stopped, and the rank that failed first named."""
