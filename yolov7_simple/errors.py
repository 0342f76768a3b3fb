"""The one kind of error that is the user's to mend."""


class UserError(ValueError):
    """A mistake in a config, an annotation file or a checkpoint.

    The message names it and says what can be done; the tools print it without a traceback.
    """
