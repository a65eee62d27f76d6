"""A Dask cluster on SLURM: one job a worker, one core a worker.

Run it on the login node, in the environment of the book, and leave it running:

    python slurm.py 32

It prints the address for `implicitreg reproduce --scale paper --dask ADDRESS`.
"""

import sys

from dask_jobqueue import SLURMCluster


def cluster() -> SLURMCluster:
    """Return a cluster without workers; queue, account and sizes are yours."""
    return SLURMCluster(
        queue="normal",
        account="your-account",
        cores=1,
        processes=1,
        memory="4GB",
        walltime="12:00:00",
        # One thread in every process, and where the data are.
        job_script_prologue=[
            "export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PYTHONHASHSEED=0",
            "export IMPLICITREG_DATA=$HOME/data",
        ],
        # For `--device cuda`, a GPU in each job:
        # job_extra_directives=["--gres=gpu:1"],
    )


if __name__ == "__main__":
    running = cluster()
    running.scale(jobs=int(sys.argv[1]))
    print(running.scheduler_address, flush=True)
    input("Enter ends the cluster. ")
