"""The report: a pure function of a run directory."""
