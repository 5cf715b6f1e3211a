"""Two small networks for small images: enough to study training in minutes on a laptop."""

from collections import OrderedDict

from torch import Tensor, nn

from psl.errors import check_count


def cnn(in_channels: int = 1, n_classes: int = 10, width: int = 16) -> nn.Sequential:
    """Return a plain CNN without BatchNorm: two convolutions, pooling, two linear layers.

    Args:
        in_channels: channels of the images. These may have any size from 4 × 4 up; features are pooled to 4 × 4.
        n_classes: number of outputs.
        width: channels of the first convolution; the second has twice as many.

    Raises:
        ScenarioError: `width` is not a whole number of at least 1.
    """
    check_count("width", width)
    layers = {
        "conv1": nn.Conv2d(in_channels, width, 3, padding=1),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(width, 2 * width, 3, padding=1),
        "relu2": nn.ReLU(),
        "pool2": nn.AdaptiveMaxPool2d(4),
        "flatten": nn.Flatten(),
        "linear1": nn.Linear(2 * width * 16, 8 * width),
        "relu3": nn.ReLU(),
        "linear2": nn.Linear(8 * width, n_classes),
    }
    return nn.Sequential(OrderedDict(layers))


class ResidualBlock(nn.Module):
    """Two 3 × 3 convolutions with BatchNorm and a shortcut. No cut lies inside.

    Args:
        in_channels: channels of the input.
        out_channels: channels of the output.
        stride: of the first convolution and the shortcut.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu = nn.ReLU()
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, out_channels, H/stride, W/stride) for x of (b, in_channels, H, W)."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


def thin_resnet(in_channels: int = 1, n_classes: int = 10, width: int = 16) -> nn.Sequential:
    """Return a thin residual network with BatchNorm: a stem, three blocks, global pooling.

    Args:
        in_channels: channels of the images, which may have any size from 4 × 4 up.
        n_classes: number of outputs.
        width: channels of the stem and the first block; each further block doubles them and halves the image.

    Raises:
        ScenarioError: `width` is not a whole number of at least 1.
    """
    check_count("width", width)
    layers = {
        "conv": nn.Conv2d(in_channels, width, 3, padding=1, bias=False),
        "bn": nn.BatchNorm2d(width),
        "relu": nn.ReLU(),
        "block1": ResidualBlock(width, width),
        "block2": ResidualBlock(width, 2 * width, stride=2),
        "block3": ResidualBlock(2 * width, 4 * width, stride=2),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "linear": nn.Linear(4 * width, n_classes),
    }
    return nn.Sequential(OrderedDict(layers))
