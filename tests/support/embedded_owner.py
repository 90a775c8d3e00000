"""Open the embedded index in a directory, say whether this process owns it, and live until standard input ends."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from ghostcacher_connector.core.redis.embedded import EmbeddedRedis


def main() -> None:
    server = EmbeddedRedis(Path(sys.argv[1]))
    # Started by a thread that ends: the server must outlive it.
    starter = threading.Thread(target=server.ensure)
    starter.start()
    starter.join()
    print("owner" if server.owned else "guest", flush=True)
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    main()
