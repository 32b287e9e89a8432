"""What the numbers of a study say, in plain words that are derived from them."""

from statistics import fmean

from ..papers import Record
from .study import Setting, Study, Summary

EQUAL_POINTS = 0.5  # of accuracy: closer than this is called equal where no spread is known
LOW_BARRIER = 0.1  # nats
NOT_ALIGNED = ("fedavg", "wide-avg")


def question(study: Study) -> str:
    """What the study asks."""
    inits = {comparison.config.init for comparison in study.comparisons}
    return "Can these clients' models be averaged?" if "independent" in inits else "Does aligning help, or harm?"


def in_words(study: Study) -> list[str]:
    """Paragraphs: what was done, what came out in each setting, and how far to trust it."""
    settings = study.settings
    if len(settings) == 1:
        return [_what_was_done(settings[0]), _findings(settings[0]), _trust(settings[0])]
    done = f"{len(settings)} settings were compared, over {_seeds(study)}. {_what_was_done(settings[0], common=study)}"
    return [done, *(f"{one.label[:1].upper()}{one.label[1:]}. {_findings(one)}" for one in settings)]


def _seeds(study: Study) -> str:
    counts = [len(setting.comparisons) for setting in study.settings]
    if max(counts) == 1:
        return "one seed each: differences of a few points may be luck"
    return f"{min(counts)} seeds" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} seeds"


def _what_was_done(setting: Setting, common: Study | None = None) -> str:
    config = setting.config
    varying = () if common is None else common.varying
    who = "Clients" if "clients" in varying else f"{config.clients} clients"
    model = "models" if "model" in varying else f"models ({config.model})"
    data = "a data set" if "dataset" in varying else config.dataset
    whose = "each from its own" if config.init == "independent" else "all from the same"
    start = "" if "init" in varying else f", {whose} initialisation"
    rounds = "" if "rounds" in varying or config.rounds == 1 else f", for {config.rounds} rounds"
    return f"{who} trained {model} on their parts of {data}{start}{rounds}."


def _findings(setting: Setting) -> str:
    found = {summary.strategy: summary for summary in setting.summaries}
    aligned = (_averaged_as_they_are(found), _aligned(found))
    return " ".join(filter(None, (*aligned, _best(setting, found), _barrier(setting), _confidence(setting.best))))


def _averaged_as_they_are(found: dict[str, Summary]) -> str:
    plain, client = found.get("fedavg"), found.get("mean-client")
    if client is None:
        return ""
    alone = f"a client on its own {percent(client)}"
    if plain is None:
        return f"After its first training {alone.replace('own', 'own classifies')} of the test set right."
    gap = _points(plain, client)
    verdict = "as much as" if abs(gap) < EQUAL_POINTS else "more than" if gap > 0 else "less than"
    return f"Averaged as they are (fedavg) they classify {percent(plain)} of the test set correctly, {verdict} {alone}."


def _aligned(found: dict[str, Summary]) -> str:
    plain = found.get("fedavg")
    aligned = [one for one in found.values() if "+" not in one.strategy and one.strategy not in NOT_ALIGNED]
    aligned = [one for one in aligned if not one.is_reference]
    if plain is None or not aligned:
        return ""
    one = max(aligned, key=lambda summary: summary.figures.accuracy)
    gap = _points(one, plain)
    if abs(gap) < EQUAL_POINTS:
        return f"Aligning the units first ({one.strategy}, {percent(one)}) makes no difference."
    verb = "gains" if gap > 0 else "costs"
    return f"Aligning the units first ({one.strategy}, {percent(one)}) {verb} {abs(gap):.1f} points."


def _best(setting: Setting, found: dict[str, Summary]) -> str:
    best, everything = setting.best, found.get("all-data")
    others = sorted(
        (one for one in found.values() if not one.is_reference and one.strategy != best.strategy),
        key=lambda one: one.figures.accuracy,
    )
    compared = ""
    if everything is not None:
        gap = _points(best, everything)
        side = "above" if gap > 0 else "below"
        compared = ", as much as" if abs(gap) < EQUAL_POINTS else f", {abs(gap):.1f} points {side}"
        compared += " one model trained on all the data for the epochs of one round"
    sentence = f"The best strategy is {best.strategy} with {percent(best)}{compared}."
    if others and _indistinguishable(best, others[-1]):
        equals = [one.strategy for one in others if _indistinguishable(best, one)]
        sentence += f" Its lead over {_listed(equals)} is within what seeds change: call them equal."
    return sentence


def _barrier(setting: Setting) -> str:
    paths = [comparison.paths for comparison in setting.comparisons if comparison.paths]
    if not paths:
        return ""
    before = fmean(path["before"].value for path in paths)
    after = max(fmean(path["after"].value for path in paths), 0.0)
    if before < LOW_BARRIER:
        return f"Between two clients the loss hardly rises ({max(before, 0):.2f} nats): they are in one basin already."
    matter = "mostly in" if after < before / 2 else "in more than"
    return (
        f"Between two clients lies a loss barrier of {before:.2f} nats; once the units of one are permuted to match "
        f"the other's, {after:.2f} nats of it are left: the models differ {matter} the order of their units."
    )


def _confidence(best: Summary) -> str:
    loss, calibrated = best.figures.loss, best.figures.calibrated_loss
    if not calibrated < 0.9 * loss:
        return ""
    tendency = "less sure than it should be" if best.figures.beta > 1 else "surer than it should be"
    return (
        f"That model is {tendency}: with its logits times {best.figures.beta:.1f} the loss falls from {loss:.2f} to "
        f"{calibrated:.2f} nats, so a temperature calibrator behind it (+temperature) pays."
    )


def _trust(setting: Setting) -> str:
    best = setting.best
    if best.deviation is None:
        return "This is one seed: differences of a few points may be luck (--seeds 0,1,2 shows how much)."
    return (
        f"Over {len(best.seeds)} seeds the accuracy of {best.strategy} has a standard deviation of "
        f"{100 * best.deviation.accuracy:.1f} points."
    )


def _indistinguishable(one: Summary, other: Summary) -> bool:
    """Whether means differ by less than two standard errors of their difference; with one seed: nobody knows."""
    if one.deviation is None or other.deviation is None:
        return False
    variance = one.deviation.accuracy**2 / len(one.seeds) + other.deviation.accuracy**2 / len(other.seeds)
    return bool(abs(one.figures.accuracy - other.figures.accuracy) < 2 * variance**0.5)


def percent(summary: Summary) -> str:
    """The accuracy, as ``95.8 %``."""
    return f"{100 * summary.figures.accuracy:.1f} %"


def _points(one: Summary, other: Summary) -> float:
    return 100 * (one.figures.accuracy - other.figures.accuracy)


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def experiment_in_words(record: Record) -> str:
    """How many of a paper's claims hold, and which do not."""
    claims = record.result.claims
    failing = [claim for claim in claims if not all(claim.holds)]
    seeds = len(record.setting["seeds"])
    over = "in one run" if seeds == 1 else f"in every one of {seeds} seeds"
    if not claims:
        return "The experiment has no claim to hold or to fail."
    if not failing:
        return f"All of the paper's claims ({len(claims)}) hold here, {over}."
    listed = " ".join(f"Not so here ({claim.verdict}): {claim.text.rstrip('.')}." for claim in failing)
    return f"{len(claims) - len(failing)} of the paper's {len(claims)} claims hold here, {over}. {listed}"
