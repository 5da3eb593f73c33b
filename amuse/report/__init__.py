"""The conversation report: one self-contained HTML file."""

from amuse.evaluation.quality import Quality
from amuse.report.builder import render, write_report
from amuse.report.content import Content, KeyFrame, Media, Region, Turn

__all__ = ["Content", "KeyFrame", "Media", "Quality", "Region", "Turn", "render", "write_report"]
