"""Opening ports: one that is taken is told with its setting and its number."""

import socket

from services.common.settings import ConfigurationError


class PortTaken(ConfigurationError):
    """A port can't be opened."""

    def __init__(self, setting: str, host: str, port: int, reason: str) -> None:
        super().__init__(f"{setting}: port {port} on {host} can't be opened: {reason}")


def open_socket(host: str, port: int, setting: str) -> socket.socket:
    """A bound socket; port 0 takes any free one. `setting` is the variable to name when it can't be had.

    Raises: PortTaken.
    """
    opened: socket.socket | None = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        opened = socket.socket(family, kind, protocol)
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
    except OSError as error:
        if opened is not None:
            opened.close()
        raise PortTaken(setting, host, port, (error.strerror or str(error)).lower()) from None
    return opened
