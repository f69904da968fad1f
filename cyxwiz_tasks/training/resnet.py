"""ResNet-18 (He et al., 2015, arXiv:1512.03385), with the CIFAR stem for pictures of up to 64 pixels."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

_LARGEST_SMALL_PICTURE = 64


class Block(nn.Module):
    """Two 3x3 convolutions and a way around them."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, pictures: Tensor) -> Tensor:
        inner = functional.relu(self.norm1(self.conv1(pictures)), inplace=True)
        return functional.relu(self.norm2(self.conv2(inner)) + self.shortcut(pictures), inplace=True)


class GlobalMean(nn.Module):
    """The mean over height and width. Adaptive pooling has no deterministic backward pass on a GPU; a mean has."""

    def forward(self, pictures: Tensor) -> Tensor:
        return pictures.mean((2, 3))


def resnet18(input_shape: tuple[int, ...], classes: int) -> nn.Module:
    """11.2 million parameters at 10 classes. `input_shape` is (channels, height, width)."""
    channels, height, width = input_shape
    if max(height, width) <= _LARGEST_SMALL_PICTURE:
        stem: list[nn.Module] = [nn.Conv2d(channels, 64, 3, 1, 1, bias=False)]
        pool: list[nn.Module] = []
    else:
        stem = [nn.Conv2d(channels, 64, 7, 2, 3, bias=False)]
        pool = [nn.MaxPool2d(3, 2, 1)]
    stages = []
    for inputs, outputs, stride in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2)):
        stages += [Block(inputs, outputs, stride), Block(outputs, outputs, 1)]
    head = [GlobalMean(), nn.Linear(512, classes)]
    return nn.Sequential(*stem, nn.BatchNorm2d(64), nn.ReLU(inplace=True), *pool, *stages, *head)
