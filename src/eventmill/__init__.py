"""Eventmill: event-driven workflows for research data."""

from eventmill.sdk.event import Event

__all__ = ["Event"]
