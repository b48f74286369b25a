"""What MkDocs calls while it builds the site: pages get their generated parts, and the finished pages are checked."""

import logging
import re
from pathlib import Path
from typing import Any

import built_pages
import generated

LOG = logging.getLogger("mkdocs.hooks.upfield")
PLACE = re.compile(r"^<!-- generated: (\w+)((?: \S+)*?) -->$", re.MULTILINE)


def on_config(config: Any) -> None:
    """Leave pages out of the navigation until they are written."""
    config.nav = _written(config.nav, Path(config.docs_dir))


def _written(item: Any, docs: Path) -> Any:
    if isinstance(item, list):
        return [kept for each in item if (kept := _written(each, docs))]
    if isinstance(item, dict):
        return {name: kept for name, each in item.items() if (kept := _written(each, docs))}
    return item if (docs / item).is_file() else None


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each line `<!-- generated: NAME ARGUMENT... -->` of a page by what the function of this name returns."""
    return PLACE.sub(lambda place: generated.PARTS[place[1]](*place[2].split()), markdown)


def on_post_build(config: Any) -> None:
    """Warn about broken links and about files from elsewhere. In strict mode, a warning ends the build."""
    for problem in built_pages.problems(Path(config.site_dir)):
        LOG.warning(problem)
