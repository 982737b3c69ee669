"""`python -m services.encoder`: the encoder worker as a process of its own."""

import sys

from services.common.cores import share_cores


def main() -> int:
    share_cores()  # before torch is imported
    from services.common.lifecycle import run
    from services.common.logging import configure_logging
    from services.common.settings import EncoderSettings, load_settings
    from services.encoder.server import serve

    settings = load_settings(EncoderSettings)
    configure_logging(settings)
    return run(lambda drain: serve(settings, drain))


if __name__ == "__main__":
    sys.exit(main())
