"""Three models of the zoo that no library has: a U-Net, an LSTM and a Transformer of torch's own layers."""

import torch
from torch import Tensor, nn

VOCABULARY = 99


class UNet(nn.Module):
    """Two halvings, two doublings, a skip at each size."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.down1 = self.block(3, width)
        self.down2 = self.block(width, 2 * width)
        self.bottom = self.block(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.join2 = self.block(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.join1 = self.block(2 * width, width)
        self.pool = nn.MaxPool2d(2)
        self.head = nn.Conv2d(width, 2, 1)

    @staticmethod
    def block(n_in: int, n_out: int) -> nn.Sequential:
        """Return two convolutions with BatchNorm."""
        layers = []
        for n in (n_in, n_out):
            layers += [nn.Conv2d(n, n_out, 3, padding=1), nn.BatchNorm2d(n_out), nn.ReLU(inplace=True)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, 2, H, W) for images of (b, 3, H, W)."""
        a = self.down1(x)
        b = self.down2(self.pool(a))
        c = self.bottom(self.pool(b))
        b = self.join2(torch.cat([self.up2(c), b], 1))
        return self.head(self.join1(torch.cat([self.up1(b), a], 1)))


class LSTMClassifier(nn.Module):
    """Token ids to classes: embedding, two LSTM layers, the last state."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.lstm = nn.LSTM(16, 16, num_layers=2, batch_first=True)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (b, 5) for token ids of (b, length)."""
        outputs, _ = self.lstm(self.embedding(ids))
        return self.head(self.dropout(outputs[:, -1]))


class TransformerClassifier(nn.Module):
    """Token ids to classes: embedding, learned positions, nn.TransformerEncoder, the mean over the length."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.positions = nn.Parameter(0.1 * torch.randn(64, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.head = nn.Linear(16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        """Return (b, 5) for token ids of (b, length)."""
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        return self.head(self.encoder(x).mean(1))
