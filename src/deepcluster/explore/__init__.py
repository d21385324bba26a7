"""Browse and edit a run's clusters: a catalog of clusters, a journal of edits, a local web server."""
