"""An adapter that hangs while it loads."""

import time
from pathlib import Path
from typing import Any

from tests.standins.families import ChatMethod


class Hangs(ChatMethod):
    """Waits as long as the file `pretrained` is there."""

    def __init__(self, pretrained: str, **settings: Any) -> None:
        while Path(pretrained).exists():
            time.sleep(0.1)
        super().__init__(**settings)
