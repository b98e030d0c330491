"""Online and target networks, the optimiser, `act` and `update`; the only caller of torch.compile.

Two functions are compiled, each whole (`fullgraph=True`) and with static shapes: the Q-values to act on, and the loss.
Scalars that change (epsilon, learning rate, counters) are 0-d tensors changed in place, and so are the weights: a
Python number would recompile, a rebound tensor would be lost to a captured graph. N transitions, B envs, A actions.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fastdqn import losses, rng
from fastdqn.exploration import epsilon_greedy


class Learner:
    """Q-learning on batches of n-step transitions.

    Args:
        network: maps obs to Q-values [B, A]; copied once for the target network.
        optimizer: made over `network.parameters()`.
        double: choose the next action with the online network (Van Hasselt et al. 2016).
        loss: "huber" or "mse", see `losses`.
        max_grad_norm: global norm to which gradients are scaled down; 0 leaves them alone.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizer: torch.optim.Optimizer,
        *,
        double: bool,
        loss: str,
        max_grad_norm: float,
        seed: int,
        compile: bool,
    ) -> None:
        self.online = network
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.optimizer = optimizer
        self._params: list[Tensor] = list(network.parameters())
        self._target_params: list[Tensor] = list(self.target.parameters())
        self._double, self._max_grad_norm = double, max_grad_norm
        self._fused = bool(optimizer.defaults.get("fused"))
        self._elementwise_loss = {"huber": losses.huber, "mse": losses.squared}[loss]
        device = self._params[0].device
        self.epsilon = torch.ones((), device=device)
        self._explore_key = rng.role_key(seed, "explore")
        self.explore_counter = torch.zeros((), dtype=torch.int64, device=device)
        # sums since the last `read_metrics`: loss, mean Q(s, a), gradient norm, updates
        self._sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.compiled = compile
        options: dict[str, Any] = {"fullgraph": True, "dynamic": False}
        self._loss = torch.compile(self.loss, **options) if compile else self.loss
        self._q_values = torch.compile(self.q_values, **options) if compile else self.q_values

    @property
    def compute_dtype(self) -> torch.dtype:
        return getattr(self.online, "compute_dtype", self._params[0].dtype)

    def warm_up(self, obs: Tensor, batch_size: int, learn_threads: int = 1) -> None:
        """Compiles both functions for `obs` [B, ...] as `act` will see it. Changes no weight and no counter.

        A kernel compiled for the CPU keeps the number of threads that torch had at that moment: 1 to act, see the loop.
        """
        torch.set_num_threads(1)
        with torch.no_grad():
            self._q_values(obs)
        torch.set_num_threads(learn_threads)
        batch_obs = obs[:1].expand(batch_size, *obs.shape[1:]).contiguous()
        # distinct tensors: one that is passed twice would be compiled in, and every other batch compiled again
        reward, discount, weight = torch.zeros(3, batch_size, device=obs.device).unbind()
        action = torch.zeros(batch_size, dtype=torch.int64, device=obs.device)
        loss, _ = self._loss(batch_obs, action, reward.clone(), discount.clone(), batch_obs.clone(), weight.clone())
        torch.autograd.grad(loss, self._params)
        self._create_moments()

    def tensors(self) -> list[Tensor]:
        """Everything that acting and learning change in place, after `warm_up`."""
        moments = [value for param in self._params for value in self.optimizer.state[param].values()]
        return [*self._params, *self._target_params, *moments, self.epsilon, self.explore_counter, self._sums]

    def _create_moments(self) -> None:
        """Makes the optimiser's state now, as it is before the first step: a captured graph needs its addresses."""
        for param in self._params:
            param.grad = torch.zeros_like(param)
        self.optimizer.step()  # of zero gradients: changes no weight
        for param in self._params:
            param.grad = None
            for value in self.optimizer.state[param].values():
                value.zero_()

    def q_values(self, obs: Tensor) -> Tensor:
        """Q(s, .) of the online network. float32 [B, A]"""
        return self.online(obs)

    def loss(
        self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Weighted mean TD loss (0-d, with gradient) and Q(s, a) [N] (without)."""
        with torch.no_grad():
            next_target_q_NA = self.target(next_obs)
            if self._double:
                td_target_N = losses.double_q_learning_target(reward, discount, self.online(next_obs), next_target_q_NA)
            else:
                td_target_N = losses.q_learning_target(reward, discount, next_target_q_NA)
        q_N = losses.chosen(self.online(obs), action)
        return losses.weighted_mean(self._elementwise_loss(td_target_N - q_N), weight), q_N.detach()

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Epsilon-greedy actions for a batch of envs. int64 [B]"""
        action_B = epsilon_greedy(self._q_values(obs), self.epsilon, self._explore_key, self.explore_counter)
        self.explore_counter += 1
        return action_B

    def update(
        self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor, weight: Tensor
    ) -> None:
        """One optimiser step on one batch. Nothing returns to the host."""
        loss, q_N = self._loss(obs, action, reward, discount, next_obs, weight)
        grads = torch.autograd.grad(loss, self._params)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        if self._max_grad_norm > 0:
            divisor = ((norm + 1e-6) / self._max_grad_norm).clamp(min=1.0)
            if self._fused:  # the fused step divides by it on its way: no pass over the gradients of its own
                self.optimizer.grad_scale = divisor  # type: ignore[attr-defined]
            else:
                torch._foreach_div_(grads, divisor)
        for param, grad in zip(self._params, grads, strict=True):
            param.grad = grad
        self.optimizer.step()
        self._sums += torch.stack([loss.detach(), q_N.mean(), norm, torch.ones_like(norm)]).double()

    @torch.no_grad()
    def sync_target(self) -> None:
        """Hard update: target <- online, in place."""
        torch._foreach_copy_(self._target_params, self._params)

    def read_metrics(self) -> dict[str, float]:
        """Means since the last call. A host sync: the one per log period."""
        loss, q, norm, updates = self._sums.tolist()
        self._sums.zero_()
        if updates == 0:
            return {}
        return {"losses/td_loss": loss / updates, "losses/q_values": q / updates, "losses/grad_norm": norm / updates}

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint needs of the learner, as named tensors."""
        moments = {
            f"{index}.{name}": value
            for index, param in enumerate(self._params)
            for name, value in self.optimizer.state[param].items()
        }
        return {
            "model": dict(self.online.state_dict()),
            "target": dict(self.target.state_dict()),
            "optimizer": moments,
            "random": {"explore_counter": self.explore_counter},
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restores `state()` in place; the optimiser's moments are made where missing."""
        self.online.load_state_dict(state["model"])
        self.target.load_state_dict(state["target"])
        self.explore_counter.copy_(state["random"]["explore_counter"])
        for name, value in state["optimizer"].items():
            index, key = name.split(".")
            moments = self.optimizer.state[self._params[int(index)]]
            if key in moments:
                moments[key].copy_(value)
            else:
                moments[key] = value.to(self._params[0].device).clone()
