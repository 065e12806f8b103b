"""What a run leaves in its workdir: `schema` says its form, `files` writes it, `results` reads it.

The engine writes these files and the report reads them; neither knows the other. So this package
imports no JAX and no matplotlib, and nothing of the engine or the report.
"""
