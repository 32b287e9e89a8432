"""``fedrebasin new``: a copy of the quickstart, a small Flower app that aligns, to start from."""

import json
import shlex
from importlib import metadata
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote, urlsplit

import typer

import fedrebasin
from fedrebasin.errors import RebasinError

DEPENDENCY = '"fedrebasin",\n'
IN_THE_REPOSITORY = "pip install fedrebasin\ncd examples/quickstart\n"


def new(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A new or empty folder.")],
    *,
    wheel: Annotated[
        Path | None,
        typer.Option(help="Wheel of fedrebasin that the app installs; what this one was installed from if left out."),
    ] = None,
) -> None:
    """Copy a small Flower app that aligns; its two lines for fedrebasin are marked with a comment.

    Its pyproject.toml names this version and, where it was installed from a file, that file: no package index has to
    know fedrebasin.

    Example: fedrebasin new my-app
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise RebasinError(f"{folder} is not an empty folder: choose a new one")
    if wheel is not None and not wheel.is_file():
        raise RebasinError(f"wheel {wheel}: there is no such file")
    for name, text in app_files(installed_from() if wheel is None else wheel.resolve()).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    marked = "its two lines for fedrebasin are marked in quickstart/server_app.py"
    here = "export FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1  # run in this environment, install nothing"
    run = f"flwr run {shlex.quote(str(folder))} --stream --federation-config num-supernodes=4"
    typer.echo(f"written: {folder}; {marked}\n{here}\n{run}")


def app_files(source: Path | None) -> dict[str, str]:
    """The files of the app by their path in its folder.

    Args:
        source: wheel or folder that fedrebasin is to be installed from; None for a package index.

    Returns:
        Their texts.
    """
    template = _template()
    names = ["README.md", "pyproject.toml", *(f"quickstart/{path.name}" for path in template.glob("quickstart/*.py"))]
    files = {name: (template / name).read_text(encoding="utf-8") for name in names}
    pinned = f'"fedrebasin=={fedrebasin.__version__}",\n'
    project = files["pyproject.toml"].replace(DEPENDENCY, pinned)
    if source is not None:
        project += f"\n[tool.uv.sources]\nfedrebasin = {{ path = {json.dumps(str(source), ensure_ascii=False)} }}\n"
    readme = files["README.md"].replace(IN_THE_REPOSITORY, "")
    return {**files, "pyproject.toml": project, "README.md": readme}


def installed_from() -> Path | None:
    """The wheel or the folder that this fedrebasin was installed from, if pip or uv wrote it down and it is there."""
    try:
        written = metadata.distribution("fedrebasin").read_text("direct_url.json")
        url = urlsplit(json.loads(written or "{}").get("url", ""))
    except (metadata.PackageNotFoundError, ValueError):
        return None
    path = Path(unquote(url.path))
    return path if url.scheme == "file" and path.exists() else None


def _template() -> Path:
    """In a wheel it lies in the package, in a checkout it is the example."""
    package = Path(fedrebasin.__file__).resolve().parent
    inside = package / "quickstart"
    return inside if inside.is_dir() else package.parent / "examples" / "quickstart"
