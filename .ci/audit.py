"""A report on everything that is installed: known vulnerabilities and licences.

``python .ci/audit.py FOLDER`` writes ``vulnerabilities.json``, ``licences.json`` and a summary, ``audit.md``. It never
fails for what it finds, nor where the service that knows of vulnerabilities cannot be reached: it says so.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

TIMEOUT = 600  # seconds
# Licences under which code of ours could not be passed on as it is, were it to contain theirs.
STRICT = ("GPL", "AGPL", "SSPL", "UNKNOWN")


def answer(*command: str) -> Any:
    """Return what a command prints as JSON; ``None`` where it prints none."""
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command], capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
        return json.loads(done.stdout)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def vulnerabilities(found: Any) -> list[str]:
    """Return what pip-audit says, in lines of Markdown."""
    if found is None:
        return ["The service that knows of vulnerabilities was not to be reached: nothing was looked up."]
    packages = found["dependencies"]
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    lines = [f"{len(packages) - len(skipped)} packages looked up, {len(skipped)} unknown to the service."]
    for package in packages:
        for one in package.get("vulns", ()):
            fixed = ", ".join(one.get("fix_versions", ())) or "no version yet"
            lines.append(f"- {package['name']} {package['version']}: {one['id']}, mended in {fixed}")
    if len(skipped) == len(packages):
        return [*lines, "Nothing is known of any of them."]
    return [*lines, "None of those looked up has a known vulnerability."] if len(lines) == 1 else lines


def licences(found: Any) -> list[str]:
    """Return what pip-licenses says, in lines of Markdown."""
    if found is None:
        return ["The licences could not be listed."]
    counts = Counter(package["License"] for package in found)
    lines = [f"{len(found)} packages."]
    lines += [f"- {licence}: {count}" for licence, count in counts.most_common()]
    strict = [
        f"{package['Name']} ({package['License']})"
        for package in found
        if any(word in package["License"].upper().replace("LGPL", "") for word in STRICT)
    ]
    return [*lines, "", f"To be looked at: {', '.join(strict) or 'none'}."]


def main(folder: Path) -> None:
    """Write the report."""
    folder.mkdir(parents=True, exist_ok=True)
    known = answer("pip_audit", "--local", "--format", "json", "--progress-spinner", "off")
    licensed = answer("piplicenses", "--format", "json")
    for name, content in (("vulnerabilities", known), ("licences", licensed)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    lines = ["# Known vulnerabilities", "", *vulnerabilities(known), "", "# Licences", "", *licences(licensed)]
    (folder / "audit.md").write_text("\n".join(lines) + "\n", "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
