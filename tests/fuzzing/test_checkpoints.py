"""Checkpoints of runs, with checksums that are right: a run goes on from a sane state, or they are refused."""

import hashlib
import json
import shutil

import numpy as np
import torch
from fedrebasin.strategies.run import Checkpoints, Frames, Run
from flwr.app import ArrayRecord
from flwr.serverapp.strategy import FedAdam, FedAvgM
from safetensors.torch import load, save

from fedrebasin import Permutation, PermutationSpec
from tests.fuzzing.documents import parsed
from tests.fuzzing.engine import CannotTravel, Target, assert_nothing_found
from tests.fuzzing.mutating import mutate_bytes, mutate_document
from tests.strategies.helpers import AXES, make_state

SPEC = PermutationSpec.from_axes(AXES)
START = ArrayRecord(dict(make_state(9)))
INNER = {"FedAvgM": lambda: FedAvgM(server_momentum=0.9, server_learning_rate=0.5), "FedAdam": FedAdam}


def made(folder, name, resume=True):
    """A run and its checkpoints, as a strategy has them."""
    strategy = INNER[name]()
    run = Run(SPEC, Frames())
    run.see(START)
    return Checkpoints(folder, strategy), run, strategy


def written(folder, name):
    """What a run has written after a round."""
    shutil.rmtree(folder, ignore_errors=True)
    checkpoints, run, strategy = made(folder, name)
    with checkpoints.opened(run, START, resume=False):
        momenta = {"momentum_vector": None, "m_t": None, "v_t": None}
        for attribute in momenta.keys() & vars(strategy).keys():
            arrays = {key: np.ones(tensor.shape, np.float32) for key, tensor in make_state(0).items()}
            setattr(strategy, attribute, list(arrays.values()) if name == "FedAvgM" else arrays)
        run.frames.learn(5, Permutation.random(run.spec, torch.Generator().manual_seed(0)))
        run.beta, run.metrics[1] = 1.5, {"train-loss": 0.5}
        checkpoints.write(run, 1, START)
    path = folder / "round-000001"
    arrays, meta = (path / "arrays.safetensors").read_bytes(), json.loads((path / "meta.json").read_text())
    length = int.from_bytes(arrays[:8], "little")
    document = {
        "inner": name,
        "meta": meta,
        "header": json.loads(arrays[8 : 8 + length]),
        "numbers": arrays[8 + length :].hex(),
    }
    return json.dumps(document).encode()


def mutate(data, rng):
    """The strategy stays, and of what differs most (the generators' states) not every change is made."""
    document = json.loads(data)
    part = rng.choice(("meta", "meta", "header", "numbers"))
    if part == "numbers":
        document[part] = mutate_bytes(bytes.fromhex(document[part]), rng).hex()
        return json.dumps(document).encode()
    whole = document[part]
    key = rng.choice(sorted(whole)) if isinstance(whole, dict) and whole and rng.random() < 0.8 else None
    changed = mutate_document(json.dumps(whole if key is None else whole[key]).encode(), rng)
    try:
        changed = json.loads(changed)
    except (ValueError, RecursionError):
        changed = None
    if key is None:
        document[part] = changed
    else:
        whole[key] = changed
    return json.dumps(document).encode()


def check_in(folder):
    def check(data):
        document = parsed(data)
        path = folder / "run" / "round-000001"
        shutil.rmtree(path.parent, ignore_errors=True)
        path.mkdir(parents=True)
        try:
            header = json.dumps(document["header"]).encode()
            numbers = bytes.fromhex(document["numbers"])
        except (KeyError, TypeError, ValueError) as error:
            raise CannotTravel from error
        arrays = len(header).to_bytes(8, "little") + header + numbers
        meta = json.dumps(document["meta"]).encode()
        sums = [
            f"{hashlib.sha256(b).hexdigest()}  {n}\n" for b, n in ((arrays, "arrays.safetensors"), (meta, "meta.json"))
        ]
        (path / "arrays.safetensors").write_bytes(arrays)
        (path / "meta.json").write_bytes(meta)
        (path / "SHA256SUMS").write_text("".join(sums))
        checkpoints, run, strategy = made(path.parent, document["inner"])
        before = dict(vars(strategy))
        with checkpoints.opened(run, START, resume=True) as resumed:
            pass
        assert run.done == 1
        assert list(resumed) == list(START)
        for key, array in resumed.items():
            values = array.numpy()
            assert (values.shape, values.dtype) == (START[key].numpy().shape, START[key].numpy().dtype)
            assert np.isfinite(values).all(), "a model that is not finite"
        assert vars(strategy).keys() == before.keys()
        for name, value in vars(strategy).items():
            arrays = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
            assert all(np.isfinite(one).all() for one in arrays if isinstance(one, np.ndarray)), f"{name} is not finite"
            if isinstance(value, int | float):
                assert np.isfinite(value), f"{name} is not finite"
        assert all(isinstance(number, int) for number in run.metrics)

    return check


def seeds_in(folder):
    return lambda: [written(folder / "run", name) for name in INNER]


def target_in(folder):
    return Target("checkpoints", seeds_in(folder), check_in(folder), mutate)


def test_a_run_goes_on_from_a_sane_state_or_not_at_all(tmp_path):
    assert_nothing_found(target_in(tmp_path), cases=150)


def test_momenta_are_among_the_seeds(tmp_path):
    for data in seeds_in(tmp_path)():
        document = json.loads(data)
        header = json.dumps(document["header"]).encode()
        arrays = load(len(header).to_bytes(8, "little") + header + bytes.fromhex(document["numbers"]))
        assert {key.partition("/")[0] for key in arrays} == {"global", "inner", "frames"}
        assert save(arrays)
