"""The first steps of a notebook's kernel, run as a script: it ends when the process that started it ends.

ipykernel watches its parent too, but only once it is up, and a parent that was killed before then goes unnoticed
where orphans are not handed to process 1. This file stands alone: nothing is imported before the watch is set.
"""

import atexit
import gc
import os
import threading
import time


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.25)
    os._exit(1)


if __name__ == "__main__":
    started_by = int(os.environ["JPY_PARENT_PID"])
    threading.Thread(target=_end_with, args=(started_by,), daemon=True).start()

    # Last of all: taking libraries down piece by piece is a second of work for nobody.
    atexit.register(os._exit, 0)

    # Imports and figures make many objects and little garbage; looking for it as often as usual costs a tenth of both.
    gc.set_threshold(100_000, 50, 50)

    from ipykernel import kernelapp

    kernelapp.launch_new_instance()
