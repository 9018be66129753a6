"""What goes wrong, in one line each: what is wrong, and what to do."""


class AggregatorError(Exception):
    """aggregator failed."""

    exit_code = 1


class UsageError(AggregatorError):
    """The command, a setting or an argument is wrong; nothing was done."""

    exit_code = 2


class Stopped(AggregatorError):  # noqa: N818 -- it is no error
    """Told to stop: what was committed stays good, and a next run goes on from there."""

    exit_code = 143  # as a shell says of SIGTERM

    def __init__(self) -> None:
        super().__init__("stopped by a signal; what was committed stays good")


def never() -> None:
    """Do not stop: the default of ``check`` parameters, which raise Stopped when it is time."""
