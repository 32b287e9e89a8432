"""What attackers can do to Flower's robust strategies behind an alignment: accuracy on digits.

Every client has its own initialisation, so that the reference is a client's model, and 3 of 15 clients are attackers.
An entry is "aligned / aligned beforehand": the second one is what the inner strategy makes of the same replies if the
honest ones were aligned among themselves, before any attacker had a say. Where the two agree, alignment adds no way in.

    python benchmarks/attackers.py [--width 128] [--seeds 3]
"""

from __future__ import annotations

import argparse
import logging
from statistics import fmean

from support.attacks import ATTACKS
from support.federation import Remembered, aggregate, aligned_beforehand, robust, train_clients

from fedrebasin import AlignTo, WeightMatching, medoid
from fedrebasin.strategies import Aligned

HONEST, ATTACKERS = 12, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--examples", type=int, default=800)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.ERROR)
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for seed in range(arguments.seeds):
        clients = train_clients(HONEST, ATTACKERS, arguments.width, arguments.examples, arguments.steps, seed)
        matcher = Remembered(WeightMatching(method="coordinate"))
        inners = robust(ATTACKERS), robust((HONEST - 3) // 4)  # Bulyan wants 4 f + 3 replies
        for attack, send in [("none: the honest ones alone", None), *ATTACKS.items()]:
            sent = [*clients.honest, *(send(clients) if send else [])]
            # The same for every inner strategy, so that it is found once: reference="auto" chooses it in each.
            reference = sent[medoid(clients.spec, sent, matcher)]
            beforehand = aligned_beforehand(clients, matcher, sent)
            for name, make in inners[0 if send else 1].items():
                aligned = aggregate(
                    clients, Aligned(make(), spec=clients.spec, aligner=AlignTo(matcher, reference)), sent
                )
                known = aggregate(clients, make(), beforehand)
                found.setdefault((attack, name), []).append((clients.accuracy(aligned), clients.accuracy(known)))
    names = list(robust(1))
    print(f"| attack | {' | '.join(names)} |")
    print("| --- |" + " --- |" * len(names))
    for attack in dict.fromkeys(attack for attack, _ in found):
        cells = []
        for name in names:
            aligned, known = (100 * fmean(values) for values in zip(*found[attack, name], strict=True))
            cells.append(f"{aligned:.1f} / {known:.1f}")
        print(f"| {attack} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
