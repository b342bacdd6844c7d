"""The errors a user may see; each knows the exit code it ends the program with (DESIGN: exit codes)."""


class CompressorError(Exception):
    """Base of every error that is shown as one message without a traceback."""

    exit_code = 1


class RunError(CompressorError):
    """Something on this machine stopped the run: disk full, output folder in use (exit 1)."""


class UserError(CompressorError):
    """A bad recipe, data or argument, or a request this machine cannot meet (exit 2)."""

    exit_code = 2


class GateError(CompressorError):
    """A gate or a verification failed (exit 3)."""

    exit_code = 3
