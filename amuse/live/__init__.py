"""While people speak: their words, who they are, and their emotions, shortly after each utterance."""

from amuse.live.listener import Live, LiveOptions, Lost, Spoken

__all__ = ["Live", "LiveOptions", "Lost", "Spoken"]
