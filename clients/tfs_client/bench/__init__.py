"""The load generator: pacing -> sending -> recording -> reporting."""
