"""The model, the data and the training: plain PyTorch that knows nothing of federated learning."""

from functools import lru_cache

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

TEST_EXAMPLES = 450


class Net(nn.Module):
    """A small network for images of 8 x 8 pixels."""

    def __init__(self):
        super().__init__()
        self.fc1 = nn.Linear(64, 128)
        self.fc2 = nn.Linear(128, 128)
        self.fc3 = nn.Linear(128, 10)

    def forward(self, x):
        """Logits of the ten digits, shape ``(n, 10)``."""
        x = torch.relu(self.fc1(x.flatten(1)))
        x = torch.relu(self.fc2(x))
        return self.fc3(x)


@lru_cache
def _digits():
    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images = torch.tensor(digits.images[order] / 8 - 1, dtype=torch.float32).unsqueeze(1)
    labels = torch.tensor(digits.target[order])
    return images, labels


def load_data(partition_id, num_partitions, batch_size):
    """The training examples of one client."""
    images, labels = _digits()
    mine = slice(TEST_EXAMPLES + partition_id, None, num_partitions)
    return DataLoader(TensorDataset(images[mine], labels[mine]), batch_size=batch_size, shuffle=True)


def load_test_data():
    """What the server tests on; no client has seen it."""
    images, labels = _digits()
    return DataLoader(TensorDataset(images[:TEST_EXAMPLES], labels[:TEST_EXAMPLES]), batch_size=256)


def train(net, loader, epochs, lr, device):
    """Train in place; the mean loss of the last epoch."""
    net.to(device).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=lr, weight_decay=3e-3)
    for _ in range(epochs):
        total = 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            total += loss.item()
    return total / len(loader)


@torch.no_grad()
def test(net, loader, device):
    """Mean loss and accuracy."""
    net.to(device).eval()
    loss, correct = 0.0, 0
    for images, labels in loader:
        logits = net(images.to(device)).cpu()
        loss += nn.functional.cross_entropy(logits, labels, reduction="sum").item()
        correct += (logits.argmax(1) == labels).sum().item()
    return loss / len(loader.dataset), correct / len(loader.dataset)
