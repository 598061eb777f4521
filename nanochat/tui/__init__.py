"""Chat in a terminal: a full-screen app, and a plain loop for pipes and simple terminals."""
