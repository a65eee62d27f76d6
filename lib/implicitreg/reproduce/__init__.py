"""Runs, judges, records and renders the notebooks of the book; ``implicitreg`` on the command line.

Each module imports only from those above it:

``project``      where the book is, and what a user's words mean there
``storage``      files that are either whole or absent, and a lock
``fingerprint``  everything that a notebook's outputs depend on
``environment``  what a notebook runs in, and what a run says of it
``work``         jobs for any executor: processes here, or the workers of a Dask scheduler
``sweeps``       the cells of work of a notebook's sweeps, stored and never computed twice
``execution``    one notebook, through papermill, in a process of its own
``runs``         a folder of executed notebooks, and its verdicts
``progress``     what a user sees meanwhile
``planning``     what a run has to do, checked before anything is run
``runner``       reuse, execute in parallel, store, judge
``verifying``    what moves when notebooks are executed again
``recording``    the outputs that are committed
``rendering``    the book, from a run or from the recorded notebooks
``report``       verdicts as tables
``cli``          the commands

The modules import papermill, nbformat and `implicitreg.claims` only where they are used: a mistyped command is
answered at once.
"""
