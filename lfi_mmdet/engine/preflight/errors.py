"""What the checks raise."""


class InputError(ValueError):
    """Something the user gave cannot be used; the message names it and the choices."""
