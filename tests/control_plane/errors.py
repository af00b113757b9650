"""What goes wrong here and a person can mend."""


class ControlPlaneError(Exception):
    """Its text says what to do."""
