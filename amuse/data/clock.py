"""Times of utterances as people read them."""


def clock(seconds: float, decimals: int = 0) -> str:
    """Seconds as minutes and seconds, `2:05`, or with an hour, `1:02:05`; `decimals` digits of the seconds are kept."""
    total = round(seconds, decimals)
    minutes, rest = divmod(total, 60)
    hours, minutes = divmod(int(minutes), 60)
    width = 2 if decimals == 0 else decimals + 3
    padded = f"{rest:0{width}.{decimals}f}"
    return f"{hours}:{minutes:02d}:{padded}" if hours else f"{minutes}:{padded}"
