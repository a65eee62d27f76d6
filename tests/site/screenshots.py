"""Pictures of the site for a human to look at: four pages, in both themes, at a desk's and a phone's width."""

import sys
from pathlib import Path

import browsing
from PIL import Image

PAGES = {
    "landing": "book/index.html",
    "verdicts": "book/verdicts.html",
    "chapter": "book/rank/index.html",
    "notebook": "book/rank/flow.html",
}
LOOKS = [(theme, width) for width in (1280, 360) for theme in ("light", "dark")]
HEIGHT = 1600


def main(site: Path, target: Path) -> None:
    """Take the pictures and print their paths."""
    target.mkdir(parents=True, exist_ok=True)
    with browsing.served(site) as home, browsing.chromium() as started:
        for theme, width in LOOKS:
            visitor = browsing.context(started, theme=theme, width=width, height=HEIGHT)
            for name, address in PAGES.items():
                page, _ = browsing.opened(visitor, home + address)
                path = target / f"{name}-{theme}-{width}.png"
                page.screenshot(path=path, full_page=name == "landing", animations="disabled")
                with Image.open(path) as picture:
                    print(f"{path} ({picture.width} x {picture.height})")
                page.close()
            visitor.close()


if __name__ == "__main__":
    build = Path(__file__).parents[2] / "_build"
    site = Path(sys.argv[1]) if len(sys.argv) > 1 else build / "html"
    if not (site / "index.html").is_file():
        raise SystemExit(f"no rendered book in {site}: make book, or implicitreg render")
    try:
        main(site, build / "screenshots")
    except browsing.UsageError as missing:
        raise SystemExit(str(missing)) from None
