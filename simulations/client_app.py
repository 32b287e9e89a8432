"""0.1's name of ``fedrebasin.simulations.app.client``, which pyproject.toml files of users hold."""

from .app import client_app as app

__all__ = ["app"]
