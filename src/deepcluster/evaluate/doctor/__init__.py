"""What a run folder says about its training: `collect` measures, checks judge one thing each, `diagnose` does both."""
