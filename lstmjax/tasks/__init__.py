"""Data to run and to learn on. Nothing is downloaded: it is made here, or ships inside a package."""

from lstmjax.tasks.sources import english_text, one_hot_text, seattle_temperatures

__all__ = ["english_text", "one_hot_text", "seattle_temperatures"]
