"""Pages of the results."""

from benchmarks.support.section import RESULTS, write_section


def test_a_section_is_a_page_of_its_own_and_replaces_the_last(tmp_path):
    write_section("## Nodes' own frames", ["old"], tmp_path)
    write_section("## Nodes' own frames", ["new", "", "### iid", "", "| a |", ""], tmp_path)
    (page,) = tmp_path.iterdir()
    assert page.name == "nodes-own-frames.md"
    assert page.read_text() == "# Nodes' own frames\n\nnew\n\n## iid\n\n| a |\n"


def test_the_summary_has_every_page_under_its_heading_and_no_other():
    summary = (RESULTS.parent / "RESULTS.md").read_text()
    for page in RESULTS.glob("*.md"):
        title = page.read_text().splitlines()[0].removeprefix("# ")
        assert f"(results/{page.name})" in summary.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    assert summary.count("\n## ") == len(list(RESULTS.glob("*.md")))
