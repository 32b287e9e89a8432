"""Files of results: read and shown, with every text in them escaped, or refused."""

import random
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from fedrebasin.cli.compare import table_of
from fedrebasin.simulations import read_results, write_page, write_picture, write_results
from tests.fuzzing.engine import Target, assert_nothing_found
from tests.fuzzing.mutating import TEXTS, mutate_document

WRITTEN = Path(__file__).parents[1] / "compatibility" / "written_by_0_1" / "results"
SCRIPT = next(text for text in TEXTS if text.startswith("<script>"))
DRAWN = 0.1  # of the files that are accepted: pictures take most of the time


def seeds_in(folder):
    def seeds():
        study = read_results(WRITTEN)
        first = replace(study, comparisons=study.comparisons[:1])
        nothing = replace(study, comparisons=())
        return [write_results(folder, one).read_bytes() for one in (study, first, nothing)]

    return seeds


def check_in(folder):
    def check(data):
        file = folder / "results.json"
        file.write_bytes(data)
        study = read_results(file)
        Console(file=(folder / "table").open("w"), width=200).print(table_of(study))
        assert read_results(write_results(folder / "again", study)) is not None
        if random.Random(data).random() < DRAWN:
            page = write_page(folder, study).read_text(encoding="utf-8")
            write_picture(folder, study)
            assert SCRIPT not in page, "a text of the file became a part of the page"

    return check


def target_in(folder):
    return Target("results", seeds_in(folder), check_in(folder), mutate_document)


def test_a_file_is_shown_or_refused(tmp_path):
    assert_nothing_found(target_in(tmp_path), cases=100)
