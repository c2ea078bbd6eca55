"""Start a storage node whose devices are those of a rack: `python -m tests.site.device_node RACK --config FILE`.

All of the node is as it is; only what opens device files is another one.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from storage_node import service
from storage_node.__main__ import main
from tests.site.rack import Rack


def run() -> None:
    """Put the models in the place of the kernel, and be the node."""
    rack = Rack(Path(sys.argv.pop(1)))
    node: Any = service
    node.DeviceFile = rack.open
    node.SgDevice = lambda _path: rack.changer()
    main()


if __name__ == "__main__":
    run()
