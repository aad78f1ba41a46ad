"""One view of every architecture, and where teachers and students come from."""
