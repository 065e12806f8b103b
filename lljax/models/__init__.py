"""Flax models with per-example losses."""
