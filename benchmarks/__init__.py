"""Benchmarks of lljax against its peers; each module is a command."""

import os

# Several processes share one GPU.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
# On a GPU a float32 product would else be one of TF32 to JAX, but not to PyTorch.
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
