"""``fedrebasin cite``: what to cite, as BibTeX."""

from typing import Annotated

import typer

import fedrebasin
from fedrebasin.cli.show import AsJson, print_json

#: The key of each entry, its kind and fields.
ENTRIES: dict[str, tuple[str, dict[str, str]]] = {
    "fedrebasin": (
        "software",
        {"author": "{The fedrebasin developers}", "title": "fedrebasin", "version": fedrebasin.__version__},
    ),
    "ainsworth2023rebasin": (
        "inproceedings",
        {
            "author": "Ainsworth, Samuel K. and Hayase, Jonathan and Srinivasa, Siddhartha",
            "title": "{Git Re-Basin}: Merging Models modulo Permutation Symmetries",
            "booktitle": "International Conference on Learning Representations",
            "year": "2023",
            "url": "https://arxiv.org/abs/2209.04836",
        },
    ),
    "zhou2023llfc": (
        "inproceedings",
        {
            "author": "Zhou, Zhanpeng and Yang, Yongyi and Yang, Xiaojiang and Yan, Junchi and Hu, Wei",
            "title": "Going Beyond Linear Mode Connectivity: The Layerwise Linear Feature Connectivity",
            "booktitle": "Advances in Neural Information Processing Systems",
            "year": "2023",
            "url": "https://arxiv.org/abs/2307.08286",
        },
    ),
    "sharma2024simultaneous": (
        "article",
        {
            "author": "Sharma, Ekansh and Kwok, Devin and Denton, Tom and Roy, Daniel M. and Rolnick, David and "
            "Dziugaite, Gintare Karolina",
            "title": "Simultaneous linear connectivity of neural networks modulo permutation",
            "journal": "arXiv:2404.06498",
            "year": "2024",
            "url": "https://arxiv.org/abs/2404.06498",
        },
    ),
    "ito2025permutations": (
        "article",
        {
            "author": "Ito, Akira and Yamada, Masanori and Chijiwa, Daiki and Kumagai, Atsutoshi",
            "title": "Do We Really Need Permutations? Impact of Model Width on Linear Mode Connectivity",
            "journal": "arXiv:2510.08023",
            "year": "2025",
            "url": "https://arxiv.org/abs/2510.08023",
        },
    ),
}


def cite(json: Annotated[bool, AsJson] = False) -> None:
    """Print what to cite, as BibTeX: this software and the papers that it implements.

    Example: fedrebasin cite >> references.bib
    """
    if json:
        print_json({key: {"type": kind, **fields} for key, (kind, fields) in ENTRIES.items()})
        return
    for key, (kind, fields) in ENTRIES.items():
        lines = ",\n".join(f"  {name} = {{{text}}}" for name, text in fields.items())
        typer.echo(f"@{kind}{{{key},\n{lines}\n}}\n")
