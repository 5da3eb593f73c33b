"""The error for PTX that the emulator does not accept."""


class Unsupported(ValueError):
    """Malformed PTX, or an instruction that the emulator does not know; the message names it and its line."""
