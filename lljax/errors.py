"""What the command line tells its user, as exceptions."""


class UserError(ValueError):
    """The user's input is wrong; the command line prints it and exits with 2."""


class CannotRead(UserError):
    """A file is there, and the disk or its permissions do not let it be read."""


class RunFailed(Exception):
    """The computation cannot go on; the command line prints it and exits with 1."""


class StorageFailed(RunFailed):
    """A file cannot be written or read, which keeps all that follows from being done too."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, NumPy or JAX has asked for more memory than there is."""
    of_jax = type(error).__name__ in ("JaxRuntimeError", "XlaRuntimeError")
    return isinstance(error, MemoryError) or (of_jax and "RESOURCE_EXHAUSTED" in str(error))
