"""The network: an encoder, a head, and what the head's outputs mean.

B observations, A actions, F features, K outputs per action: 1 value, the logits of the atoms, or quantiles.

    obs --encoder--> [B, F] --( * cosine embedding of tau )--> [B, K or 1, F] --stream--> [B, A, K]
                                                                  dueling: value stream + advantage stream - its mean

`draw` (0-d int64) selects the noise of noisy layers and the quantile fractions of IQN; None is the network without
chance, as it is evaluated: no noise, and fractions spread evenly.
"""

import math
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdqn import encoders, rng
from fastdqn.encoders import norm
from fastdqn.layers import Linear, NoisyLinear, SpectralConv2d

COSINES = 64  # of the embedding of tau; Dabney et al. 2018b


class Prediction(NamedTuple):
    """What a network says of a batch of observations."""

    value: Tensor  # float32 [B, A, K]
    tau: Tensor | None  # float32 [B, K] or [1, K], the fraction of each quantile; None for heads without quantiles


class Stream(nn.Module):
    """Hidden layer and output. [B, K, F] -> float32 [B, K, out]

    The output layer stays in float32: bfloat16 has 8 bits, fewer than the gaps between Q-values of a good state need.
    """

    def __init__(self, features: int, hidden_size: int, out: int, *, layer_norm: bool, noisy: float, key: int) -> None:
        super().__init__()
        if noisy > 0:
            self.hidden: nn.Module = NoisyLinear(features, hidden_size, sigma=noisy, key=key)
            self.out: nn.Module = NoisyLinear(hidden_size, out, sigma=noisy, key=key + 1)
        else:
            self.hidden, self.out = Linear(features, hidden_size), Linear(hidden_size, out)
        self.activation = nn.Sequential(*norm(hidden_size, layer_norm), nn.ReLU())

    def forward(self, features: Tensor, draw: Tensor | None) -> Tensor:
        return self.out(self.activation(self.hidden(features, draw)).float(), draw)


class QNetwork(nn.Module):
    """Q(s, .) for every action, as a value or as the mean of a distribution.

    Args:
        obs_shape: of one observation, (stack, H, W) or (D,).
        encoder: "nature", "wide", "impala" or "mlp", see `encoders`.
        head: "q": the value; "c51": logits of `num_atoms` atoms evenly from -value_limit to value_limit (Bellemare et
            al. 2017); "qrdqn": `num_quantiles` quantiles at fixed fractions (Dabney et al. 2018a); "iqn": quantiles at
            drawn fractions, `num_quantiles` to learn and `num_acting_quantiles` to act (Dabney et al. 2018b).
        dueling: value and advantage streams, joined by subtracting the mean advantage (Wang et al. 2016, equation 9).
        noisy: initial noise of the layers after the encoder (Fortunato et al. 2018); 0: plain layers.
        seed: of the noise and of the fractions.
    """

    def __init__(
        self,
        obs_shape: tuple[int, ...],
        num_actions: int,
        *,
        encoder: str = "nature",
        impala_width: int = 1,
        layer_norm: bool = False,
        spectral_norm: bool = False,
        hidden_size: int = 512,
        head: str = "q",
        num_atoms: int = 51,
        value_limit: float = 10.0,
        num_quantiles: int = 200,
        num_acting_quantiles: int = 32,
        dueling: bool = False,
        noisy: float = 0.0,
        seed: int = 0,
        compute_dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__()
        shape = tuple(obs_shape)
        if encoder == "mlp":
            self.encoder = encoders.mlp(shape, compute_dtype, hidden_size, layer_norm=layer_norm)
        elif encoder == "impala":
            self.encoder = encoders.impala(
                shape, compute_dtype, width=impala_width, layer_norm=layer_norm, spectral_norm=spectral_norm
            )
        else:
            self.encoder = encoders.nature(shape, compute_dtype, layer_norm=layer_norm, wide=encoder == "wide")
        with torch.no_grad():
            example = torch.zeros(1, *shape, dtype=torch.float32 if encoder == "mlp" else torch.uint8)
            features = self.encoder(example).shape[1]
        self.head, self.num_actions, self.compute_dtype = head, num_actions, compute_dtype
        self._num_quantiles, self._num_acting_quantiles = num_quantiles, num_acting_quantiles
        self.outputs = {"q": 1, "c51": num_atoms, "qrdqn": num_quantiles, "iqn": 1}[head]  # of a stream, per action
        key = rng.role_key(seed, "noisy")
        stream = partial(Stream, features, hidden_size, layer_norm=layer_norm, noisy=noisy)
        self.advantage = stream(num_actions * self.outputs, key=key)
        self.value = stream(self.outputs, key=key + 2) if dueling else None
        self.embedding = Linear(COSINES, features) if head == "iqn" else None
        self.register_buffer("_tau_key", torch.tensor(rng.role_key(seed, "tau")), persistent=False)
        self.register_buffer("atoms", torch.linspace(-value_limit, value_limit, num_atoms), persistent=False)
        self.spectral_layers = [layer for layer in self.modules() if isinstance(layer, SpectralConv2d)]

    atoms: Tensor  # float32 [K]
    _tau_key: Tensor  # int64 []

    def forward(self, obs: Tensor, draw: Tensor | None = None) -> Tensor:
        """Q(s, .) to act on. uint8 [B, stack, H, W] or float32 [B, D] -> float32 [B, A]"""
        return self.mean(self._predict(obs, draw, self._num_acting_quantiles).value)

    def predict(self, obs: Tensor, draw: Tensor | None = None) -> Prediction:
        """All that is learned of every action."""
        return self._predict(obs, draw, self._num_quantiles)

    def mean(self, value_BAK: Tensor) -> Tensor:
        """Q(s, .), the mean of what `predict` gives. [B, A]"""
        if self.head == "c51":
            return (value_BAK.softmax(dim=2) * self.atoms).sum(dim=2)
        return value_BAK.mean(dim=2)

    def _predict(self, obs: Tensor, draw: Tensor | None, num_fractions: int) -> Prediction:
        features, tau = self.encoder(obs).unsqueeze(1), None
        B, A = features.shape[0], self.num_actions
        if self.embedding is not None:
            tau = self._fractions(B, num_fractions, draw)
            angles = math.pi * torch.arange(COSINES, device=tau.device) * tau.unsqueeze(2)
            features = features * F.relu(self.embedding(angles.cos().to(features.dtype)))
        elif self.head == "qrdqn":
            tau = self._fractions(1, self._num_quantiles, None)  # at fixed places
        value = self._join(self.advantage(features, draw), A, B)
        if self.value is not None:
            value = self._join(self.value(features, draw), 1, B) + value - value.mean(dim=1, keepdim=True)
        return Prediction(value, tau)

    def _join(self, out: Tensor, actions: int, B: int) -> Tensor:
        """Whatever lies per action, behind the actions: [B, K, A] of IQN or [B, 1, A K] of the others -> [B, A, K]"""
        return out.transpose(1, 2) if self.embedding is not None else out.view(B, actions, self.outputs)

    def _fractions(self, B: int, count: int, draw: Tensor | None) -> Tensor:
        """Quantile fractions: uniform on [0, 1), or without `draw` the middles of equal parts. float32 [B, K]"""
        if draw is None:
            return ((torch.arange(count, device=self.atoms.device) + 0.5) / count).expand(B, count)
        lane = torch.arange(B * count, device=self.atoms.device)
        return rng.uniform(rng.bits(self._tau_key, draw, lane)).view(B, count)


def lecun_init(network: QNetwork) -> None:
    """Draws anew the weights of the layers before a ReLU, normal of variance 1 / inputs, and sets all biases to 0.

    LeCun et al. 1998. Torch's own weights and biases are uniform up to 1 / sqrt(inputs), a variance of 1 / (3 inputs): every
    layer of the Nature CNN weakens what two states differ in, and its biases stay. Where little differs, as on Pong, Adam's
    first thousand steps then move the Q of all states at once, and units that end below 0 on the way never come back
    (benchmarks/LOG.md). Outputs keep torch's weights; noisy and spectral layers have rules of their own.
    """
    outputs = [stream.out for stream in (network.advantage, network.value) if stream is not None]
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and not isinstance(layer, SpectralConv2d):
            if layer not in outputs:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="linear")
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
