"""The book, from a run's executed notebooks or from the recorded ones."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from implicitreg.reproduce.environment import kernel_variables
from implicitreg.reproduce.project import CommandError, Project, shown
from implicitreg.reproduce.runs import CLAIMS, Run, claims_json, executed, judge
from implicitreg.reproduce.storage import locked, to_json, writing_to

_CHECKPOINTS = shutil.ignore_patterns(".ipynb_checkpoints", "__pycache__")
_LAST = 15  # lines of the log that are shown when the build fails


def stage(project: Project, run: Run) -> Path:
    """Lay out the sources of the book with a run's notebooks over the recorded ones.

    Parameters
    ----------
    project
        The project.
    run
        The run; the recorded notebooks are left as they are.

    Returns
    -------
    Path
        The folder, made anew.
    """
    folder = project.build / "stage"
    with writing_to(folder):
        if folder.exists() or folder.is_symlink():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        for name in ("_config.yml", "_toc.yml"):
            shutil.copy2(project.root / name, folder)
        for name in ("book", "evidence"):
            if (project.root / name).is_dir():
                shutil.copytree(project.root / name, folder / name, ignore=_CHECKPOINTS)
        if run.folder is not None:
            for name in run.notebooks:
                shutil.copy2(executed(run.folder, name), folder / "book" / f"{name}.ipynb")
            judged = judge(project, run.notebooks, run.scale)
            (folder / CLAIMS).write_text(to_json(claims_json(run.environment, judged)), "utf-8")
    return folder


def _gist(log: str) -> list[str]:
    """Return the last lines of a log, and the complaints before them."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", log).rstrip().splitlines()
    return [line for line in lines[:-_LAST] if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)] + lines[-_LAST:]


def render(project: Project, run: Run) -> Path:
    """Build the book. A warning is an error.

    Parameters
    ----------
    project, run
        What to render.

    Returns
    -------
    Path
        The page to open.

    Raises
    ------
    CommandError
        The build failed (the last lines of its log are printed), or its folder is in use or cannot be written to.
    """
    with locked(project.build):
        source, log, html = stage(project, run), project.build / "render.log", project.build / "html"
        # -P: no file in the working directory may shadow a package.
        command = [sys.executable, "-P", "-c", "from jupyter_book.cli.main import main; main()", "build"]
        command += [os.fspath(source), "--path-output", os.fspath(project.root), "--all", "-n", "-W", "--keep-going"]
        # Pictures and pages of an earlier build would stay.
        shutil.rmtree(html, ignore_errors=True)
        with writing_to(log), open(log, "wb") as file:
            variables = {**os.environ, "PYTHONPATH": kernel_variables(project)["PYTHONPATH"]}
            done = subprocess.run(command, cwd=project.root, env=variables, stdout=file, stderr=subprocess.STDOUT)
        if done.returncode != 0:
            # The last file of a whole site, by which others know that it is one.
            (html / "searchindex.js").unlink(missing_ok=True)
            print("\n".join(_gist(log.read_text("utf-8", errors="replace"))), file=sys.stderr)
            raise CommandError(f"the book was not built; the whole log: {shown(log)}")
    return html / "index.html"
