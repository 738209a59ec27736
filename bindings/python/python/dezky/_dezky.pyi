"""The native part of dezky."""

__version__: str
"""The version of the package."""
