"""Predictions, scores and calibration of a trained model."""
