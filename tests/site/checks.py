"""What is judged of the site: one function a property. Each returns its complaints; none means that all is well."""

import base64
import csv
import io
import json
import math
import posixpath
import re
import unicodedata
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urljoin, urlsplit

import nbformat
import numpy as np
import yaml
from axe_playwright_python.base import AXE_SCRIPT
from bs4 import BeautifulSoup
from PIL import Image

MOST_OF_SITE = 30_000_000  # bytes
MOST_OF_PAGE = 1_500_000  # bytes of a page's HTML and own pictures
LEAST_WORDS = 100
LEAST_CONTRAST = 3.0  # of graphical objects (WCAG 2.2, 1.4.11)
WIDTHS = (360, 768, 1280)
# axe's rules that depend on the theme, and on the width; the others are judged once.
COLOUR_RULES = ("color-contrast", "link-in-text-block")
WIDTH_RULES = ("scrollable-region-focusable",)


# ---------------------------------------------------------------------------------------------------------------------
# The folder: pages, links, downloads, size


def contents(toc: Path) -> list[str]:
    """Return the pages of a ``_toc.yml`` in order, as addresses within the site."""

    def files(entry: Mapping[str, Any]) -> Iterable[str]:
        if "file" in entry or "root" in entry:
            yield f"{entry.get('file', entry.get('root'))}.html"
        for key in ("parts", "chapters", "sections"):
            for inner in entry.get(key, ()):
                yield from files(inner)

    return list(files(yaml.safe_load(toc.read_text("utf-8"))))


def _once(read: Callable[[str], Any]) -> Callable[[Path], Any]:
    """Return what reads a file once for each of its versions, under whatever name."""
    kept: dict[tuple[int, int, int], Any] = {}

    def reader(path: Path) -> Any:
        state = path.stat()
        version = (state.st_ino, state.st_mtime_ns, state.st_size)
        if version not in kept:
            kept[version] = read(path.read_text("utf-8"))
        return kept[version]

    return reader


soup = _once(lambda text: BeautifulSoup(text, "html.parser"))


def pages(site: Path, wanted: Sequence[str]) -> list[str]:
    """Complain of pages of the contents that are missing, have no heading, say nothing, or do not lead to the next."""
    found = []
    for name, following in zip(wanted, [*wanted[1:], None], strict=True):
        if not (site / name).is_file():
            found.append(f"{name}: no such page")
            continue
        text = (site / name).read_text("utf-8")
        article = re.search(r"<article.*</article>", text, re.DOTALL)
        body = re.sub(r"<(script|style)\b.*?</\1>", " ", article[0], flags=re.DOTALL) if article else ""
        heading = re.search(r"<h1\b[^>]*>(.*?)</h1>", body, re.DOTALL)
        if not heading or not re.search(r"\w", re.sub(r"<[^>]*>", "", heading[1])):
            found.append(f"{name}: no heading")
        words = len(re.findall(r"\w+", re.sub(r"<[^>]*>", " ", body)))
        if words < LEAST_WORDS:
            found.append(f"{name}: {words} words")
        link = re.search(r'<link rel="next"[^>]* href="([^"]*)"', text)
        leads = posixpath.normpath(posixpath.join(posixpath.dirname(name), link[1])) if link else None
        if leads != following:
            found.append(f"{name}: next is {leads}, not {following}")
    return found


class _Addresses(HTMLParser):
    """The addresses that a page names, and the places in it that can be named."""

    def __init__(self, text: str):
        super().__init__()
        self.links: list[str] = []  # where a reader may go
        self.loads: list[str] = []  # what the browser fetches
        self.anchors: set[str] = set()
        self.filters: set[tuple[str, str]] = set()
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {key: value or "" for key, value in attributes}
        self.anchors |= {given[key] for key in ("id", "name") if given.get(key)}
        if tag == "tr":
            self.filters |= {(key[5:], value) for key, value in given.items() if key.startswith("data-")}
        if tag in ("a", "area") and "href" in given:
            self.links.append(given["href"])
        elif tag == "form" and given.get("action"):
            self.links.append(given["action"])
        elif tag == "link" and given.get("rel") not in ("next", "prev", "index", "search", "license", "canonical"):
            self.loads.append(given.get("href", ""))
        elif tag == "link":
            self.links.append(given.get("href", ""))
        else:
            self.loads += [given[key] for key in ("src", "data", "poster") if given.get(key) and tag != "input"]
            self.loads += [one.split()[0] for one in given.get("srcset", "").split(",") if one.split()]
            if tag == "meta" and given.get("http-equiv", "").lower() == "refresh":
                self.links.append(given["content"].partition("url=")[2])

    handle_startendtag = handle_starttag


addresses = _once(_Addresses)


def html(site: Path) -> list[Path]:
    """Return the pages of a site; what lies in ``_static`` are the theme's templates."""
    return [path for path in sorted(site.rglob("*.html")) if "_static" not in path.relative_to(site).parts]


def _outward(address: str) -> bool:
    """Whether an address names another host, or something that is no file at all."""
    return bool(re.match(r"([a-z][a-z0-9+.-]*:|//)", address, re.IGNORECASE))


def foreign(site: Path) -> list[str]:
    """Complain of pages and styles that name another host to load from, whatever the browser makes of it."""
    found = []
    for path in html(site):
        named = [one for one in addresses(path).loads if _outward(one) and not one.startswith("data:")]
        found += [f"{path.relative_to(site)}: loads {one}" for one in named]
    for path in sorted(site.rglob("*.css")):
        text = re.sub(r"/\*.*?\*/", "", path.read_text("utf-8"), flags=re.DOTALL)
        named = re.findall(r"""(?:url\(|@import)\s*["']?((?:https?:)?//[^"')]+)""", text)
        found += [f"{path.relative_to(site)}: loads {one}" for one in named]
    return found


def links(site: Path, names: Iterable[str] | None = None) -> list[str]:
    """Complain of addresses within the site that lead to no file, or to no place in it, from a disk too."""
    found = []
    for path in html(site) if names is None else [site / name for name in names]:
        here = path.relative_to(site).as_posix()
        for address in dict.fromkeys([*addresses(path).links, *addresses(path).loads]):
            if _outward(address):
                if address.lower().startswith("file:"):
                    found.append(f"{here}: {address} is on one machine only")
                continue
            found += [f"{here}: {address}: {what}" for what in _dead(site, path, address)]
    return found


def _dead(site: Path, path: Path, address: str) -> list[str]:
    parts = urlsplit(address)
    target = path
    if parts.path:
        target = Path(posixpath.normpath(path.parent.as_posix() + "/" + unquote(parts.path)))
        if parts.path.startswith("/") or not target.is_relative_to(site):
            return ["outside the site"]
        if not target.is_file():
            return ["no such file"]
    anchor = unquote(parts.fragment).partition(":~:")[0]
    if not anchor or target.suffix != ".html":
        return []
    there = addresses(target)
    if anchor.startswith("?"):
        return [f"no row with {pair}" for pair in parse_qsl(anchor[1:]) if pair not in there.filters]
    return [] if anchor in there.anchors else ["no such place on that page"]


def downloads(site: Path, name: str) -> list[str]:
    """Complain unless a notebook's page offers the executed notebook and its figures' numbers, and all can be read."""
    page, found = soup(site / name), []

    def behind(link: Any) -> Path:
        return Path(posixpath.normpath((site / name).parent.as_posix() + "/" + unquote(str(link["href"]))))

    offered = page.select("a.download-notebook[href]")
    if not offered:
        found.append(f"{name}: no link to the executed notebook")
    for link in offered:
        found += [f"{name}: {link['href']}: {what}" for what in _notebook(behind(link))]
    for figure in page.select(".cell_output figure[id]"):
        data = figure.select("a.figure-data[href]")
        if not data:
            found.append(f"{name}: figure {figure['id']} without its numbers")
        for link in data:
            found += [f"{name}: {link['href']}: {what}" for what in _table(behind(link))]
    for link in page.select('a[href$=".pdf"]'):
        if not _outward(str(link["href"])):
            found += [f"{name}: {link['href']}: {what}" for what in _pdf_file(behind(link))]
    return found


def _notebook(path: Path) -> list[str]:
    if not path.is_file():
        return ["no such file"]
    try:
        notebook = nbformat.read(path, as_version=4)
        nbformat.validate(notebook)
    except (ValueError, nbformat.ValidationError) as error:
        return [f"no notebook: {str(error).splitlines()[0]}"]
    cells = [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    if not cells or any(cell.execution_count is None for cell in cells):
        return ["not executed"]
    return [] if any(cell.outputs for cell in cells) else ["no outputs"]


def _table(path: Path) -> list[str]:
    if not path.is_file():
        return ["no such file"]
    try:
        rows = list(csv.DictReader(io.StringIO(path.read_text("utf-8")), strict=True))
    except (ValueError, csv.Error) as error:
        return [f"no table: {error}"]
    if not rows:
        return ["no data"]
    found, drawn = [], False
    for number, row in enumerate(rows, start=2):
        if None in row or None in row.values():
            found.append(f"line {number}: not as many fields as columns")
            continue
        values = []
        for column in ("x", "y", "x_to", "y_to"):
            text = row.get(column) or ""
            try:
                value = float(text or "nan")
            except ValueError:
                value = math.inf
            if text and not math.isfinite(value):
                found.append(f"line {number}: {column} is {text}")
            values.append(math.isfinite(value))
        drawn |= values[0] and values[1]
    if not drawn:
        found.append("no line with numbers in x and y")
    return found[:3]


def _pdf_file(path: Path) -> list[str]:
    if not path.is_file():
        return ["no such file"]
    return [] if path.read_bytes()[:5] == b"%PDF-" else ["no PDF"]


def size(site: Path, wanted: Sequence[str]) -> list[str]:
    """Complain where the site, or a page with its own pictures, is larger than its limit."""
    found = []
    whole = sum(path.stat().st_size for path in site.rglob("*") if path.is_file())
    if whole > MOST_OF_SITE:
        found.append(f"the site has {whole / 1e6:.2f} MB, of at most {MOST_OF_SITE / 1e6:g}")
    for name in wanted:
        path = site / name
        loads = {posixpath.normpath(posixpath.join(posixpath.dirname(name), one)) for one in addresses(path).loads}
        own = [site / one for one in loads if one.startswith("_images/") and (site / one).is_file()]
        total = path.stat().st_size + sum(one.stat().st_size for one in own)
        if total > MOST_OF_PAGE:
            found.append(f"{name} has {total / 1e6:.2f} MB with its pictures, of at most {MOST_OF_PAGE / 1e6:g}")
    return found


def launch(site: Path, names: Sequence[str], repository: str, tracked: Collection[str]) -> list[str]:
    """Complain of buttons that start or edit a page elsewhere: of missing ones, and of files that are not there."""
    found = []
    for name in names:
        seen = set()
        for address in addresses(site / name).links:
            file = _launched(address, repository)
            if file is None:
                continue
            kind, path = file
            seen.add(kind)
            if path not in tracked:
                found.append(f"{name}: {kind}: {path} is not in the repository")
        wanted = {"edit"} | ({"Binder", "Colab"} if f"{name.removesuffix('.html')}.ipynb" in tracked else set())
        found += [f"{name}: no button for {kind}" for kind in sorted(wanted - seen)]
    return found


def _launched(address: str, repository: str) -> tuple[str, str] | None:
    """Return what a button does and the file that it names, where it is such a button."""
    parts = urlsplit(address)
    path = unquote(parts.path)
    for kind, pattern in {
        "edit": rf"/{repository}/edit/[^/]+/(.+)",
        "source": rf"/{repository}/blob/[^/]+/(.+)",
        "Colab": rf"/github/{repository}/blob/[^/]+/(.+)",
    }.items():
        matched = re.fullmatch(pattern, path)
        if matched:
            return kind, posixpath.normpath(matched[1])
    if parts.hostname == "mybinder.org" and f"/gh/{repository}/" in path:
        named = dict(parse_qsl(parts.query)).get("urlpath", "")
        return "Binder", re.sub(r"^(lab/)?(tree|notebooks)/", "", named)
    return None


# ---------------------------------------------------------------------------------------------------------------------
# A page in the browser


def outside(addresses: Iterable[str], home: str) -> list[str]:
    """Complain of requests that leave the site, whose address is ``home``."""
    within = (home, "data:", "blob:", "about:")
    return [f"asks for {one}" for one in dict.fromkeys(addresses) if not one.startswith(within)]


_UNTYPESET = r"""() => {
  const found = [], cut = (text) => text.trim().replace(/\s+/g, " ").slice(0, 60);
  for (const math of document.querySelectorAll(".math")) {
    if (!math.querySelector("mjx-container")) found.push(`not typeset: ${cut(math.textContent)}`);
  }
  for (const bad of document.querySelectorAll("[data-mjx-error]")) found.push(`${bad.dataset.mjxError}`);
  for (const bad of document.querySelectorAll("mjx-merror, [data-mml-node=merror]")) {
    if (!bad.closest("[data-mjx-error]")) found.push("error in a formula");
  }
  // An unknown command is set in red, as it was written.
  for (const word of document.querySelectorAll("mjx-assistive-mml mtext")) {
    if (/^\\[a-zA-Z]/.test(word.textContent)) found.push(`unknown: ${cut(word.textContent)}`);
  }
  const raw = /\\[([]|\\[a-zA-Z]{2,}|\$[^$\n]*[\\^_][^$\n]*\$/;
  const root = document.querySelector("article") ?? document.documentElement;
  const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const text = walker.currentNode, into = text.parentElement;
    if (raw.test(text.data) && !into.closest("pre, code, script, style, mjx-container, .math")) {
      found.push(`raw TeX: ${cut(text.data.slice(Math.max(0, text.data.search(raw) - 10)))}`);
    }
  }
  for (const node of root.querySelectorAll("[alt], [title], [aria-label]")) {
    for (const name of ["alt", "title", "aria-label"]) {
      const text = node.getAttribute(name) ?? "";
      if (raw.test(text) && !node.closest("mjx-container")) found.push(`raw TeX in ${name}: ${cut(text)}`);
    }
  }
  return [...new Set(found)];
}"""


def typeset(page: Any) -> list[str]:
    """Complain of mathematics that is left as it was written, or is an error."""
    return list(page.evaluate(_UNTYPESET))


_PICTURES = r"""() => {
  const found = [];
  for (const image of document.images) {
    const name = image.getAttribute("src")?.slice(-60) ?? "a picture without address";
    if (!image.complete || !image.naturalWidth) found.push(`not loaded: ${name}`);
    const alt = image.getAttribute("alt")?.trim();
    // Beside a text that says the same, a logo has none.
    const needless = image.closest("a")?.textContent.trim() && !image.closest("article");
    if (!alt && !(alt === "" && needless)) found.push(`no alternative text: ${name}`);
    else if (alt && /\.(png|svg|jpe?g|webp)$|^[0-9a-f]{16,}/.test(alt)) found.push(`the file's name as text: ${name}`);
  }
  return found;
}"""


def images(page: Any) -> list[str]:
    """Complain of pictures that are not there, or do not say what they show to those who do not see it."""
    return list(page.evaluate(_PICTURES))


_TOO_WIDE = """() => {
  const room = window.innerWidth, whole = document.scrollingElement.scrollWidth;
  if (whole <= room) return [];
  const contained = (node) => {
    for (let at = node.parentElement; at && at !== document.body; at = at.parentElement) {
      if (getComputedStyle(at).overflowX !== "visible") return true;
    }
    return false;
  };
  const wide = [...document.body.querySelectorAll("*")]
    .filter((node) => node.getBoundingClientRect().right > room + 1 && !contained(node))
    .map((node) => node.tagName.toLowerCase() + [...node.classList].map((name) => "." + name).join(""));
  return [`${whole} px wide in a window of ${room} px: ${wide.slice(0, 3).join(", ")}`];
}"""


def scroll(page: Any, widths: Iterable[int] = WIDTHS) -> list[str]:
    """Complain of windows that the page does not fit into; leave it in the last one."""
    found = []
    for width in widths:
        page.set_viewport_size({"width": width, "height": 900})
        found += page.evaluate(_TOO_WIDE)
    return found


# The theme lets keys reach what scrolls when the window and the page have not changed for 300 ms. The time is the
# page's own, and begins with a change of ours: a busy machine may tell the page of its new width any time later.
_QUIET = """() => new Promise((resolve) => {
  let timer = 0;
  const wait = () => { clearTimeout(timer); timer = setTimeout(resolve, 400); };
  window.addEventListener("resize", wait);
  new MutationObserver(wait).observe(document.body, { subtree: true, childList: true });
  window.dispatchEvent(new Event("resize"));
})"""

# axe's time grows with the square of what is on a page. It is spared what it cannot tell apart: of the code's coloured
# words one of each kind stays, and of the formulas the first ones.
_SPARE = """() => {
  const seen = new Set(), more = [];
  for (const word of document.querySelectorAll("pre span, dt.sig span, code span")) {
    if (word.firstElementChild || word.id) continue;
    const kind = word.className + "<" + word.closest("pre, dt, code").className;
    if (seen.has(kind)) more.push(word); else seen.add(kind);
  }
  for (const word of more) word.replaceWith(word.textContent);
  [...document.querySelectorAll("mjx-container")].slice(20).forEach((one) => one.replaceChildren());
}"""

# For colours one text of each kind stays: its element, its classes and style, and those of all that it lies in.
_ONE_OF_A_KIND = """() => {
  const named = (node) => [node.tagName, node.className, node.getAttribute("style"),
    node.tagName === "TR" ? node.sectionRowIndex % 2 : ""].join(".");
  document.querySelectorAll("mjx-container").forEach((one) => one.remove());
  for (let pass = 0; pass < 6; pass++) {
    const seen = new Set(), more = [];
    for (const node of document.body.querySelectorAll("*")) {
      if (node.firstElementChild || !node.textContent.trim() || node.closest("svg, script, style")) continue;
      const chain = [];
      for (let at = node; at !== document.body; at = at.parentElement) chain.push(named(at));
      const kind = chain.join("<");
      if (seen.has(kind)) more.push(node); else seen.add(kind);
    }
    for (const node of more) node.remove();
    if (!more.length) break;
  }
}"""


def axe(page: Any, rules: Sequence[str] = ()) -> list[str]:
    """Complain of what axe-core finds serious or critical, by these rules or by all but those on colours."""
    if "scrollable-region-focusable" in rules:
        page.wait_for_function("width => window.innerWidth === width", arg=page.viewport_size["width"])
        page.evaluate(_QUIET)
    page.evaluate(_SPARE)
    every = {"rules": {rule: {"enabled": False} for rule in COLOUR_RULES}}
    return _violations(page, {"runOnly": {"type": "rule", "values": list(rules)}} if rules else every)


def colours(page: Any) -> list[str]:
    """Complain of texts and links that axe-core finds too faint; leave one text of each kind on the page."""
    page.evaluate(_ONE_OF_A_KIND)
    return _violations(page, {"runOnly": {"type": "rule", "values": list(COLOUR_RULES)}})


def _violations(page: Any, options: Mapping[str, Any]) -> list[str]:
    page.evaluate(f"() => {{ if (!window.axe) {{ {AXE_SCRIPT} }} }}")
    given = {"preload": False, "resultTypes": ["violations"], **options}
    found = []
    for violation in page.evaluate("options => axe.run(document, options).then((result) => result.violations)", given):
        if violation["impact"] in ("serious", "critical"):
            places = violation["nodes"]
            for place in places[:3]:
                why = re.sub(r"\s+", " ", place["failureSummary"]).partition(": ")[2]
                found.append(f"{violation['id']} ({violation['impact']}, {len(places)}): {place['target'][-1]}: {why}")
    return found


_FIGURES = """async () => {
  const found = [];
  for (const image of document.querySelectorAll("article figure img, article img.dark-light")) {
    if (!image.naturalWidth) continue;
    const colour = (node) => getComputedStyle(node).backgroundColor;
    let at = image;
    while (at && /, 0\\)$|transparent/.test(colour(at))) at = at.parentElement;
    let filter = getComputedStyle(image).filter;
    for (let up = image; up; up = up.parentElement) {
      const style = getComputedStyle(up);
      if (up !== image && style.filter !== "none") filter = `${style.filter} around it`;
      if (style.opacity !== "1") filter = `an opacity of ${style.opacity}`;
    }
    const bytes = new Uint8Array(await (await fetch(image.src)).arrayBuffer());
    const text = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
    const shown = [image.src.split("/").pop(), at ? colour(at) : "rgb(255, 255, 255)", filter, btoa(text)];
    found.push(shown);
  }
  return found;
}"""


def figures(page: Any) -> list[str]:
    """Complain of figures that do not stand out from the ground that they are on, as the page has it now."""
    found = []
    for name, ground, effect, picture in page.evaluate(_FIGURES):
        brightness = re.fullmatch(r"none|brightness\(([\d.]+)\)", effect)
        if not brightness:
            found.append(f"figure {name}: shown through {effect}")
            continue
        on = np.array([float(part) for part in re.findall(r"[\d.]+", ground)[:3]])
        with Image.open(io.BytesIO(base64.b64decode(picture))) as image:
            pixels = np.asarray(image.convert("RGBA")).reshape(-1, 4)
        found += [f"figure {name} on {ground}: {what}" for what in _faint(pixels, on, float(brightness[1] or 1))]
    return found


def _luminance(colours: np.ndarray) -> np.ndarray:
    """Return the relative luminance of sRGB colours from 0 to 255 (WCAG 2.2)."""
    part = colours / 255
    linear = np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)
    return linear @ np.array([0.2126, 0.7152, 0.0722])


def _faint(pixels: np.ndarray, ground: np.ndarray, brightness: float) -> list[str]:
    # Bands are meant to be faint, and edges of lines are mixed with nothing: neither is opaque.
    drawn = pixels[pixels[:, 3] >= 230]
    if len(drawn) < 0.002 * len(pixels):
        return ["nothing is drawn"]
    packed, counts = np.unique(np.ascontiguousarray(drawn).view(np.uint32), return_counts=True)
    colours = packed.view(np.uint8).reshape(-1, 4)
    cover = colours[:, 3:] / 255
    light = _luminance(np.minimum(colours[:, :3] * brightness, 255) * cover + ground * (1 - cover))
    under = _luminance(ground[None])[0]
    contrast = (np.maximum(light, under) + 0.05) / (np.minimum(light, under) + 0.05)
    share = counts / counts.sum()
    faint = contrast < LEAST_CONTRAST
    found = []
    if share[faint].sum() > 0.05:
        found.append(f"{share[faint].sum():.0%} of what is drawn has a contrast below {LEAST_CONTRAST:g}")
    for place in np.flatnonzero(faint & (share > 0.01)):
        red, green, blue = colours[place, :3]
        found.append(f"#{red:02x}{green:02x}{blue:02x} ({share[place]:.0%}) has a contrast of {contrast[place]:.2f}")
    return found


_STATE = """(root) => {
  const slider = root.querySelector("input[type=range]");
  return {
    value: Number(slider.value), low: Number(slider.min), high: Number(slider.max),
    focused: document.activeElement === slider,
    told: root.querySelector("output").textContent, spoken: slider.getAttribute("aria-valuetext"),
    numbers: [...root.querySelectorAll("li b")].map((one) => one.textContent),
    places: [...root.querySelectorAll("circle, .ir-at")].map(
      (one) => ["cx", "cy", "transform"].map((name) => one.getAttribute(name)).join(" ")),
  };
}"""


def interactive(page: Any) -> list[str]:
    """Complain of figures with a slider whose read-out, numbers or markers do not follow the keys."""
    found = []
    for figure in page.locator(".ir-explore").all():
        slider = figure.locator("input[type=range]")
        name = figure.get_attribute("id")
        if slider.count() != 1 or not slider.is_visible() or slider.evaluate("one => one.tabIndex < 0 || one.disabled"):
            found.append(f"{name}: no slider that keys can reach")
            continue
        slider.focus()
        states = []
        for key in ("Home", "ArrowRight", "PageUp", "End"):
            page.keyboard.press(key)
            states.append(figure.evaluate(_STATE))
        first, second, third, last = states
        wrong = {
            "keys do not reach it": not all(state["focused"] for state in states),
            "Home does not lead to its start": first["value"] != first["low"],
            "End does not lead to its end": last["value"] != last["high"],
            "the right arrow does nothing": second["value"] != first["value"] + 1,
            "the read-out does not follow": len({state["told"] for state in states}) < 4 or not first["told"],
            "what is spoken is not what is read": any(state["told"] != state["spoken"] for state in states),
            "the numbers do not follow": first["numbers"] == last["numbers"],
            # A first step may be smaller than a pixel.
            "no marker moves": first["places"] == third["places"] or third["places"] == last["places"],
        }
        found += [f"{name}: {what}" for what, is_so in wrong.items() if is_so]
    return found


def filters(page: Any) -> list[str]:
    """Complain where the verdict table does not show the rows that its filters, operated by keys, ask for."""
    form = page.locator("form.verdict-filter")
    if form.count() != 1 or not form.is_visible():
        return ["no filter"]
    found = []
    table = "[...document.querySelectorAll('table.verdicts.full tbody tr')]"
    rows = f"() => {table}.map((row) => [row.dataset, row.checkVisibility()])"
    everything = page.evaluate(rows)
    if not everything or not all(shown for _, shown in everything):
        found.append("some rows are hidden at first")
    names = [select.get_attribute("name") for select in form.locator("select").all()]
    found += [f"no filter by {name}" for name in ("paper", "kind", "verdict", "source") if name not in names]
    for name in names:
        select = form.locator(f"select[name={name}]")
        if not select.evaluate("one => one.labels.length && one.labels[0].textContent.trim()"):
            found.append(f"{name}: a filter without a name")
        select.focus()
        page.keyboard.press("ArrowDown")
        value = select.input_value()
        now = page.evaluate(rows)
        if not value:
            found.append(f"{name}: keys do not choose")
        elif [shown for _, shown in now] != [data.get(name) == value for data, _ in now]:
            found.append(f"{name}: the rows are not those with {value!r}")
        elif not any(shown for _, shown in now):
            found.append(f"{name}: no row with {value!r}")
        page.keyboard.press("Home")
        if not all(shown for _, shown in page.evaluate(rows)):
            found.append(f"{name}: not all rows come back")
    return found or _choices(page, form, rows)


def _choices(page: Any, form: Any, rows: str) -> list[str]:
    """Complain where two filters do not work together, the address forgets them, or the button keeps them."""
    found, chosen = [], {}
    for name in ("kind", "source"):
        form.locator(f"select[name={name}]").focus()
        page.keyboard.press("ArrowDown")
        chosen[name] = form.locator(f"select[name={name}]").input_value()

    def wrong() -> bool:
        return any(
            shown != all(data[name] == value for name, value in chosen.items()) for data, shown in page.evaluate(rows)
        )

    if wrong():
        found.append("two filters together show other rows")
    if not all(f"{name}={value}" in page.url for name, value in chosen.items()):
        found.append("the address does not keep the choice")
    page.reload()
    if wrong():
        found.append("an address with a choice shows all rows")
    form.locator("button").focus()
    page.keyboard.press("Enter")
    page.wait_for_timeout(50)
    if not all(shown for _, shown in page.evaluate(rows)):
        found.append("the button does not bring all rows back")
    return found


def plain_verdicts(page: Any) -> list[str]:
    """Complain unless the verdict page shows its whole table without scripts, and no filter that does nothing."""
    rows = "[...document.querySelectorAll('table.verdicts tbody tr')]"
    shown = page.evaluate(f"() => {rows}.map((row) => row.checkVisibility())")
    found = [] if shown and all(shown) else [f"{sum(shown)} of {len(shown)} rows without scripts"]
    for link in ("a.claim-link", "a.claim-file"):
        bare = page.evaluate(f"() => {rows}.filter((row) => !row.querySelector('td:first-child {link}')).length")
        if bare:
            found.append(f"{bare} rows without {link}")
    if page.locator("form.verdict-filter").count() and page.locator("form.verdict-filter").is_visible():
        found.append("a filter without scripts")
    return found


def plain_figures(page: Any) -> list[str]:
    """Complain unless, without scripts, a sentence and still curves stand in place of each slider, below a picture."""
    found = []
    for figure in page.locator(".ir-explore").all():
        name = figure.get_attribute("id")
        if not figure.locator(".ir-note").is_visible():
            found.append(f"{name}: says nothing without scripts")
        if figure.locator("input").count() and figure.locator("input").first.is_visible():
            found.append(f"{name}: a slider without scripts")
        if figure.locator(".ir-body").count() and not figure.locator(".ir-charts svg path").first.is_visible():
            found.append(f"{name}: no curves without scripts")
        if not figure.locator("xpath=preceding::figure//img").count():
            found.append(f"{name}: no picture above it")
    return found


# ---------------------------------------------------------------------------------------------------------------------
# Search


def boxes(site: Path, name: str) -> dict[str, str]:
    """Return the named theorems, definitions and the like of a page: anchor to name."""
    found = {}
    for box in soup(site / name).select("div.proof[id]"):
        title = box.select_one(".admonition-title")
        named = title and re.search(r"\((.+)\)\s*$", title.get_text().strip())
        # A name with a formula in it is not what a reader types.
        if named and not title.select(".math"):
            found[str(box["id"])] = named[1]
    return found


def search(page: Any, home: str, name: str, anchor: str, target: str) -> list[str]:
    """Complain where a theorem's name, typed into the search page, does not lead to its page and to its box."""
    if not page.url.startswith(urljoin(home, "search.html")):
        page.goto(urljoin(home, "search.html"))
    page.locator("main input[name=q]").fill(name)
    with page.expect_navigation():
        page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('.search-summary')?.textContent.trim()")
    hits = page.evaluate("() => [...document.querySelectorAll('ul.search li a')].map(a => a.href)")
    wanted = urljoin(home, target)
    paths = [hit.partition("#")[0].partition("?")[0] for hit in hits]
    if wanted not in paths:
        return [f"search for {name!r} does not find {target}"]
    led = any(path == wanted and urlsplit(hit).fragment == anchor for path, hit in zip(paths, hits, strict=True))
    return [] if led else [f"search for {name!r} does not lead to {target}#{anchor}"]


def index_of(text: str) -> dict[str, Any]:
    """Return what a search index holds."""
    return json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))


# ---------------------------------------------------------------------------------------------------------------------
# The PDF


def pdf(path: Path, titles: Iterable[str], pictures: int, least_pages: int = 100) -> list[str]:
    """Complain where the printed book lacks pages, a chapter, numbered figures or pictures."""
    from pypdf import PdfReader

    reader = PdfReader(path)
    found = []
    if len(reader.pages) <= least_pages:
        found.append(f"{len(reader.pages)} pages")
    texts = (_squeezed(page.extract_text()) for page in reader.pages)  # takes its time: as many as it needs
    if not any(re.search(r"Fig(\.|ure)1\D", text) for text in texts):
        found.append("no figure 1")
    chapters: dict[str, set[int]] = {}
    for title, number in _outline(reader, reader.outline):
        chapters.setdefault(_squeezed(title), set()).add(number)
    for title in titles:
        pages = [reader.pages[number] for number in chapters.get(_squeezed(title), ())]
        if not any(_squeezed(title) in _squeezed(page.extract_text()) for page in pages):
            found.append(f"no chapter {title!r}")
    embedded = {id_ for page in reader.pages for id_ in _pictures(page.get("/Resources"), set())}
    if len(embedded) < pictures:
        found.append(f"{len(embedded)} pictures, of at least {pictures}")
    return found


def _squeezed(text: str) -> str:
    """Return a text without spaces, which PDF does not keep, and without ligatures."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))


def _outline(reader: Any, entries: Iterable[Any]) -> Iterable[tuple[str, int]]:
    """Return the headings in a PDF's outline, each with the index of its page."""
    for entry in entries:
        if isinstance(entry, list):
            yield from _outline(reader, entry)
        else:
            number = reader.get_destination_page_number(entry)
            if number is not None:
                yield str(entry.title), number


def _pictures(resources: Any, seen: set[Any]) -> set[Any]:
    """Return the pictures that a page draws, by their object numbers, within forms too."""
    found = set()
    objects = resources.get_object().get("/XObject") if resources else None
    for reference in (objects.get_object() if objects else {}).values():
        number = getattr(reference, "idnum", id(reference))
        thing = reference.get_object()
        if thing.get("/Subtype") == "/Image":
            found.add(number)
        elif number not in seen:
            seen.add(number)
            found |= _pictures(thing.get("/Resources"), seen)
    return found
