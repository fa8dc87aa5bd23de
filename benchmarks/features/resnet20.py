"""ResNet-20 for CIFAR-10, whose 64 activations before the last layer are features of 32x32 colour images.

He et al. 2016, arXiv:1512.03385, section 4.2: a 3x3 convolution, three stages of three blocks with 16, 32 and 64
channels, the second and third at half the resolution of the one before, the mean over the places, and a linear layer.
Shortcuts are the identity; where the number of channels changes they take every second row and column and fill the new
channels with zeros (option A), which needs no weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from solvers import InputError

# of the images in [0, 1], by channel, as in the training of resnet20-12fca82f.th
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SHA256 = "12fca82f0bebc4135bf1f32f6e3710e61d5108578464b84fd6d7f5c1b04036c8"  # of resnet20-12fca82f.th


class Block(nn.Module):
    """The residual block relu(shortcut(x) + bn(conv(relu(bn(conv(x)))))): (B, C, H, W) to (B, D, H / s, W / s)."""

    def __init__(self, channels: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.new = stride, outputs - channels

    def forward(self, x: Tensor) -> Tensor:
        inner = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        before = self.new // 2  # half of the zeros stand before the channels of x, half behind them
        shortcut = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new - before))
        out: Tensor = (shortcut + inner).relu()
        return out


def _stage(channels: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(Block(channels, outputs, stride), Block(outputs, outputs, 1), Block(outputs, outputs, 1))


class ResNet20(nn.Module):
    """ResNet-20 for images x (B, 3, 32, 32) in [-1, 1]; returns the logits (B, 10)."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1, self.layer2, self.layer3 = _stage(16, 16, 1), _stage(16, 32, 2), _stage(32, 64, 2)
        self.linear = nn.Linear(64, 10)
        self.register_buffer("mean", torch.tensor(MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("deviation", torch.tensor(DEVIATION).view(3, 1, 1), persistent=False)

    def features(self, x: Tensor) -> Tensor:
        """The means over the places of the last block's channels, (B, 64), of images in [-1, 1]."""
        x = ((x + 1) / 2 - self.mean) / self.deviation
        x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.linear(self.features(x))
        return logits


def load(path: Path) -> ResNet20:
    """The network with the weights of resnet20-12fca82f.th, in evaluation mode.

    Raises:
        InputError: there is no such file, or it is a different one.
    """
    if not path.is_file():
        raise InputError(f"no file {str(path)!r}; expected the state dict resnet20-12fca82f.th")
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != SHA256:
        raise InputError(
            f"{str(path)!r} is not resnet20-12fca82f.th: its SHA-256 is {found[:16]}..., not {SHA256[:16]}..."
        )
    state = torch.load(path, map_location="cpu", weights_only=True)["state_dict"]
    network = ResNet20()
    network.load_state_dict({name.removeprefix("module."): value for name, value in state.items()})
    return network.eval().requires_grad_(False)


def activations(path: str) -> Callable[[Tensor], Tensor]:
    """The features as a benchmark's ``--features``: "features.resnet20:activations(path='resnet20-12fca82f.th')"."""
    return load(Path(path)).features
