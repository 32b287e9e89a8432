"""Keys of state dicts: what wrappers make of them, and which key of one model is which of another."""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence

from fedrebasin.errors import SpecError

#: What wrappers put before every key: DistributedDataParallel, Opacus, torch.compile, trainers, PEFT.
PREFIXES = ("module.", "_module.", "_orig_mod.", "model.", "base_model.model.")
#: Those that no model gives its own keys.
_WRAPPERS = PREFIXES[:3]
#: What averaged copies of a model keep beside it: torch's AveragedModel, trainers' EMA.
COUNTERS = frozenset({"n_averaged", "initted", "step", "num_updates", "decay"})
# A copy that was averaged along the training, by its name.
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|shadow|averaged?)(?:[._]|$)")
# Wrappers of single modules (torch.compile, FSDP, checkpointed activations, PEFT), wherever they are in a key.
_WRAPPED = re.compile(r"(?:(?<=\.)|^)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|base_layer)\.")
# The adapter's name in the model; the files that PEFT writes leave it out, and of DoRA's vector the last word as well.
_ADAPTER = re.compile(
    r"(?<=\.)((?:lora|ia3|hada|lokr|vera|oft|boft)_\w+)\.(?!(?:weight|bias)$)\w+(?=$|\.(?:weight|bias)$)"
)
_DORA = re.compile(r"(?<=\.lora_magnitude_vector)\.weight$")
_SAVED = re.compile(r"(?<=\.)modules_to_save\.\w+\.")
_NUMBER = re.compile(r"[0-9]{1,9}")
_DEEPEST = 8


def plain(key: str) -> str:
    """The key without the wrappers of single modules and the names of adapters; prefixes stay."""
    return _WRAPPED.sub("", _SAVED.sub("", _DORA.sub("", _ADAPTER.sub(r"\1", key))))


def shared_prefix(keys: Collection[str], like: Collection[str] | None = None) -> str:
    """Those of ``PREFIXES``, one after the other, that all keys begin with and not all of ``like``.

    Args:
        keys: of a state dict.
        like: the keys of the model. Without them ``model.`` may well be the model's own name, and stays.
    """
    known = PREFIXES if like is not None else _WRAPPERS
    keys = [key for key in keys if key not in COUNTERS]
    found = ""
    while keys:
        prefix = next((one for one in known if all(key.startswith(found + one) for key in keys)), None)
        if prefix is None or (like and all(key.startswith(prefix) for key in like)):
            break
        found += prefix
    return found


def is_averaged(name: str) -> bool:
    """Whether a prefix or an entry of a file is called as copies are that were averaged along the training."""
    return bool(_AVERAGED.search(name))


def prefixes_of(
    names: Collection[str], keys: Sequence[str], optional: Collection[str] = ()
) -> dict[str, dict[str, str]]:
    """The prefixes under which all names are found among the keys, with the key of each name.

    ``model.`` and ``model_ema.`` of a trainer's file, for the names of the model; the keys may have wrappers of single
    modules, and others than the names may be there. Those called as averaged copies come last.

    Args:
        names: that are to be found.
        keys: of a file.
        optional: names that are taken where they are found, too.

    Raises:
        SpecError: if there are two keys for one name under a prefix.
    """
    wanted = {plain(name): name for name in (*names, *optional)}
    needed = frozenset(names)
    found: dict[str, dict[str, str]] = {}
    for key in keys:
        parts = plain(key).split(".", _DEEPEST)
        for depth in range(len(parts)):
            name = wanted.get(".".join(parts[depth:]))
            prefix = ".".join([*parts[:depth], ""])
            if name is not None and found.setdefault(prefix, {}).setdefault(name, key) != key:
                raise SpecError(_two_ways([name], [found[prefix][name], key]))
    whole = [prefix for prefix in found if needed <= found[prefix].keys()]
    return {prefix: found[prefix] for prefix in sorted(whole, key=lambda prefix: (is_averaged(prefix), len(prefix)))}


def pair(names: Sequence[str], keys: Sequence[str]) -> dict[str, str] | None:
    """The key of each name, where both are one model's keys under different wrappers.

    Equal keys are paired; else those that are equal without wrappers and prefixes; else, where one side's keys are
    whole numbers (arrays without names, in the order of the state dict) and both are equally many, by position.

    Args:
        names: of one model, in its order.
        keys: of the other, in its order.

    Returns:
        ``key = pair(names, keys)[name]``, for all of the side that has fewer; None if they are not each other's keys.

    Raises:
        SpecError: if there are two ways to pair them.
    """
    known, came = set(names), set(keys)
    if known <= came or came <= known:
        return {name: name for name in names if name in came}
    found: dict[str, str] | None = None
    for ours in _views(names):
        for theirs in _views(keys):
            if not (ours.keys() <= theirs.keys() or theirs.keys() <= ours.keys()):
                continue
            both = [one for one in ours if one in theirs]
            for one in both:
                if len(ours[one]) > 1 or len(theirs[one]) > 1:
                    raise SpecError(_two_ways(ours[one], theirs[one]))
            pairs = {ours[one][0]: theirs[one][0] for one in both}
            if found is not None and found != pairs:
                name = next(name for name in (*found, *pairs) if found.get(name) != pairs.get(name))
                raise SpecError(_two_ways([name], [key for key in (found.get(name), pairs.get(name)) if key]))
            found = pairs
    return _by_position(names, keys) if found is None else found


def likely_rename(names: Sequence[str], keys: Sequence[str]) -> str:
    """What was done to keys that are not the names: one sentence, or nothing where that is not clear.

    Args:
        names: that were expected.
        keys: that came instead; of any origin.
    """
    try:
        pairs = pair(names, keys)
    except SpecError as error:
        return str(error)
    if pairs is not None:
        changed = [(name, key) for name, key in pairs.items() if name != key]
        return f"{changed[0][1]!r} is likely {changed[0][0]!r} under another name" if changed else ""
    added, taken = _prefixes(names, keys), _prefixes(keys, names)
    for found, how in ((added, "with {!r} before them"), (taken, "without {!r} before them")):
        for prefix, number in found.most_common(1):
            if 2 * number > min(len(names), len(keys)):
                return f"{number} of {len(keys)} keys are likely the expected ones {how.format(prefix)}"
    return ""


def _views(keys: Sequence[str]) -> Iterator[dict[str, list[str]]]:
    """The keys by what they are without wrappers, and without one shared prefix after another."""
    found: dict[str, list[str]] = {}
    for key in keys:
        found.setdefault(plain(key), []).append(key)
    while found:
        yield found
        prefix = next((one for one in PREFIXES if all(key.startswith(one) for key in found)), None)
        if prefix is None:
            return
        found = {key.removeprefix(prefix): behind for key, behind in found.items()}


def _by_position(names: Sequence[str], keys: Sequence[str]) -> dict[str, str] | None:
    numbered = [all(_NUMBER.fullmatch(key) for key in side) for side in (names, keys)]
    if len(names) != len(keys) or numbered[0] == numbered[1]:
        return None
    ordered = [sorted(side, key=int) if whole else side for side, whole in zip((names, keys), numbered, strict=True)]
    return dict(zip(*ordered, strict=True))


def _prefixes(names: Sequence[str], keys: Sequence[str]) -> Counter[str]:
    """How many keys are a name behind each prefix."""
    known = set(names)
    found: Counter[str] = Counter()
    for key in keys:
        parts = key.split(".", _DEEPEST)
        for depth in range(1, len(parts)):
            if ".".join(parts[depth:]) in known:
                found[".".join(parts[:depth]) + "."] += 1
    return found


def _two_ways(names: Sequence[str], keys: Sequence[str]) -> str:
    first, *_ = names
    if len(names) > 1:
        return f"{keys[0]!r} could be {' or '.join(map(repr, names[:2]))}: rename the keys so that one fits"
    return f"{first!r} could be {' or '.join(map(repr, keys[:2]))}: rename the keys so that one fits"
