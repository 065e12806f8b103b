"""The experiment around the core: configs, runs, checkpoints, reports and the command line."""
