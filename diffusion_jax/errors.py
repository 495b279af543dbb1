"""The one exception that is the user's to mend."""


class UserError(ValueError):
    """Something the user can put right: one sentence with what was expected, what came and what to do.

    The commands print it without a traceback and exit with status 2.
    """
