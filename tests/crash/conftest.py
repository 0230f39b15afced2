"""The same collections as in the end-to-end tests."""

from tests.e2e.conftest import places, served, server_environment

__all__ = ["places", "served", "server_environment"]
