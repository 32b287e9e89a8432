"""The report in headless Chromium: no console errors, tables that sort, nothing cut off in wide and narrow windows."""

import json
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

from fedrebasin.simulations import (
    SimulationConfig,
    Study,
    compare,
    expand,
    reproduce,
    run_study,
    write_experiment,
    write_report,
)

pytestmark = pytest.mark.browser
NAMES = ("fedavg", "rebasin", "merge-many", "rebasin+seqreg+head+temperature")

WATCH = """<script>
window.complaints = [];
window.addEventListener("error", event => window.complaints.push(String(event.message)));
</script>"""

LOOK = """<script>
const wide = innerWidth, found = {width: wide, complaints: window.complaints, outside: [], cut: [], overlapping: []};
document.querySelectorAll("details").forEach(one => { one.open = true; });
found.page = document.documentElement.scrollWidth;
const name = one => one.tagName + "." + one.getAttribute("class") + " " + one.textContent.trim().slice(0, 40);
for (const one of document.body.querySelectorAll("*")) {
  if (one.closest("svg, script") || one.parentElement.closest(".scroll")) continue;
  const box = one.getBoundingClientRect();
  if (box.right > wide + 0.5 || box.left < -0.5) found.outside.push(name(one));
}
for (const one of document.querySelectorAll(".scroll"))
  if (one.scrollWidth > one.clientWidth && getComputedStyle(one).overflowX !== "auto") found.cut.push(name(one));
for (const svg of document.querySelectorAll("svg")) {
  const frame = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll("text")];
  const boxes = texts.map(text => text.getBoundingClientRect());
  boxes.forEach((box, place) => {
    const text = svg.querySelector("title").textContent + ": " + texts[place].textContent;
    if (box.left < frame.left - 1 || box.right > frame.right + 1 || box.top < frame.top - 1 ||
        box.bottom > frame.bottom + 1) found.cut.push(text);
    boxes.slice(place + 1).forEach((other, later) => {
      const across = Math.min(box.right, other.right) - Math.max(box.left, other.left);
      const down = Math.min(box.bottom, other.bottom) - Math.max(box.top, other.top);
      if (across > 2 && down > 3) found.overlapping.push(text + " / " + texts[place + 1 + later].textContent);
    });
  });
}
found.tables = [...document.querySelectorAll("table.sortable")].map(table => {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  return heads.map((head, column) => {
    const read = () => [...body.rows].map(row => row.cells[column].dataset.value ?? row.cells[column].textContent);
    const before = read(), orders = [];
    for (let click = 0; click < 2; click++) {
      head.querySelector("button").click();
      orders.push({values: read(), said: heads.map(one => one.getAttribute("aria-sort"))});
    }
    return {text: head.classList.contains("text"), column, before, orders};
  });
});
found.starred = [...document.querySelectorAll("#results tr.best")].every(row => row.textContent.includes("★"));
const kept = document.createElement("script");
kept.type = "application/json";
kept.id = "found";
kept.textContent = JSON.stringify(found).replaceAll("<", "\\\\u003c");
document.body.append(kept);
</script>"""


@pytest.fixture(scope="module")
def chromium():
    command = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert command, "these tests need Chromium: apt-get install chromium"
    return command


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A small report, one of several configurations, one of rounds on uneven data, and one of an experiment."""
    folder = tmp_path_factory.mktemp("pages")
    config = SimulationConfig(width=8, clients=3, local_epochs=2, batch_size=64)
    one = Study((compare(config, NAMES),), "fedrebasin compare --width 8")
    options = {"width": [4.0, 8.0], "clients": [2], "local_epochs": [1], "seed": [0, 1]}
    several = run_study(expand(options), ["fedavg", "rebasin+seqreg+head+temperature"], jobs=1)
    rounds = replace(config, partition="dirichlet", rounds=2, init="shared", model="vgg11", width=0.0625, clients=2)
    return {
        "one": write_report(folder / "one", one)[1],
        "several": write_report(folder / "several", several)[1],
        "rounds": write_report(folder / "rounds", Study((compare(rounds, ["fedavg", "rebasin"]),)))[1],
        "experiment": write_experiment(folder, reproduce("grb-counterexample", folder)),
    }


def look(chromium, page, width, tmp_path):
    """What the page looks like at this width, and what the browser logged."""
    text = page.read_text().replace("<head>", f"<head>{WATCH}", 1).replace("</body>", f"{LOOK}</body>", 1)
    frame = f'<iframe id="view" style="border:0;width:{width}px;height:900px"></iframe>'
    escaped = json.dumps(text).replace("</", "<\\/")
    framed = tmp_path / "frame.html"  # headless windows have a least width, frames have none
    framed.write_text(
        f'<body style="margin:0">{frame}<script>const view = document.getElementById("view"); view.srcdoc = {escaped};'
        "view.onload = () => { const kept = document.createElement('pre'); kept.id = 'kept';"
        "kept.textContent = view.contentDocument.getElementById('found').textContent;"
        "document.body.append(kept); };</script></body>"
    )
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=10000", "--window-size=1400,1000"]
    done = subprocess.run(
        [*command, "--dump-dom", framed.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    (found,) = re.findall(r'<pre id="kept">(.*?)</pre>', done.stdout, re.DOTALL)
    logged = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(found.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")), logged


def check_sorting(column):
    first, second = column["orders"]
    assert sorted(first["values"]) == sorted(second["values"]) == sorted(column["before"])
    known = ["ascending", "descending"] if column["text"] else ["descending", "ascending"]
    for order, direction in zip((first, second), known, strict=True):
        assert order["said"][column["column"]] == direction
        assert [said for said in order["said"] if said != "none"] == [direction]
        filled = [value for value in order["values"] if value != ""]
        assert order["values"] == filled + [""] * (len(order["values"]) - len(filled))
        if not column["text"]:
            expected = sorted(map(float, filled), reverse=direction == "descending")
            assert list(map(float, filled)) == expected
    if column["text"]:
        assert first["values"] == second["values"][::-1] or len(set(first["values"])) < len(first["values"])


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("name", ["one", "several", "rounds", "experiment"])
def test_a_report_in_the_browser(name, width, chromium, pages, tmp_path):
    found, logged = look(chromium, pages[name], width, tmp_path)
    assert found["width"] == width
    assert (found["complaints"], logged) == ([], [])
    assert found["page"] <= width
    assert (found["outside"], found["cut"], found["overlapping"]) == ([], [], [])
    assert found["tables"]
    for table in found["tables"]:
        for column in table:
            check_sorting(column)
    assert found["starred"]


def test_the_look_finds_what_is_wrong(chromium, pages, tmp_path):
    broken = tmp_path / "broken.html"
    broken.write_text(
        pages["one"]
        .read_text()
        .replace("</h1>", '</h1><div style="width:3000px">far out</div><script>noSuchFunction()</script>', 1)
        .replace('<g id="accuracy-by-strategy-figure_1">', '<g><text x="-50" y="20">cut</text></g><g>', 1)
    )
    found, logged = look(chromium, broken, 800, tmp_path)
    assert any("noSuchFunction" in complaint for complaint in found["complaints"])
    assert any("noSuchFunction" in line for line in logged)
    assert found["page"] > 800
    assert any("far out" in one for one in found["outside"])
    assert "Accuracy by strategy: cut" in found["cut"]
