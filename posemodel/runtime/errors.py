"""The one exception that means: the user asked for something that cannot be done."""


class UserError(ValueError):
    """A mistake of the user; the message is one line that says what is wrong and what to do.

    Commands turn it into `error: <message>` and exit code 2 (`main.run_main`). Anything else that
    escapes, a plain `ValueError` too, is a fault of this program and keeps its traceback.
    """
