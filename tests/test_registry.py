"""Parts by name: what is registered, what packages offer, and what is refused with one line."""

import inspect
import sys

import pytest

from fedrebasin import RebasinError
from fedrebasin.registry import ALIGNERS, CALIBRATORS, MATCHERS, MODELS, STATISTICS, Registry, make
from fedrebasin.simulations import EXPERIMENTS, LOADERS, STRATEGIES, Federation, SimulationConfig, make_strategy

ALL = (ALIGNERS, CALIBRATORS, EXPERIMENTS, LOADERS, MATCHERS, MODELS, STATISTICS, STRATEGIES)
GROUP = "fedrebasin.things"


@pytest.fixture
def things():
    return Registry("thing", GROUP, {"join": "os.path:join", "three": 3})


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Installs a distribution with entry points."""

    def install(name, lines, source="part = object()", group=GROUP):
        info = tmp_path / f"{name}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n" + "\n".join(lines))
        (tmp_path / f"{name}.py").write_text(source)
        monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])

    return install


def one_line(call, *arguments):
    with pytest.raises(RebasinError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_registry_is_a_mapping_that_can_be_added_to(things):
    assert dict(things) == {"join": __import__("os").path.join, "three": 3}
    assert things.register("four", 4) == 4

    @things.register("five")
    def five():
        return 5

    assert things["five"] is five
    assert list(things) == ["join", "three", "four", "five"]
    assert len(things) == 4
    with pytest.raises(KeyError):
        things["six"]
    things["three"] = 33
    del things["four"]
    assert (things["three"], "four" in things) == (33, False)


def test_what_is_refused_gets_one_line(things):
    assert one_line(things.register, "three", 4) == "thing three: the name is taken"
    assert "names are lower-case letters" in one_line(things.register, "a+b", 4)
    assert "unknown thing 'thre'" in (found := one_line(things.pick, "thre"))
    assert "did you mean three?" in found


def test_what_a_package_offers_is_imported_when_it_is_asked_for(things, package):
    package("things_of_mine", ["mine = things_of_mine:part"])
    assert list(things) == ["join", "three", "mine"]
    assert "mine" in things
    assert "things_of_mine" not in sys.modules
    assert things.pick("mine") is sys.modules["things_of_mine"].part


def test_what_is_offered_and_registered_is_the_same_thing_or_refused(things, package):
    package("things_of_mine", ["mine = things_of_mine:part", "three = things_of_mine:part"])
    assert one_line(things.pick, "three") == "thing three: the name is taken, and things_of_mine offers it as well"
    things.register("mine", things["mine"])  # by the package itself
    package("things_of_theirs", ["mine = things_of_theirs:part"])
    assert "things_of_mine" in (found := one_line(things.pick, "mine"))
    assert "things_of_theirs" in found


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("", "AttributeError"),
    ],
)
def test_a_broken_package_gets_one_line_with_its_name_and_harms_no_other(things, package, source, why):
    package("broken_things", ["broken = broken_things:part"], source)
    found = one_line(things.pick, "broken")
    assert "thing broken: its package's entry point broken_things:part fails: " in found
    assert why in found
    assert things.pick("three") == 3


@pytest.mark.parametrize("registry", ALL, ids=lambda registry: registry.group)
def test_every_part_of_the_package_is_there_under_a_name_that_could_be_registered(registry):
    assert len(registry) == len(dict(registry)) > 0
    for name, part in registry.items():
        with pytest.raises(RebasinError, match="taken"):
            registry.register(name, part)
        fresh = Registry(registry.what, registry.group + ".fresh")
        assert fresh.register(name, part) is part
    assert registry is not STATISTICS or all(kind.name == name for name, kind in registry.items())


def test_groups_differ():
    assert len({registry.group for registry in ALL}) == len(ALL)


def test_a_part_is_called_with_what_it_asks_for():
    def part(model, batches, *, extra, seed=0, **options):
        return model, batches, extra, seed, options

    supply = {"model": lambda: "m", "batches": lambda: "b", "spec": lambda: pytest.fail("it was not asked for")}
    assert make("part", part, supply, extra=1, other=2) == ("m", "b", 1, 0, {"other": 2})
    assert make("part", lambda model: model, supply, other=2) == "m"
    assert one_line(make, "matcher mine", lambda colour: colour, supply) == (
        "matcher mine asks for colour; what a part can ask for: model, batches, spec"
    )


CONFIG = SimulationConfig(width=8, clients=2)


def test_an_offered_matcher_is_a_strategy_with_calibrators(package):
    from fedrebasin.strategies import FedRebasin

    source = "from fedrebasin import WeightMatching\ndef part():\n    return WeightMatching(seed=7)"
    package("matchers_of_mine", ["seven = matchers_of_mine:part"], source, "fedrebasin.matchers")
    strategy = make_strategy("seven+head", Federation(CONFIG))
    assert type(strategy) is FedRebasin
    assert strategy.aligner.matcher.seed == 7


@pytest.mark.parametrize(
    ("part", "name", "message"),
    [
        (lambda strategy: strategy, "mine+head", "mine takes no calibrators"),
        (lambda strategy, **options: strategy, "mine+regmean", "regmean needs aligned models"),
        (
            lambda colour: colour,
            "mine",
            "strategy mine asks for colour; what a part can ask for: strategy,",
        ),
    ],
)
def test_a_strategy_that_cannot_be_made_is_refused(monkeypatch, part, name, message):
    monkeypatch.setitem(STRATEGIES, "mine", part)
    assert message in one_line(make_strategy, name, Federation(CONFIG))


def test_a_name_of_two_kinds_is_refused(monkeypatch):
    monkeypatch.setitem(MATCHERS, "rebasin", object)
    assert "rebasin is the name of" in one_line(make_strategy, "rebasin", Federation(CONFIG))


def test_the_named_strategies_are_run():
    from fedrebasin import strategies

    made = {name: type(make_strategy(name, Federation(CONFIG))).__name__ for name in STRATEGIES}
    kinds = {name: part.__name__ for name, part in STRATEGIES.items() if inspect.isclass(part)}
    assert set(kinds.values()) == {name for name in strategies.__all__ if name.startswith("Fed")}
    assert made == {**kinds, "fedavg": "FedAvg", "frank-wolfe": "FedRebasin"}
