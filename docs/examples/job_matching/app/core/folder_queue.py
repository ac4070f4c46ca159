"""A queue and a result store for Celery that are files in a folder: nothing to install or start.

Good for one machine and a few tasks a second. Kombu's filesystem transport and Celery's file
backend write into a file that a reader may be taking at that moment, so tasks and results get
lost, about one in a hundred on a busy machine. Here a file gets its name once it is whole.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from pathlib import Path
from typing import Any

from celery.backends.filesystem import FilesystemBackend
from kombu.transport import filesystem


class Channel(filesystem.Channel):
    """Kombu's, with messages that appear whole."""

    def _put(self, queue: str, payload: dict[str, Any], **_: object) -> None:
        name = f"{time.monotonic_ns() // 1_000_000}_{uuid.uuid4()}.{queue}.msg"
        _write_whole(Path(self.data_folder_out, name), json.dumps(payload).encode())


class Transport(filesystem.Transport):
    """Kombu's, over such channels."""

    Channel = Channel


class Backend(FilesystemBackend):
    """Celery's, with results that appear whole."""

    def set(self, key: bytes | str, value: bytes | str) -> None:
        """Keep a result."""
        whole = value.encode() if isinstance(value, str) else value
        _write_whole(Path(os.fsdecode(self._filename(key))), whole)


def settings(folder: Path) -> dict[str, Any]:
    """Return what Celery has to be configured with to use *folder*, which is made."""
    queue, control, results = folder / "queue", folder / "control", folder / "results"
    for path in (queue, control, results):
        path.mkdir(parents=True, exist_ok=True)
    return {
        "broker_url": "filesystem://localhost",
        "broker_transport": f"{__name__}:Transport",
        "broker_transport_options": {
            "data_folder_in": str(queue),
            "data_folder_out": str(queue),
            "control_folder": str(control),
            "polling_interval": 0.01,  # seconds; its default of 1 s is the wait for every task
        },
        "result_backend": f"{__name__}:Backend+{results.as_uri()}",
    }


def _write_whole(path: Path, content: bytes) -> None:
    # Ends in no queue's name, so that nobody takes it meanwhile.
    unfinished = path.with_name(f"{path.name}.{uuid.uuid4().hex}.unfinished")
    unfinished.write_bytes(content)
    unfinished.replace(path)
