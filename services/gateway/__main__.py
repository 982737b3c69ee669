"""`python -m services.gateway`: the gateway as a process of its own."""

import sys

from services.common.lifecycle import run
from services.common.logging import configure_logging
from services.common.settings import GatewaySettings, load_settings
from services.gateway.server import serve


def main() -> int:
    settings = load_settings(GatewaySettings)
    configure_logging(settings)
    return run(lambda drain: serve(settings, drain))


if __name__ == "__main__":
    sys.exit(main())
