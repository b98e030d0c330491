"""What ends a command: one line that says what is wrong and what helps. `cli.main` prints it."""


class UsageError(ValueError):
    """A value that cannot work: the field, the value and the remedy. Exit code 2, before anything has started."""


class RunError(RuntimeError):
    """Something on the way that no flag puts right: a damaged checkpoint, numbers that are not finite. Exit code 1."""
