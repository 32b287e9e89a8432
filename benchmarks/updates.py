"""How short what clients send is, measured by the global model: updates, and models of every kind that is honest.

    python benchmarks/updates.py [--seeds 10] [--write]

The share of a reply is the largest, over all tensors of 32 entries or more, of its root mean square to that of the
global model's: where that is below ``SHORT``, users are warned that it may be an update. Digits, an MLP and a
convolutional network with BatchNorm; the global model is untrained, or trained on all data.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from fedrebasin.strategies.replies import looks_like_update, sizes_of
from fedrebasin.strategies.replies.updates import LARGE, SHORT
from support.section import stamp, write_section
from torch import Tensor, nn

from fedrebasin.simulations import load_dataset

State = Mapping[str, Tensor]
#: Steps of SGD with momentum 0.9, or of AdamW: kind, epochs, learning rate.
TRAINED = {
    "SGD, 1 epoch, 0.01": ("sgd", 1, 0.01),
    "SGD, 5 epochs, 0.05": ("sgd", 5, 0.05),
    "AdamW, 1 epoch, 0.001": ("adam", 1, 0.001),
    "AdamW, 5 epochs, 0.003": ("adam", 5, 0.003),
}
FLOOR = 0.5  # a model that is right less often has learned nothing, or unlearned it


def mlp() -> nn.Module:
    """64 inputs, two hidden layers of 64 units, 10 classes."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def cnn() -> nn.Module:
    """Two convolutions with BatchNorm, and a linear layer."""
    return nn.Sequential(
        *(nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)),
    )


def train(
    model: nn.Module, data: tuple[Tensor, Tensor], kind: str, epochs: int, rate: float, decay: float = 0.0
) -> None:
    """In place."""
    parameters = list(model.parameters())
    optimizer = (
        torch.optim.SGD(parameters, rate, momentum=0.9, weight_decay=decay)
        if kind == "sgd"
        else torch.optim.AdamW(parameters, rate, weight_decay=decay)
    )
    model.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(data[0])).split(32):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(data[0][rows]), data[1][rows]).backward()
            optimizer.step()


def share_of(state: State, before: State) -> float:
    """Of the longest large tensor; infinite where no large one of the global model says anything."""
    sizes, expected = sizes_of(state), sizes_of(before)
    shares = [sizes[key] / usual for key, usual in expected.items() if usual and state[key].numel() >= LARGE]
    share = max(shares, default=float("inf"))
    assert (looks_like_update(sizes, expected, state) is not None) == (share < SHORT)
    return share


def replies(seed: int, make: Callable[[], nn.Module], trained: bool) -> list[tuple[str, float, bool]]:
    """What is sent, its share, and whether the model that it makes has learned something."""
    torch.manual_seed(seed)
    data = load_dataset("digits")
    images, labels = data.train_inputs, data.train_labels
    part = torch.randperm(len(images))[:300]
    own = images[part], labels[part]
    start = make()
    if trained:
        train(start, (images, labels), "sgd", 5, 0.05)
    before = {key: tensor.clone() for key, tensor in start.state_dict().items()}

    def sent(name: str, model: nn.Module, settings: tuple[str, int, float], decay: float = 0.0) -> None:
        train(model, own, *settings, decay)
        model.eval()
        with torch.no_grad():
            works = bool((model(images).argmax(1) == labels).float().mean() > FLOOR)
        after = model.state_dict()
        found.append((f"model: {name}", share_of(after, before), works))
        if name in TRAINED:
            update = {key: after[key] - before[key] for key in after}
            found.append((f"update: {name}", share_of(update, before), works))

    def again(factor: float | None = None) -> nn.Module:
        model = make()
        if factor is None:
            model.load_state_dict(before)
        else:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.mul_(factor)
        return model

    found: list[tuple[str, float, bool]] = []
    for name, settings in TRAINED.items():
        sent(name, again(), settings)
    for decay in (0.01, 0.05, 0.1, 0.3):
        sent(f"SGD, 10 epochs, weight decay {decay}", again(), ("sgd", 10, 0.05), decay)
    sent("AdamW, 10 epochs, weight decay 1", again(), ("adam", 10, 0.003), 1.0)
    for factor in (1.0, 0.3, 0.1):
        sent(f"own initialisation, times {factor}", again(factor), ("sgd", 10, 0.05))
    return found + lora(seed)


def lora(seed: int) -> list[tuple[str, float, bool]]:
    """Adapters of rank 4, B zero at first, trained by AdamW towards random targets."""
    torch.manual_seed(seed)
    base, inputs, targets = torch.randn(64, 64) / 8, torch.randn(256, 64), torch.randn(256, 64)
    a, b = (torch.randn(4, 64) * 0.02).requires_grad_(), torch.zeros(64, 4, requires_grad=True)
    before = {"lora_A": a.detach().clone(), "lora_B": b.detach().clone()}
    optimizer = torch.optim.AdamW([a, b], 1e-3)
    for _ in range(50):
        optimizer.zero_grad()
        nn.functional.mse_loss(inputs @ (base + b @ a).T, targets).backward()
        optimizer.step()
    after = {"lora_A": a.detach(), "lora_B": b.detach()}
    update = {key: after[key] - before[key] for key in after}
    return [("model: LoRA", share_of(after, before), True), ("update: LoRA", share_of(update, before), True)]


def main() -> None:
    """Measure, print, and write the section of the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    table: dict[tuple[str, bool, bool], list[float]] = defaultdict(list)
    for seed in range(arguments.seeds):
        for make in (mlp, cnn):
            for trained in (False, True):
                for name, share, works in replies(seed, make, trained):
                    table[name, trained, works].append(share)
    lines = [
        f"What is sent is warned of where its share is below {SHORT}; {arguments.seeds} seeds, two networks.",
        "",
        "| sent | global model | learned | runs | least | mean | largest | warned of |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for (name, trained, works), shares in sorted(table.items()):
        about = "trained" if trained else "untrained", "yes" if works else "no", str(len(shares))
        numbers = (f"{number:.3f}" for number in (min(shares), sum(shares) / len(shares), max(shares)))
        warned = sum(share < SHORT for share in shares)
        lines.append(f"| {name} | {' | '.join(about)} | {' | '.join(numbers)} | {warned} |")
    print("\n".join(lines))
    if arguments.write:
        write_section("## Updates", ["`python benchmarks/updates.py --write`:", stamp(), "", *lines])


if __name__ == "__main__":
    main()
