"""The report: one page that needs nothing but itself, can be read aloud, and says in words what its numbers say."""

import json
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fedrebasin import Barrier
from fedrebasin.simulations import (
    REFERENCES,
    Figures,
    Row,
    SimulationConfig,
    Study,
    compare,
    expand,
    in_words,
    reproduce,
    write_experiment,
    write_picture,
    write_report,
)

NAMES = ("fedavg", "rebasin", "rebasin+head")
CONFIG = SimulationConfig(width=12, clients=2, local_epochs=2, batch_size=64, rounds=2)


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text, self.ids, self.used = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "xlink:href"):
                (self.used if value.startswith("#") else self.links).append(value.lstrip("#"))
            if name == "id":
                self.ids.append(value)
            if name == "aria-labelledby":
                self.used += value.split()

    def handle_data(self, data):
        self.text.append(data)


@pytest.fixture(scope="module")
def study():
    return Study((compare(CONFIG, NAMES),), "fedrebasin compare --rounds 2")


def made_up(accuracies, config=CONFIG, barriers=(1.0, 0.1), beta=1.0):
    """A comparison with these accuracies by name."""
    rows = [Row(name, config.seed, 1, Figures(value, 0.5, 0.5, beta, 0.1)) for name, value in accuracies.items()]
    paths = {
        name: Barrier((0.0, 0.5, 1.0), (0.2, 0.2 + value, 0.2), (0.9, 0.5, 0.9), value)
        for name, value in zip(("before", "after"), barriers, strict=True)
    }
    names = tuple(name for name in accuracies if name not in REFERENCES)
    return replace(compare_cached(), config=config, strategies=names, rows=tuple(rows), paths=paths)


_kept = []


def compare_cached():
    if not _kept:
        _kept.append(compare(replace(CONFIG, rounds=1, local_epochs=1, width=4), ["fedavg"]))
    return _kept[0]


def test_the_page_needs_nothing_but_itself_and_every_chart_has_a_text(study, tmp_path):
    results, report = write_report(tmp_path, study)
    page = Page(report.read_text())
    assert page.tags.count("svg") == page.tags.count("desc") == 6
    assert [link for link in page.links if "w3.org" not in link] == []
    assert not {"link", "img", "iframe", "object"} & set(page.tags)
    assert len(page.ids) == len(set(page.ids))
    assert set(page.used) <= set(page.ids)
    text = " ".join(page.text)
    assert "http" not in text.replace("http://www.w3.org", "")
    for promised in (
        "second client permuted",
        f"{100 * study.comparisons[0].row('rebasin').figures.accuracy:.1f} %",
        "layers.0, layers.1, layers.2",
        "fedrebasin compare --rounds 2",
        "torch 2",
        "local-epochs 2",
    ):
        assert promised in text
    assert json.loads(results.read_text())["version"] == 2
    assert write_report(tmp_path / "again", study)[1].read_text() == report.read_text()


def test_several_settings_get_a_column_and_a_curve(tmp_path):
    first = compare_cached()
    wider = replace(first, config=replace(first.config, width=8))
    seeds = [replace(one, config=replace(one.config, seed=1)) for one in (first, wider)]
    page = Page(write_report(tmp_path, Study((first, wider, *seeds)))[1].read_text())
    text = " ".join(page.text)
    assert "width" in text
    assert "Accuracy by width" in text
    assert "± 0.0 %" in text
    assert "over 2 seeds" in text
    assert page.tags.count("details") == 2 + 2  # settings, and in each the split as a table
    assert len(page.ids) == len(set(page.ids))


def test_a_run_without_references_has_a_page_too(study, tmp_path):
    """What ``flwr run`` writes."""
    rows = tuple(row for row in study.comparisons[0].rows if row.strategy == "rebasin")
    alone = replace(study.comparisons[0], strategies=("rebasin",), rows=rows, paths={}, label_counts=())
    text = write_report(tmp_path, Study((alone,)))[1].read_text()
    assert "The best strategy is rebasin" in text


GOOD = {"fedavg": 0.2, "rebasin": 0.9, "mean-client": 0.85, "all-data": 0.95}


@pytest.mark.parametrize(
    ("accuracies", "options", "said", "not_said"),
    [
        (GOOD, {}, ["less than a client on its own 85.0 %", "(rebasin, 90.0 %) gains 70.0 points", "mostly in"], []),
        (GOOD, {}, ["The best strategy is rebasin with 90.0 %, 5.0 points below one model"], ["surer", "less sure"]),
        (GOOD | {"rebasin": 0.202}, {}, ["makes no difference"], ["gains", "costs"]),
        (GOOD | {"rebasin": 0.1}, {}, ["costs 10.0 points", "The best strategy is fedavg"], ["gains"]),
        (GOOD | {"fedavg": 0.852}, {}, ["as much as a client on its own"], ["less than a client"]),
        (GOOD | {"rebasin": 0.97}, {}, ["2.0 points above one model"], ["below"]),
        (GOOD, {"barriers": (0.01, 0.01)}, ["they are in one basin already"], ["order of their units"]),
        (GOOD, {"barriers": (1.0, 0.9)}, ["differ in more than the order of their units"], ["mostly in"]),
    ],
)
def test_the_words_follow_from_the_numbers(accuracies, options, said, not_said):
    words = " ".join(in_words(Study((made_up(accuracies, **options),))))
    assert [phrase for phrase in said if phrase not in words] == []
    assert [phrase for phrase in not_said if phrase in words] == []
    assert "This is one seed" in words


@pytest.mark.parametrize(("second", "equal"), [((0.80, 0.90), True), ((0.60, 0.61), False)])
def test_a_lead_within_what_seeds_change_is_called_equal(second, equal):
    firsts = (0.86, 0.88)
    comparisons = [
        made_up({"fedavg": other, "rebasin": first, "mean-client": 0.5}, replace(CONFIG, seed=seed))
        for seed, (first, other) in enumerate(zip(firsts, second, strict=True))
    ]
    words = " ".join(in_words(Study(tuple(comparisons))))
    assert ("Its lead over fedavg is within what seeds change" in words) == equal
    assert "Over 2 seeds the accuracy of rebasin has a standard deviation of 1.4 points" in words


def test_settings_are_told_apart_in_words():
    configs = expand({"width": [4.0, 8.0], "clients": [2]})
    words = in_words(Study(tuple(made_up(GOOD, config) for config in configs)))
    assert words[0].startswith("2 settings were compared, over one seed each")
    assert [paragraph.split(".")[0] for paragraph in words[1:]] == ["Width 4", "Width 8"]


def test_an_experiment_has_a_page(tmp_path):
    record = reproduce("grb-counterexample", tmp_path)
    report = write_experiment(tmp_path, record, "fedrebasin reproduce grb-counterexample")
    page = Page(report.read_text())
    text = " ".join(page.text)
    assert record.title in text
    assert "hold here" in text
    assert "svg" in page.tags
    assert [link for link in page.links if "w3.org" not in link] == []


def test_the_picture_is_drawn_with_what_it_shows_in_words(study, tmp_path):
    picture = write_picture(tmp_path / "new", study)
    page = Page(picture.read_text())
    assert (page.tags.count("svg"), page.tags.count("desc")) == (1, 1)
    words = " ".join(page.text)
    assert f"rebasin+head {100 * study.comparisons[0].row('rebasin+head').figures.accuracy:.1f} %" in words
    assert f"rises by {study.comparisons[0].paths['before'].value:.2f} as trained" in words
    assert write_picture(tmp_path, study).read_text() == picture.read_text()


def test_without_paths_there_is_no_picture(study, tmp_path):
    assert write_picture(tmp_path, Study((replace(study.comparisons[0], paths={}),))) is None
