"""Encoders of text, sound and pictures: the tokens that the model reads."""
