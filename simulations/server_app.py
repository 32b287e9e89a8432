"""0.1's name of ``fedrebasin.simulations.app.server``, which pyproject.toml files of users hold."""

from .app import server_app as app

__all__ = ["app"]
