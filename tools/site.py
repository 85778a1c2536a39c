"""What `mkdocs.yml` needs beyond `docs/`: pages that stand elsewhere in the repository, and their links.

A page is written for the repository, where its links are relative to itself. On the site it stands at
the same path, without `docs/`. Files that only the repository has are named, not linked.
"""

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "README.md",
    "benchmarks/README.md",
    "examples/leaderboard/leaderboard.html",
    "results/*.md",
    "studies/*/README.md",
    "studies/*/PLAN.md",
    "studies/*/results/*.md",
    "studies/*/results/*.html",
    "studies/*/results/*.png",
)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s#]*)(#[^)\s]*)?\)")
_CODE = re.compile(r"(^```.*?^```|`[^`\n]+`)", re.MULTILINE | re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages and pictures that stand elsewhere."""
    for pattern in ELSEWHERE:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: Any, files: Files) -> str:
    """Turn links of the repository into links of the site."""
    stands = page.file.src_uri
    in_docs = not (ROOT / stands).is_file()
    folder = posixpath.dirname(f"docs/{stands}" if in_docs else stands)

    def of_site(match: re.Match[str]) -> str:
        image, text, target, anchor = match.groups("")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        inside = posixpath.normpath(posixpath.join(folder, target))
        path = inside.removeprefix("docs/")
        if files.get_file_from_path(path) is None:
            return text if (ROOT / inside).exists() else match[0]  # which the build then warns of
        return f"{image}[{text}]({posixpath.relpath(path, posixpath.dirname(stands) or '.')}{anchor})"

    parts = _CODE.split(markdown)
    return "".join(part if number % 2 else _LINK.sub(of_site, part) for number, part in enumerate(parts))
