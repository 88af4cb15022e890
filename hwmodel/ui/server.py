"""Serves the page until it is stopped."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wrappers import Response

from hwmodel.errors import HwmodelError
from hwmodel.ui.app import make_app
from hwmodel.ui.workbench import Workbench

_CONTENT = "default-src 'self'; script-src 'self' {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:"
"""Browsers load nothing from another host, whatever a library asks for."""


@contextmanager
def bound(host: str, port: int) -> Iterator[socket.socket]:
    """A listening socket; 0 as port takes a free one.

    Raises
    ------
    HwmodelError
        A port in use or out of range, a host that is not this machine's, or no permission.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except (OSError, OverflowError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise HwmodelError(f"{host}:{port}: cannot listen there ({reason}); choose another with --host and --port") from error
        listening.listen()
        yield listening


def serve(bench: Workbench, host: str, port: int, ready: Callable[[str], None]) -> None:
    """Serve the page; ``ready`` is called with its address once a browser can open it.

    Raises
    ------
    HwmodelError
        Where nothing can listen at ``host`` and ``port``.
    """
    with bound(host, port) as listening:
        server = _server(bench, listening)
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}/")
        server.serve_forever()


def _server(bench: Workbench, listening: socket.socket) -> BaseWSGIServer:
    """A threaded server on a socket, silent but for errors."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    app = make_app(bench)
    policy = _CONTENT.format(scripts=" ".join(app.csp_hashes()))

    def guarded(response: Response) -> Response:
        response.headers["Content-Security-Policy"] = policy
        return response

    app.server.after_request(guarded)
    host, port = listening.getsockname()[:2]
    return make_server(host, port, app.server, threaded=True, fd=listening.fileno())
