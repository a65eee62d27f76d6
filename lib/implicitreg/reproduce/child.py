"""The first steps of a process that runs a notebook's kernel or a cell of work, run as a script.

It ends when the process that started it ends, or when the leash, a file, is gone. ipykernel watches its parent too, but
only once it is up, and a parent that was killed before then goes unnoticed where orphans are not handed to process 1.
This file stands alone: nothing is imported before the watch is set.
"""

import atexit
import gc
import os
import sys
import threading
import time


def _watch(parent: int, leash: str | None) -> None:
    while os.getppid() == parent and (leash is None or os.path.exists(leash)):
        time.sleep(0.25)
    os._exit(1)


def _note_memory(path: str) -> None:
    """Write the most memory that this process ever held, in MB, where the system tells it."""
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform == "darwin" else 1)
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(str(round(kilobytes / 1000)))
    except OSError:
        pass


if __name__ == "__main__":
    started_by, leash = int(os.environ["JPY_PARENT_PID"]), os.environ.get("IMPLICITREG_LEASH")
    threading.Thread(target=_watch, args=(started_by, leash), daemon=True).start()

    # Last of all: taking libraries down piece by piece is a second of work for nobody.
    atexit.register(os._exit, 0)
    if memory := os.environ.get("IMPLICITREG_MEMORY"):
        atexit.register(_note_memory, memory)

    # Imports and figures make many objects and little garbage; looking for it as often as usual costs a tenth of both.
    gc.set_threshold(100_000, 50, 50)

    if sys.argv[1:] == ["cell"]:
        from implicitreg.reproduce.sweeps import run_child

        run_child()
    else:
        from ipykernel import kernelapp

        kernelapp.launch_new_instance()
