"""Pages that lie outside of docs/: they are part of the site as well, and links between all of them keep working."""

import importlib
import os
import re
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
#: Pages of the site that are files elsewhere in the repository; their place in the site is their place in it.
OUTSIDE = (
    "CHANGELOG.md",
    "benchmarks/RESULTS.md",
    *(path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "benchmarks" / "results").glob("*.md"))),
    "examples/existing-app.md",
    "examples/quickstart/README.md",
)
LINK = re.compile(r"(?P<before>!?\[[^\]]*\]\()(?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")

NAMES = re.compile(r"<!-- names of (?P<package>[a-z.]+)(?:: (?P<wanted>[\w.\s]+))? -->")
REGISTERED = re.compile(r"<!-- registered in (?P<package>[a-z.]+): (?P<registry>[A-Z]+) -->")


def names(package: str, wanted: str | None) -> list[str]:
    """Names with the modules that they are documented in: some of a package, or all that it offers."""
    module = importlib.import_module(package)
    homes = {**getattr(module, "_HOMES", {}), **getattr(module, "_FORMER_HOMES", {})}
    return [f"{homes.get(name, package)}.{name}" for name in (wanted.split() if wanted else module.__all__)]


def registered(package: str, registry: str) -> str:
    """A list of the names in a registry, each with the first line of its part's docstring."""
    parts = getattr(importlib.import_module(package), registry)
    return "\n".join(
        f"- `{name}`: {(part.__doc__ or '').strip().partition(chr(10))[0]}" for name, part in parts.items()
    )


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for path in OUTSIDE:
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links point to pages of the site; what is no page of it is named instead."""
    place = page.file.src_uri
    source = place if place in OUTSIDE else f"docs/{place}"

    def moved(link: re.Match[str]) -> str:
        target = link["target"]
        if re.match(r"[a-z]+:", target):
            return link[0]
        path = os.path.normpath(PurePosixPath(source).parent / target)
        uri = path.removeprefix("docs/")
        if files.get_file_from_path(uri) is not None:
            relative = os.path.relpath(uri, PurePosixPath(place).parent)
            return f"{link['before']}{relative}{link['anchor'] or ''})"
        if (ROOT / path).exists():
            return f"{link['before'][1:-2]} (`{path}`)"
        return link[0]  # strict mode complains about it

    markdown = NAMES.sub(
        lambda found: "\n\n".join(f"::: {name}" for name in names(found["package"], found["wanted"])),
        markdown,
    )
    markdown = REGISTERED.sub(lambda found: registered(**found.groupdict()), markdown)
    return LINK.sub(moved, markdown)
