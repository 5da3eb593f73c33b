"""Errors as one line for people."""


def in_words(error: BaseException) -> str:
    """The message of an error; one of the operating system without its number, such as `a.csv: permission denied`."""
    reason = getattr(error, "reason", None)  # urllib wraps the system's error
    if isinstance(reason, OSError):
        error = reason
    if not isinstance(error, OSError) or not error.strerror:
        return str(error)
    message = error.strerror[:1].lower() + error.strerror[1:]
    return message if error.filename is None else f"{error.filename}: {message}"
