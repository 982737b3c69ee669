"""Is the service in this container well? Exit 0 when its HTTP port answers 200 to a path: /livez unless one is named.

Which service it is stands in the command of process 1. The standard library alone, because it runs every few seconds.
"""

import os
import re
import sys
import urllib.error
import urllib.request
from pathlib import Path

PORTS = {
    "gateway": ("JANUS_GATEWAY_HTTP_PORT", 8000),
    "encoder": ("JANUS_ENCODER_METRICS_PORT", 9101),
    "decoder": ("JANUS_DECODER_METRICS_PORT", 9102),
}
TIMEOUT_SECONDS = 4


def service_of(command: str) -> str:
    """The service that a command line such as `python -m services.gateway` starts."""
    found = re.search(r"services\.(gateway|encoder|decoder)\b", command)
    if found is None:
        sys.exit(f"process 1 is none of {', '.join(PORTS)}: {command}")
    return found[1]


def main() -> None:
    command = Path("/proc/1/cmdline").read_text().replace("\0", " ")
    variable, default = PORTS[service_of(command)]
    path = sys.argv[1] if len(sys.argv) > 1 else "/livez"
    url = f"http://127.0.0.1:{os.environ.get(variable) or default}{path}"
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as answer:
            print(answer.read(1000).decode())
    except urllib.error.HTTPError as error:
        sys.exit(f"{url} answers {error.code}: {error.read(1000).decode()}")
    except OSError as error:
        sys.exit(f"{url} does not answer: {error}")


if __name__ == "__main__":
    main()
