"""fastdqn against stable-baselines3, Tianshou and torchrl: env steps per second while learning, on one machine.

    python -m benchmarks.peers [--env Breakout] [--replay-ratio 8] [--seconds 20] [--repeats 3] [--quick] [--json OUT]

Every competitor plays the same game with the Nature network at the same replay ratio (transitions sampled per transition
generated), replay capacity and epsilon, in a process of its own, and only one process runs at a time. A round measures
all of them once; rounds alternate between forward and backward order, so that drift of a shared machine cancels, and
fastdqn is divided by a peer only within a round. A window begins once updates have run for a while, so building, compiling
and filling the memory are outside it, and it consists of whole iterations of the competitor's own loop.

    as shipped  each library with the envs, batch and thread settings of its own Atari example, and fastdqn a second
                time at their batch size
    matched     as many envs, batch size and threads as fastdqn

The peers are installed apart from fastdqn, because they need older versions of what it runs on: see INSTALL.
"""

import argparse
import contextlib
import importlib.util
import io
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from importlib import metadata
from pathlib import Path

import torch

from benchmarks.publish import arguments, machine, write
from benchmarks.timing import device_of, last_json, ratios, spread, synchronise, turns
from fastdqn.config import Config
from fastdqn.machine import hardware
from fastdqn.parts import resolve_threads

# not with constraints.txt: torchrl pins an older tensordict than the one there, and Tianshou 2 an older filelock
INSTALL = "pip install -e '.[bench]' torch==2.13.0  # in a virtual environment of its own"
NEEDS = {
    "fastdqn": ["envpool"],
    "stable-baselines3": ["stable_baselines3", "ale_py", "cv2"],
    "tianshou": ["tianshou", "envpool"],
    "torchrl": ["torchrl", "treevalue", "ale_py", "cv2"],
}
FRAMES_PER_STEP = 4  # of Atari games, which are all that is played here
SHIPPED_BATCH = 32  # of the peers' own Atari settings, all three of them
EPSILON = 0.1  # of every competitor, from the first update on: the share of random actions alone moves the games' rate
LEARNING_STARTS = 2_000  # env steps
WARM_UP_SECONDS = 2.0  # of updates before the window


@dataclass(frozen=True)
class Task:
    """What one competitor has to do. 0 threads: whatever the library does by itself."""

    library: str
    game: str
    num_envs: int
    batch_size: int
    replay_ratio: float
    replay_capacity: int
    env_threads: int
    torch_threads: int
    device: str
    seconds: float
    on_envpool: bool = True  # where a library has the choice
    plain: bool = False  # fastdqn only: 1-step returns and no Double DQN, as stable-baselines3 and torchrl have it

    @property
    def updates_per_step(self) -> Fraction:
        """Updates per env step."""
        return Fraction(str(self.replay_ratio)) / self.batch_size


Iterate = Callable[[], tuple[int, int]]  # one iteration of a training loop -> (env steps, updates) since it was built


def fastdqn(task: Task, folder: str) -> Iterate:
    """The loop of `fastdqn train` with Config's defaults at the task's replay ratio, or as plain DQN."""
    from fastdqn.run import Run
    from fastdqn.trainer import step_group

    run = Run(
        replace(
            Config(), env=task.game, num_envs=task.num_envs, batch_size=task.batch_size, replay_ratio=task.replay_ratio,
            replay_capacity=task.replay_capacity, learning_starts=LEARNING_STARTS, epsilon_end=EPSILON,
            epsilon_decay_steps=0, env_threads=task.env_threads, torch_threads=task.torch_threads, device=task.device,
            total_frames=10**12, checkpoint_period_frames=10**12, ui="quiet", run_dir=f"{folder}/run",
            double=not task.plain, n_step=1 if task.plain else Config.n_step,
        ),
        ["bench"],
    )  # fmt: skip
    run.envs.start()

    def iterate() -> tuple[int, int]:
        step_group(run)
        if run.logging:
            run.log()
        return run.clock.env_steps, run.clock.updates

    return iterate


def stable_baselines3(task: Task, folder: str) -> Iterate:
    """Its DQN with CnnPolicy on make_atari_env, 4 env steps per game between updates: RL Zoo's Atari settings."""
    import ale_py  # type: ignore
    import gymnasium
    from stable_baselines3 import DQN  # type: ignore
    from stable_baselines3.common.env_util import make_atari_env  # type: ignore
    from stable_baselines3.common.vec_env import VecFrameStack  # type: ignore

    gymnasium.register_envs(ale_py)
    per_turn = task.updates_per_step * task.num_envs
    turns = -(-4 // per_turn.denominator) * per_turn.denominator  # the fewest from 4 on with a whole number of updates
    env = VecFrameStack(make_atari_env(f"{task.game}NoFrameskip-v4", n_envs=task.num_envs, seed=1), n_stack=4)
    model = DQN(
        "CnnPolicy", env, learning_rate=1e-4, buffer_size=task.replay_capacity, learning_starts=LEARNING_STARTS,
        batch_size=task.batch_size, train_freq=turns, gradient_steps=int(turns * per_turn), target_update_interval=1_000,
        exploration_initial_eps=EPSILON, exploration_final_eps=EPSILON, device=task.device, seed=1,
    )  # fmt: skip

    rollout = turns * task.num_envs
    chunk = -(-128 // rollout) * rollout  # so that entering learn() does not count

    def iterate() -> tuple[int, int]:
        model.learn(chunk, reset_num_timesteps=False, log_interval=None)  # type: ignore[arg-type]
        return model.num_timesteps, model._n_updates

    return iterate


def tianshou(task: Task, folder: str) -> Iterate:
    """Its DQN on EnvPool with the replay buffer, Collector and settings of its Atari example, trainer and logs left out."""
    import envpool
    from tianshou.algorithm import DQN  # type: ignore
    from tianshou.algorithm.modelfree.dqn import DiscreteQLearningPolicy  # type: ignore
    from tianshou.algorithm.optim import AdamOptimizerFactory  # type: ignore
    from tianshou.data import Collector, VectorReplayBuffer  # type: ignore
    from tianshou.env.atari.atari_network import DQNet  # type: ignore
    from tianshou.utils.torch_utils import policy_within_training_step  # type: ignore

    threads = {"num_threads": task.env_threads} if task.env_threads else {}
    env = envpool.make_gymnasium(
        f"{task.game}-v5", num_envs=task.num_envs, seed=1, stack_num=4, episodic_life=True, reward_clip=True, **threads
    )
    network = DQNet(4, 84, 84, int(env.action_space.n)).to(hardware.resolve_device(task.device))  # type: ignore
    policy = DiscreteQLearningPolicy(
        model=network, action_space=env.action_space, eps_training=EPSILON, eps_inference=EPSILON
    )
    algorithm = DQN(
        policy=policy, optim=AdamOptimizerFactory(lr=1e-4), gamma=0.99, n_step_return_horizon=3, target_update_freq=500
    )
    buffer = VectorReplayBuffer(
        task.replay_capacity, buffer_num=task.num_envs, ignore_obs_next=True, save_only_last_obs=True, stack_num=4
    )
    collector = Collector(algorithm, env, buffer, exploration_noise=True)
    collector.reset()
    steps = updates = 0

    def iterate() -> tuple[int, int]:
        nonlocal steps, updates
        with policy_within_training_step(policy):
            steps += collector.collect(n_step=task.num_envs).n_collected_steps
            while updates < (steps - LEARNING_STARTS) * task.updates_per_step:
                algorithm.update(buffer=buffer, sample_size=task.batch_size)
                updates += 1
        return steps, updates

    return iterate


def torchrl(task: Task, folder: str) -> Iterate:
    """Its DQN reference script: Collector, TensorDictReplayBuffer, DQNLoss, HardUpdate, 400 env steps a collection."""
    import gymnasium
    import numpy as np
    from tensordict.nn import TensorDictSequential
    from torchrl.collectors import Collector  # type: ignore
    from torchrl.data import Composite, LazyTensorStorage, TensorDictReplayBuffer  # type: ignore
    from torchrl.envs import GymWrapper, MultiThreadedEnv  # type: ignore
    from torchrl.modules import MLP, ConvNet, EGreedyModule, QValueActor  # type: ignore
    from torchrl.objectives import DQNLoss, HardUpdate  # type: ignore

    class OnEnvPool(MultiThreadedEnv):
        def _make_specs(self, env: object) -> None:
            """As torchrl's, which asks for the old gym's spaces, where EnvPool 1 has gymnasium's and the wrapper fails."""
            self.action_spec, specs = self._get_action_spec(), self._get_output_spec()
            self.observation_spec = specs["full_observation_spec"]
            self.reward_spec, self.done_spec = specs["full_reward_spec"], specs["full_done_spec"]

    device = hardware.resolve_device(task.device)
    if task.on_envpool:
        settings = {"stack_num": 4, "episodic_life": True, "reward_clip": True, "seed": 1}
        settings |= {"num_threads": task.env_threads} if task.env_threads else {}
        env = OnEnvPool(task.num_envs, f"{task.game}-v5", create_env_kwargs=settings)
    else:
        import ale_py  # type: ignore

        gymnasium.register_envs(ale_py)
        screen = gymnasium.make(f"{task.game}NoFrameskip-v4")
        screen = gymnasium.wrappers.AtariPreprocessing(screen, terminal_on_life_loss=True)
        screen = gymnasium.wrappers.TransformReward(screen, lambda reward: float(np.sign(float(reward))))
        env = GymWrapper(gymnasium.wrappers.FrameStackObservation(screen, 4), categorical_action_encoding=True)
    actions = int(env.action_spec.space.n)

    class Scale(torch.nn.Module):
        """uint8 screens become floats here, not in the replay buffer, where they would take four times the memory."""

        def forward(self, obs: torch.Tensor) -> torch.Tensor:
            return obs / 255

    network = torch.nn.Sequential(
        Scale(),
        ConvNet(num_cells=[32, 64, 64], kernel_sizes=[8, 4, 3], strides=[4, 2, 1], activation_class=torch.nn.ReLU),
        MLP(in_features=3136, out_features=actions, num_cells=[512], activation_class=torch.nn.ReLU),
    )
    network(torch.zeros(1, 4, 84, 84))  # the convolutions learn their channels from the first batch
    model = QValueActor(network, spec=Composite(action=env.action_spec, shape=env.batch_size), in_keys=["observation"])
    model = model.to(device)
    explore = EGreedyModule(spec=model.spec, eps_init=EPSILON, eps_end=EPSILON, device=device)
    frames = -(-400 // task.num_envs) * task.num_envs
    collector = Collector(
        env, TensorDictSequential(model, explore), frames_per_batch=frames, total_frames=-1,
        policy_device=device, storing_device="cpu",
    )  # fmt: skip
    buffer = TensorDictReplayBuffer(storage=LazyTensorStorage(task.replay_capacity), batch_size=task.batch_size)
    loss_module = DQNLoss(model, loss_function="l2", delay_value=True)
    loss_module.make_value_estimator(gamma=0.99)
    target = HardUpdate(loss_module, value_network_update_interval=10_000)
    parameters = list(loss_module.parameters())
    optimizer = torch.optim.Adam(parameters, lr=2.5e-4)
    batches = iter(collector)
    steps = updates = 0

    def iterate() -> tuple[int, int]:
        nonlocal steps, updates
        data = next(batches).reshape(-1)
        for key in ("reward", "done", "terminated", "truncated"):
            if data["next", key].ndim == 1:  # EnvPool's wrapper leaves out the last axis, which the loss wants
                data["next", key] = data["next", key].unsqueeze(-1)
        buffer.extend(data.select("observation", "action", "next"))
        steps += data.numel()
        while updates < (steps - LEARNING_STARTS) * task.updates_per_step:
            loss = loss_module(buffer.sample().to(device))["loss"]
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 10)
            optimizer.step()
            target.step()
            updates += 1
        return steps, updates

    return iterate


COMPETITORS = {
    "fastdqn": fastdqn,
    "stable-baselines3": stable_baselines3,
    "tianshou": tianshou,
    "torchrl": torchrl,
}


def measure(task: Task) -> dict:
    """Env steps, updates and seconds of one window of whole iterations, in this process."""
    from fastdqn.trainer import no_garbage_collection

    if task.torch_threads:
        torch.set_num_threads(task.torch_threads)
    with tempfile.TemporaryDirectory() as folder:
        iterate = COMPETITORS[task.library](task, folder)
        # fastdqn's own loop runs without the garbage collector, its peers' loops with it
        with no_garbage_collection() if task.library == "fastdqn" else contextlib.nullcontext():
            steps, updates = iterate()
            while updates == 0:
                steps, updates = iterate()
            warm = time.perf_counter() + WARM_UP_SECONDS
            while time.perf_counter() < warm:
                steps, updates = iterate()
            return _window(iterate, steps, updates, task.seconds, hardware.resolve_device(task.device))


def _window(iterate: Iterate, steps: int, updates: int, seconds: float, device: torch.device) -> dict:
    synchronise(device)
    others = _other_seconds()
    started, last_steps, last_updates = time.perf_counter(), steps, updates
    while time.perf_counter() - started < seconds:
        last_steps, last_updates = iterate()
    synchronise(device)
    elapsed = time.perf_counter() - started
    return {
        "env_steps": last_steps - steps,
        "updates": last_updates - updates,
        "seconds": elapsed,
        "torch_threads": torch.get_num_threads(),
        "other_cores": round(max(_other_seconds() - others, 0.0) / elapsed, 2),
    }


def _other_seconds() -> float:
    """CPU seconds since boot that were not this process's: of other programs, the kernel and the hypervisor's guests.

    A peer that uses all cores falls by a factor of ten while another program takes one, so the tables show it.
    """
    try:
        user, nice, system, _, _, irq, softirq, steal = map(int, Path("/proc/stat").read_text().split()[1:9])
    except (OSError, ValueError):
        return 0.0
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK") - time.process_time()


def in_own_process(task: Task) -> dict:
    """`measure` in a child process. On failure {"error": one line}."""
    command = [sys.executable, "-m", "benchmarks.peers", "--child", json.dumps(asdict(task))]
    try:
        return last_json(command, timeout=300 + 20 * task.seconds)
    except SystemExit as error:
        return {"error": str(error).splitlines()[-1][:200]}


def missing(library: str) -> list[str]:
    """The modules a competitor needs that are not installed."""
    return [module for module in NEEDS[library] if importlib.util.find_spec(module) is None]


def rounds(tasks: dict[str, Task], repeats: int) -> dict[str, list[dict]]:
    """Every task once per round, forwards and backwards in turn. One that fails is not tried again."""
    found: dict[str, list[dict]] = {name: [] for name in tasks}
    for name in turns(tasks, repeats):
        if any("error" in result for result in found[name]):
            continue
        found[name].append(in_own_process(tasks[name]))
        print(f"round {len(found[name])} of {repeats}: {name}: {found[name][-1]}", file=sys.stderr)
    return found


def row(name: str, task: Task, results: list[dict], own: list[dict]) -> dict:
    """One line of a table. Rates in a second; `ratio` is fastdqn / this one, round by round."""
    settings = {"name": name, **asdict(task), "env_threads": env_threads(task)}
    errors = [result["error"] for result in (*results, *own) if "error" in result]
    if errors:
        return {**settings, "error": errors[0]}
    rates = [result["env_steps"] / result["seconds"] for result in results]
    own_rates = [result["env_steps"] / result["seconds"] for result in own]
    env_steps, updates = (sum(result[key] for result in results) for key in ("env_steps", "updates"))
    return {
        **settings,
        "torch_threads": results[0]["torch_threads"],
        "env_steps_per_second": spread(rates),
        "measured_replay_ratio": updates * task.batch_size / env_steps,
        "updates_per_second": spread([result["updates"] / result["seconds"] for result in results]),
        "other_cores": max(result["other_cores"] for result in results),
        "ratio": spread(ratios(own_rates, rates)),
        "windows": results,
    }


def env_threads(task: Task) -> int | None:
    """Threads that step the games: EnvPool's; None where the library chooses, 1 where there is no EnvPool."""
    if task.library == "stable-baselines3" or not task.on_envpool:
        return 1
    return task.env_threads or None


def table(title: str, rows: list[dict], notes: list[str]) -> str:
    """One table for people."""
    lines = [
        f"\n{title}",
        f"{'':36}{'envs':>5}{'batch':>7}{'env/torch threads':>19}{'replay':>8}{'env steps/s':>13}{'lowest':>9}"
        f"{'highest':>9}{'frames/s':>10}{'updates/s':>11}{'others':>8}   fastdqn / this one",
    ]
    for entry in rows:
        head = f"{entry['name']:36}{entry['num_envs']:5}{entry['batch_size']:7}"
        if "error" in entry:
            lines.append(f"{entry['name']:36}{entry['error']}")
            continue
        threads = f"{entry['env_threads'] or 'own'}/{entry['torch_threads']}"
        rate, ratio = entry["env_steps_per_second"], entry["ratio"]
        lines.append(
            f"{head}{threads:>19}{entry['measured_replay_ratio']:8.2f}{rate['median']:13,.0f}{rate['lowest']:9,.0f}"
            f"{rate['highest']:9,.0f}{rate['median'] * FRAMES_PER_STEP:10,.0f}"
            f"{entry['updates_per_second']['median']:11,.1f}{entry['other_cores']:8.1f}   "
            f"{ratio['median']:.2f} ({ratio['lowest']:.2f} to {ratio['highest']:.2f})"
        )
    return "\n".join([*lines, *(f"  {note}" for note in notes)])


TITLES = {
    "as shipped": f"batch {SHIPPED_BATCH} and threads of each peer's own; fastdqn with its own, and at that batch",
    "matched": "envs, batch and threads of all as fastdqn's",
}
SHIPPED_NOTES = [
    "threads: fastdqn's as it chooses; of the others, EnvPool's own number and torch's own; 1 for games without EnvPool.",
    "replay: transitions sampled / generated, as measured; set to the same for all.",
    "others: cores taken by other programs in the worst window; near 0 on a quiet machine, else measure again.",
    "stable-baselines3: RL Zoo's Atari settings, games stepped one after another in its own process (DummyVecEnv).",
    "tianshou: its Atari example, but at this replay ratio; the example itself uses 3.2. 3-step Double DQN, on EnvPool.",
    "torchrl: its DQN reference script, but screens are prepared by gymnasium's AtariPreprocessing and stay uint8 in the",
    "replay buffer (faster than the script's own transforms and a quarter of its memory).",
]
MATCHED_NOTES = [
    "the same envs, batch size, torch threads and, on EnvPool, the same number of its threads. Not matched:",
    "stable-baselines3 has no EnvPool: it steps its games one after another in one thread; 1-step returns, no Double DQN.",
    "tianshou waits for all envs each step (its Collector is synchronous); 3-step Double DQN like fastdqn's.",
    "torchrl collects 400 env steps or a little more, then learns; 1-step returns, no Double DQN; its EnvPool wrapper",
    "needed a correction to run on this EnvPool, and counts the reset after a game as an env step, unlike fastdqn.",
    "No peer compiles its network or computes in bfloat16, which fastdqn does where the machine has it.",
]


def main() -> None:
    parser = arguments(__doc__, device=True)
    parser.add_argument("--env", default="Breakout")
    parser.add_argument("--replay-ratio", type=float, default=8.0)
    parser.add_argument("--num-envs", type=int, default=Config.num_envs, help="fastdqn's and the matched peers'")
    parser.add_argument("--batch-size", type=int, default=Config.batch_size, help="fastdqn's and the matched peers'")
    parser.add_argument("--replay-capacity", type=int, default=50_000, help="transitions, of every competitor")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of a window")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--env-threads", type=int, default=0, help="0: as fastdqn train chooses")
    parser.add_argument("--torch-threads", type=int, default=0, help="0: as fastdqn train chooses")
    parser.add_argument("--quick", action="store_true", help="3 rounds with windows of 4 seconds")
    parser.add_argument(
        "--plain", action="store_true", help="fastdqn without Double DQN and with 1-step returns, as SB3's"
    )
    parser.add_argument("--only", default="", help="one library beside fastdqn")
    parser.add_argument("--json", type=Path, help="also write the object to this file")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    flags = parser.parse_args()
    if flags.child:
        with contextlib.redirect_stdout(io.StringIO()):
            result = measure(Task(**json.loads(flags.child)))
        print(json.dumps(result), flush=True)
        return
    seconds, repeats = (4.0, 3) if flags.quick else (flags.seconds, flags.repeats)
    config = replace(
        Config(), env=flags.env, num_envs=flags.num_envs, batch_size=flags.batch_size, device=flags.device,
        env_threads=flags.env_threads, torch_threads=flags.torch_threads, replay_ratio=flags.replay_ratio,
    )  # fmt: skip
    if not config.name.is_atari:
        parser.error(f"--env {flags.env}: give an Atari game")
    threads = resolve_threads(config, device_of(flags.device))
    own = Task(
        library="fastdqn", game=config.name.game, num_envs=flags.num_envs, batch_size=flags.batch_size,
        replay_ratio=flags.replay_ratio, replay_capacity=flags.replay_capacity, env_threads=threads.env,
        torch_threads=threads.learn, device=flags.device, seconds=seconds, plain=flags.plain,
    )  # fmt: skip
    shipped = replace(own, batch_size=SHIPPED_BATCH, env_threads=0, torch_threads=0)
    tables = {
        "as shipped": {
            "fastdqn": own,
            f"fastdqn, batch {SHIPPED_BATCH}": replace(own, batch_size=SHIPPED_BATCH),
            "stable-baselines3, 1 env": replace(shipped, library="stable-baselines3", num_envs=1),
            "stable-baselines3, 8 envs": replace(shipped, library="stable-baselines3", num_envs=8),
            "tianshou on EnvPool": replace(shipped, library="tianshou", num_envs=10),
            "torchrl on gymnasium": replace(shipped, library="torchrl", num_envs=1, on_envpool=False),
        },
        "matched": {
            "fastdqn": own,
            "stable-baselines3, matched": replace(own, library="stable-baselines3"),
            "tianshou on EnvPool, matched": replace(own, library="tianshou"),
            "torchrl on EnvPool, matched": replace(own, library="torchrl"),
        },
    }
    if flags.only:
        tables = {title: {name: task for name, task in part.items() if task.library in ("fastdqn", flags.only)}
                  for title, part in tables.items()}  # fmt: skip
    tasks = {name: task for part in tables.values() for name, task in part.items()}
    absent = {name: missing(task.library) for name, task in tasks.items()}
    found = rounds({name: task for name, task in tasks.items() if not absent[name]}, repeats)
    for name, modules in absent.items():
        if modules:
            found[name] = [{"error": f"not installed ({', '.join(modules)}): {INSTALL}"}]
    versions = {library: metadata.version(library) if not missing(library) else None for library in COMPETITORS}
    environment = hardware.environment()
    if flags.plain:
        print("fastdqn runs plain DQN: 1-step returns, no Double DQN")
    print(
        f"{config.name.game}, replay ratio {flags.replay_ratio:g}, {repeats} rounds of {seconds:g} s, interleaved; median "
        f"with lowest and highest\n{machine(environment)}, envpool {environment['envpool']}\n"
        + ", ".join(f"{library} {version or 'missing'}" for library, version in versions.items())
    )
    results = {}
    for title, part in tables.items():
        rows = results[title] = [row(name, task, found[name], found["fastdqn"]) for name, task in part.items()]
        notes = list(SHIPPED_NOTES if title == "as shipped" else MATCHED_NOTES)
        ours = [entry for entry in rows if entry["library"] == "stable-baselines3" and "error" not in entry]
        if title == "as shipped" and ours:
            best = max(ours, key=lambda entry: entry["env_steps_per_second"]["median"])
            notes.insert(
                0,
                f"stable-baselines3's best DQN configuration: {best['num_envs']} envs; fastdqn / it: "
                f"{best['ratio']['median']:.2f}",
            )
        print(table(f"{title}: {TITLES[title]}", rows, notes))
    write("peers", results, flags, flags.json, {"seconds": seconds, "repeats": repeats, "versions": versions})


if __name__ == "__main__":
    main()
