"""The embedded server: published models -> answers, with TensorFlow Serving's API and flags."""

__version__ = "0.1.0"
