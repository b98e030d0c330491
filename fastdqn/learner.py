"""Online, target and acting networks, the optimiser, `act` and `update`.

Compiled are, each whole (`fullgraph=True`) and with static shapes: the choice of actions, the loss, what is decided and
counted between gradient and step, and the step of an optimiser that torch has no fused kernel for.
Scalars that change (epsilon, learning rate, counters) are 0-d tensors changed in place, and so are the weights: a
Python number would recompile, a rebound tensor would be lost to a captured graph. N transitions, B envs, A actions.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch._dynamo.utils
from torch import Tensor

from fastdqn import losses, rng
from fastdqn.exploration import epsilon_greedy
from fastdqn.graphs import preserved
from fastdqn.networks import QNetwork

# Convolutions in channels_last, as cuDNN's bfloat16 kernels want them. By itself torch.compile leaves networks whose
# convolutions have so few channels as they are when it compiles a backward pass (`decide_layout_opt` in its source).
CUDA_COMPILE = {"force_layout_optimization": True}


def compiled_graphs() -> int:
    """How many graphs torch.compile has compiled in this process: if it grows while a run learns, one was compiled again."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


class Learner:
    """Q-learning on batches of n-step transitions, with whatever head `network` has.

    Args:
        network: a `QNetwork`; copied once for the target network.
        optimizer: made over `network.parameters()`; a fused one of torch's, or its RMSprop.
        double: take the next action, or policy, from the online network (Van Hasselt et al. 2016).
        munchausen: None, or (scale, temperature, floor) of Munchausen learning (Vieillard et al. 2020): the policy
            becomes soft, see `losses.munchausen_reward`.
        loss: of the TD error of a head "q": "huber" or "mse"; the other heads have their own.
        polyak: after each update target <- target + polyak * (online - target); 0: `sync_target` alone moves it.
        acting_ema: act with a network of its own, after each update acting <- online + acting_ema * (acting - online),
            which leaves out what the last few steps did at random; 0: with the online network.
        max_grad_norm: global norm to which gradients are scaled down; 0 leaves them alone.
    """

    def __init__(
        self,
        network: QNetwork,
        optimizer: torch.optim.Optimizer,
        *,
        double: bool,
        munchausen: tuple[float, float, float] | None = None,
        loss: str = "huber",
        polyak: float = 0.0,
        acting_ema: float = 0.0,
        max_grad_norm: float,
        seed: int,
        compile: bool,
    ) -> None:
        self.online = network
        self.target = copy.deepcopy(network).requires_grad_(False)
        self.acting = copy.deepcopy(self.target) if acting_ema > 0 else network
        self.optimizer = optimizer
        self.parameters: list[Tensor] = list(network.parameters())
        self._target_params: list[Tensor] = list(self.target.parameters())
        self._buffers, self._target_buffers = _moving(network), _moving(self.target)
        own = acting_ema > 0
        self._acting_params: list[Tensor] = list(self.acting.parameters()) if own else []
        self._acting_buffers = _moving(self.acting) if own else []
        self._double, self._munchausen = double, munchausen
        self._polyak, self._acting_ema, self._max_grad_norm = polyak, acting_ema, max_grad_norm
        self._fused = bool(optimizer.defaults.get("fused"))
        if not self._fused and not isinstance(optimizer, torch.optim.RMSprop):
            raise TypeError(f"optimizer={type(optimizer).__name__}: make it with fused=True")
        self._elementwise_loss = {"huber": losses.huber, "mse": losses.squared}[loss]
        device = self.parameters[0].device
        (group,) = optimizer.param_groups
        group["lr"] = self.learning_rate = torch.tensor(group["lr"], dtype=self.parameters[0].dtype, device=device)
        self._create_moments()
        self.epsilon = torch.ones((), device=device)
        self._explore_key = torch.tensor(rng.role_key(seed, "explore"), device=device)
        # number of the group acted for, and of the update: what selects all randomness of acting and of learning
        self.explore_counter = torch.zeros((), dtype=torch.int64, device=device)
        self.learn_counter = torch.zeros((), dtype=torch.int64, device=device)
        # sums since the last `read_metrics`: loss, mean Q(s, a), spread of Q, gradient norm, updates; of the finite updates
        self._sums = torch.zeros(5, dtype=torch.float64, device=device)
        # updates that were left out because their loss or gradient was not finite: ever, and in a row until now
        self.refused, self.refused_in_a_row = torch.zeros((), device=device), torch.zeros((), device=device)
        self.compiled = compile
        options: dict[str, Any] = {"fullgraph": True, "dynamic": False}
        if device.type == "cuda":
            deterministic = torch.are_deterministic_algorithms_enabled()  # else kernels may be chosen by timing them
            options["options"] = {**CUDA_COMPILE, "deterministic": deterministic}
        self._loss = torch.compile(self.loss, **options) if compile else self.loss
        self._choose = torch.compile(self.choose, **options) if compile else self.choose
        self._account = torch.compile(self._account_once, **options) if compile else self._account_once
        self._rmsprop = torch.compile(self._guarded_rmsprop, **options) if compile else self._guarded_rmsprop

    def warm_up(self, obs: Tensor, batch_size: int, *, act_threads: int = 1, learn_threads: int = 1) -> None:
        """Compiles every function for `obs` [B, ...] as `act` will see it, by using it once. Leaves no trace.

        A kernel compiled for the CPU keeps the number of threads that torch had at that moment.
        """
        batch_obs = obs[:1].expand(batch_size, *obs.shape[1:]).contiguous()
        # distinct tensors: one that is passed twice would be compiled in, and every other batch compiled again
        action = torch.zeros(batch_size, dtype=torch.int64, device=obs.device)
        reward, discount, weight = (torch.zeros(batch_size, device=obs.device) for _ in range(3))
        # one thread, as in a capture: another would have workspaces of its own on a GPU, and choose algorithms once more
        with preserved(self.tensors()), torch.autograd.set_multithreading_enabled(False):
            torch.set_num_threads(act_threads)
            self.act(obs)
            torch.set_num_threads(learn_threads)
            self.step(*self.gradients(batch_obs, action, reward, discount, batch_obs.clone(), weight))

    def tensors(self) -> list[Tensor]:
        """Everything that acting and learning change in place."""
        counters = self.explore_counter, self.learn_counter, self.refused, self.refused_in_a_row
        return [*self.shared(), *self._moments, self.epsilon, self.learning_rate, *counters, self._sums]

    def _create_moments(self) -> None:
        """Makes the optimiser's state now, as it is before the first step: a captured graph needs its addresses."""
        for param in self.parameters:
            param.grad = torch.zeros_like(param)
        with warnings.catch_warnings():  # about steps that are not captured, of an optimiser made for capture
            warnings.filterwarnings("ignore", message=".*capturable=True")
            self.optimizer.step()  # of zero gradients: changes no weight
        for param in self.parameters:
            param.grad = None
        for moment in self._moments:
            moment.zero_()

    def q_values(self, obs: Tensor, group: Tensor) -> Tensor:
        """Q(s, .) of the acting network. float32 [B, A]"""
        return self.acting(obs, 4 * group + 3)

    def choose(self, obs: Tensor, epsilon: Tensor, group: Tensor) -> Tensor:
        """Epsilon-greedy actions of group number `group`. int64 [B]"""
        return epsilon_greedy(self.q_values(obs, group), epsilon, self._explore_key, group)

    def loss(
        self,
        obs: Tensor,
        action: Tensor,
        reward: Tensor,
        discount: Tensor,
        next_obs: Tensor,
        weight: Tensor,
        update: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Weighted mean TD loss (0-d, with gradient), two figures of Q [2] and the size of each TD error [N] (without).

        The figures: the mean of Q(s, a), and the standard deviation over the batch of max_a Q(s, a).
        """
        value_NAK, tau_NK = self.online.predict(obs, 4 * update)
        value_NK = losses.chosen(value_NAK, action)
        with torch.no_grad():
            reward, policy_NA, next_value_NAK = self._look_ahead(obs, action, reward, discount, next_obs, update)
            q_NA = self.online.mean(value_NAK)
            best_N = q_NA.amax(dim=1)
            spread = (best_N - best_N[0]).std(correction=0)  # less one of them: exactly 0 where all are the same
            q = torch.stack([losses.chosen(q_NA.unsqueeze(2), action).mean(), spread])
            if self.online.head == "c51":
                next_probability_NZ = losses.expected(policy_NA, next_value_NAK.softmax(dim=2))
                support_NZ = losses.td_target(reward, discount, self.target.atoms.unsqueeze(0))
                target_NK = losses.project(support_NZ, next_probability_NZ, self.target.atoms)
            else:
                target_NK = losses.td_target(reward, discount, losses.expected(policy_NA, next_value_NAK))
        if self.online.head == "c51":
            loss_N = losses.kl_divergence(target_NK, value_NK)
            size_N = loss_N.detach()  # the priority of Hessel et al. 2018
        elif tau_NK is None:
            td_error_N = (target_NK - value_NK).squeeze(1)
            loss_N, size_N = self._elementwise_loss(td_error_N), td_error_N.detach().abs()
        else:
            loss_N = losses.quantile_huber(value_NK, tau_NK, target_NK)
            size_N = (target_NK.unsqueeze(1) - value_NK.detach().unsqueeze(2)).abs().mean(dim=(1, 2))
        return losses.weighted_mean(loss_N, weight), q, size_N

    def _look_ahead(
        self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor, update: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Reward [N], the policy pi(.|s') [N, A] and the target network's outputs at s' [N, A, K].

        Passes have draws of their own: 4 k for the online network at s, 4 k + 1 for the target at s', 4 k + 2 for what
        Double and Munchausen add, 4 k + 3 to act, where k counts the updates, or the groups.
        """
        next_value_NAK, _ = self.target.predict(next_obs, 4 * update + 1)
        next_q_NA = self.online(next_obs, 4 * update + 2) if self._double else self.target.mean(next_value_NAK)
        if self._munchausen is None:
            return reward, losses.greedy(next_q_NA), next_value_NAK
        scale, temperature, floor = self._munchausen
        next_log_policy_NA = losses.log_policy(next_q_NA, temperature)
        log_policy_NA = losses.log_policy(self.target(obs, 4 * update + 2), temperature)
        reward = losses.munchausen_reward(
            reward, discount, log_policy_NA.gather(1, action.unsqueeze(1)).squeeze(1), next_log_policy_NA,
            temperature=temperature, scale=scale, floor=floor,
        )  # fmt: skip
        return reward, (next_log_policy_NA / temperature).exp(), next_value_NAK

    def shared(self) -> list[Tensor]:
        """What has to be the same on all ranks before the first update; the optimiser's moments follow from it."""
        params = *self.parameters, *self._target_params, *self._acting_params
        return [tensor.detach() for tensor in (*params, *self._buffers, *self._target_buffers, *self._acting_buffers)]

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Epsilon-greedy actions for a batch of envs. int64 [B]"""
        action_B = self._choose(obs, self.epsilon, self.explore_counter)
        self.explore_counter += 1
        return action_B

    def update(
        self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor, weight: Tensor
    ) -> Tensor:
        """One optimiser step on one batch. Returns the size of each TD error, [N]; nothing returns to the host.

        With a loss or gradient that is not finite weights and moments stay as they are, and the update is counted.
        """
        grads_and_figures, size_N = self.gradients(obs, action, reward, discount, next_obs, weight)
        return self.step(grads_and_figures, size_N)

    def gradients(
        self, obs: Tensor, action: Tensor, reward: Tensor, discount: Tensor, next_obs: Tensor, weight: Tensor
    ) -> tuple[list[Tensor], Tensor]:
        """The first half of an update: each parameter's gradient, then the loss and two figures of Q; and the sizes [N].

        A convolution on channels_last activations returns its weight's gradient in that layout, and torch's fused Adam
        reads memory in order: on a CPU it would step along a scrambled gradient without a word.
        """
        for layer in self.online.spectral_layers:
            layer.iterate()
        loss, q, size_N = self._loss(obs, action, reward, discount, next_obs, weight, self.learn_counter)
        grads = [grad.contiguous() for grad in torch.autograd.grad(loss, self.parameters)]
        return [*grads, loss.detach(), *q.unbind()], size_N

    def step(self, grads_and_figures: Sequence[Tensor], size_N: Tensor) -> Tensor:
        """The second half: steps along what `gradients` gave, or along its mean over several ranks."""
        *grads, loss, q, spread = grads_and_figures
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        divisor, bad = self._account(loss, q, spread, norm)
        self._step(grads, divisor, bad)
        if self._polyak > 0:
            self._follow(self._target_params, self._target_buffers, self._polyak)
        if self._acting_ema > 0:
            self._follow(self._acting_params, self._acting_buffers, 1 - self._acting_ema)
        return torch.where(bad > 0, 0.0, size_N)

    def _account_once(self, loss: Tensor, q: Tensor, spread: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        """By what to divide the gradient, and 1.0 if loss or gradient is not finite, else 0.0; counts the update. 0-d"""
        bad = ~(torch.isfinite(norm) & torch.isfinite(loss))
        divisor = torch.ones_like(norm)
        if self._max_grad_norm > 0:
            divisor = ((norm + 1e-6) / self._max_grad_norm).clamp(min=1.0)
        self.learn_counter += 1
        self.refused += bad
        self.refused_in_a_row.add_(1).mul_(bad)
        figures = torch.stack([loss, q, spread, norm, torch.ones_like(norm)])
        self._sums += torch.where(bad, 0.0, figures).double()
        return divisor.float(), bad.float()

    def _step(self, grads: Sequence[Tensor], divisor: Tensor, bad: Tensor) -> None:
        """Clips and steps, or leaves weights and moments as they are; without a branch, for a graph has none."""
        if self._fused:  # a fused step divides on its way, with no pass over the gradients of its own
            self.optimizer.grad_scale, self.optimizer.found_inf = divisor, bad  # type: ignore[attr-defined]
            for param, grad in zip(self.parameters, grads, strict=True):
                param.grad = grad
            self.optimizer.step()
            return
        states = [self.optimizer.state[param] for param in self.parameters]
        self._rmsprop(
            self.parameters,
            list(grads),  # of a type that warm-up has seen too
            divisor,
            bad,
            [state["square_avg"] for state in states],
            [state["grad_avg"] for state in states if "grad_avg" in state],
            [state["step"] for state in states],
        )

    @torch.no_grad()
    def _guarded_rmsprop(
        self, params: list[Tensor], grads: Sequence[Tensor], divisor: Tensor, bad: Tensor,
        square_avgs: list[Tensor], grad_avgs: list[Tensor], steps: list[Tensor],
    ) -> None:  # fmt: skip
        """RMSprop as torch's: g / (sqrt(E[g^2] - E[g]^2) + eps), E[g] where it is centred; where `bad` is 1 nothing moves.

        Compiled it is one pass over each tensor. Torch's own takes no learning rate in a tensor here.
        """
        group = self.optimizer.param_groups[0]
        decay, eps = group["alpha"], group["eps"]

        def move(tensor: Tensor, towards: Tensor) -> Tensor:
            return tensor.copy_(torch.where(bad > 0, tensor, towards))

        for index, (param, grad, square_avg) in enumerate(zip(params, grads, square_avgs, strict=True)):
            grad = grad / divisor
            variance = move(square_avg, decay * square_avg + (1 - decay) * grad**2)
            if grad_avgs:
                variance = variance - move(grad_avgs[index], torch.lerp(grad_avgs[index], grad, 1 - decay)) ** 2
                variance = variance.clamp(
                    min=0
                )  # rounding makes that of a constant gradient negative; torch's own is NaN
            move(param, param - self.learning_rate * grad / (variance.sqrt() + eps))
        for step in steps:
            move(step, step + 1)

    @property
    def _moments(self) -> list[Tensor]:
        """The optimiser's state."""
        state = (value for param in self.parameters for value in self.optimizer.state[param].values())
        return [value for value in state if isinstance(value, Tensor)]

    @torch.no_grad()
    def _follow(self, params: list[Tensor], buffers: list[Tensor], share: float) -> None:
        """Moves another network by `share` of its way to the online one: Lillicrap et al. 2016, after Polyak."""
        torch._foreach_lerp_(params, self.parameters, share)
        if buffers:
            torch._foreach_copy_(buffers, self._buffers)

    @torch.no_grad()
    def sync_target(self) -> None:
        """Hard update: target <- online, in place."""
        torch._foreach_copy_(self._target_params + self._target_buffers, self.parameters + self._buffers)

    def read_metrics(self) -> tuple[dict[str, float], int, int]:
        """Means since the last call, {} without an update; and the updates left out because they were not finite: ever,
        and in a row until now. A host sync: the one per log period.
        """
        refused = torch.stack([self.refused, self.refused_in_a_row]).double()
        *sums, updates, ever, in_a_row = torch.cat([self._sums, refused]).tolist()
        self._sums.zero_()
        names = ("losses/td_loss", "losses/q_values", "losses/q_spread", "losses/grad_norm") if updates > 0 else ()
        return {name: total / updates for name, total in zip(names, sums, strict=False)}, int(ever), int(in_a_row)

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Everything a checkpoint needs of the learner, as named tensors."""
        moments = {
            f"{index}.{name}": value
            for index, param in enumerate(self.parameters)
            for name, value in self.optimizer.state[param].items()
        }
        return {
            "model": dict(self.online.state_dict()),
            "target": dict(self.target.state_dict()),
            **({"acting": dict(self.acting.state_dict())} if self._acting_ema > 0 else {}),
            "optimizer": moments,
            "random": {"explore_counter": self.explore_counter, "learn_counter": self.learn_counter},
        }

    @torch.no_grad()
    def load_state(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Restores `state()` in place.

        Raises:
            ValueError: it is the state of another network or optimiser; nothing has changed.
        """
        own = self._flat(self.state())
        given = self._flat(state)
        for name in sorted(own.keys() | given.keys()):
            there, here = (tuple(one[name].shape) if name in one else None for one in (given, own))
            if there != here:
                raise ValueError(
                    f"config.toml: not what this checkpoint was trained with ({name} is {there} in the checkpoint, "
                    f"{here} by config.toml); restore it"
                )
        for name, tensor in own.items():
            tensor.copy_(given[name])

    @staticmethod
    def _flat(state: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
        return {f"{group}/{name}": tensor for group, tensors in state.items() for name, tensor in tensors.items()}


def _moving(network: QNetwork) -> list[Tensor]:
    """The buffers that follow another network's: not the keys of noise and fractions, which every rank has for itself."""
    return [buffer for buffer in network.buffers() if buffer.is_floating_point()]
