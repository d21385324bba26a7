"""Wander through a run's clusters in a browser, and mend them: a read model, a journal of edits, a local server."""
