"""Parallel split learning you can read, run and trust."""

from psl.profile import Profile

__all__ = ["Profile"]
