"""Runs, workdirs and caches to which something is done, and the verdicts on what comes of it."""
