"""What goes wrong, in one line each: what is wrong, and what to do."""


class AggregatorError(Exception):
    """aggregator failed."""

    exit_code = 1


class UsageError(AggregatorError):
    """The command, a setting or an argument is wrong; nothing was done."""

    exit_code = 2
