"""What MkDocs calls while it builds the site: pages get their generated parts, and the finished pages are checked."""

import logging
import re
from pathlib import Path
from typing import Any

import built_pages
import generated

LOG = logging.getLogger("mkdocs.hooks.upfield")
PLACE = re.compile(r"^<!-- generated: (\w+)((?: \S+)*?) -->$", re.MULTILINE)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each line `<!-- generated: NAME ARGUMENT... -->` of a page by what the function of this name returns."""
    return PLACE.sub(lambda place: generated.PARTS[place[1]](*place[2].split()), markdown)


def on_post_build(config: Any) -> None:
    """Warn about broken links and about files from elsewhere. In strict mode, a warning ends the build."""
    for problem in built_pages.problems(Path(config.site_dir)):
        LOG.warning(problem)
