"""Check the built pages: each link leads to a page and a place that exist, and no page loads a file from elsewhere."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from upfield.common.tables import counted

# Attributes whose files a browser loads by itself. `href` of `<a>` is not among them.
LOADED = {"src", "srcset", "poster", "data", "background", "action", "xlink:href"}
LOADING_RELATIONS = {"stylesheet", "icon", "preload", "preconnect", "prefetch", "dns-prefetch", "modulepreload"}
ADDRESS = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
LOADED_BY_STYLE = re.compile(r"(?:url\(|@import)\s*[\"']?\s*((?:https?:)?//[^\"')\s]+)", re.IGNORECASE)


@dataclass
class Page(HTMLParser):
    """The names, links and loaded files of an HTML page."""

    path: Path
    names: set[str] = field(default_factory=lambda: {"", "top"})
    links: list[str] = field(default_factory=list)
    loads: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Read the page."""
        super().__init__()
        self.feed(self.path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note the names, the link and the loaded files of one tag."""
        values = {name: value or "" for name, value in attrs}
        self.names |= {values[name] for name in ("id", "name") if name in values}
        self.loads += [values[name] for name in LOADED if name in values]
        self.loads += LOADED_BY_STYLE.findall(values.get("style", ""))
        if "mermaid" in values.get("class", "").split():
            # The theme would load this script.
            self.loads.append("https://unpkg.com/mermaid")
        if "href" not in values or values.get("rel") == "canonical":
            return
        is_loaded = tag in ("use", "image") or (tag == "link" and LOADING_RELATIONS & set(values["rel"].split()))
        (self.loads if is_loaded else self.links).append(values["href"])


def problems(site: Path) -> Iterator[str]:
    """Yield a message for each broken link and each file that a page would load from elsewhere.

    A link that is broken on several pages, such as one of the navigation, is told once.

    Args:
        site: folder of the built site.
    """
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    broken: dict[str, list[str]] = {}
    for path, page in pages.items():
        where = str(page.path.relative_to(site))
        yield from (f"{where}: loads {each}, which is not a part of the site." for each in page.loads if _is_far(each))
        # The page for missing pages is shown at any address, so its links begin with a slash.
        near = [] if page.path.name == "404.html" else [each for each in page.links + page.loads if not _is_far(each)]
        for link in dict.fromkeys(near):
            if problem := _problem_of_link(link, path, pages):
                broken.setdefault(problem, []).append(where)
    for problem, places in broken.items():
        others = f" and {counted(len(places) - 1, 'other page')}" if len(places) > 1 else ""
        yield f"{places[0]}{others}: {problem}"
    for path in sorted(site.rglob("*.css")):
        for address in LOADED_BY_STYLE.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site)}: loads {address}, which is not a part of the site."


def _is_far(address: str) -> bool:
    return ADDRESS.match(address) is not None


def _problem_of_link(link: str, path: Path, pages: dict[Path, Page]) -> str | None:
    parts = urlsplit(link)
    if parts.scheme in ("mailto", "data", "javascript"):
        return None
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file():
        return f"a link leads to {_short(target, pages)}, which does not exist."
    if target in pages and unquote(parts.fragment) not in pages[target].names and not parts.fragment.startswith("__"):
        return f"a link leads to #{parts.fragment} of {_short(target, pages)}, which has no such part."
    return None


def _short(target: Path, pages: dict[Path, Page]) -> str:
    site = min(pages, key=lambda path: len(path.parts)).parent
    return str(target.relative_to(site)) if target.is_relative_to(site) else str(target)
