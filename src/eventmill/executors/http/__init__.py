"""Functions that are HTTP services."""

from eventmill.executors.http.address import METHODS, check_url
from eventmill.executors.http.exchange import MODE, MODES
from eventmill.executors.http.executor import HttpFunctionsExecutor

__all__ = ["METHODS", "MODE", "MODES", "HttpFunctionsExecutor", "check_url"]
