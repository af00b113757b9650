"""The embedded server: published models -> answers, with TensorFlow Serving's API and flags."""
