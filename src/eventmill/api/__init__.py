"""The HTTP face: OpenWhisk's REST API, event ingress, health, metrics, and our own endpoints."""

from eventmill.api.app import create_app
from eventmill.api.auth import Authenticator
from eventmill.api.services import Services

__all__ = ["Authenticator", "Services", "create_app"]
