"""`fastdqn eval`: how well an agent plays, under a stated protocol."""

from dataclasses import dataclass
from typing import Any

from fastdqn import runs
from fastdqn.commands import AgentFlags, emit


@dataclass(frozen=True)
class Flags(AgentFlags):
    """Plays games with a trained agent under a stated protocol."""

    episodes: int = 100
    """Games to count, a fixed quota per env so that short games are not favoured."""
    num_envs: int = 0
    """Games played at once, at most as many as are counted; 0: all of them, up to 64."""
    threads: int = 0
    """Threads of EnvPool and of torch; 0: all cores."""
    keep_best: bool = False
    """Keep this agent in the run's best/ if none there was scored higher."""


def main(flags: Flags) -> int:
    run = runs.find(flags.run)  # a mistyped name is told before torch is loaded
    from fastdqn.evaluation import evaluate

    result = evaluate(
        run,
        episodes=flags.episodes,
        num_envs=flags.num_envs,
        threads=flags.threads,
        keep_best=flags.keep_best,
        **flags.playing,
    )
    emit(format_result(result), result, as_json=flags.json)
    return 0


def format_result(result: dict[str, Any]) -> str:
    """The result for people."""
    low, high = result["score_ci95"]
    human = result["human_normalized"]
    lines = [
        f"{result['env']} after {result['frames']:,} frames: {result['episodes']} games, protocol {result['protocol']} "
        f"(sticky {result['sticky_actions']:g}, epsilon {result['epsilon']:g})",
        f"mean {result['score_mean']:.2f}   median {result['score_median']:.2f}   95 % interval {low:.2f} to "
        f"{high:.2f} (bootstrap over these games of one agent)",
        f"lowest {result['score_min']:.10g}   highest {result['score_max']:.10g}   mean length "
        f"{result['length_mean']:.0f} env steps   {result['capped_games']} cut at the step cap",
        "human-normalised: no published human score"
        if human is None
        else f"human-normalised {human:.1%} (0 % random play, 100 % a human tester)",
    ]
    distinct, episodes = result["distinct_games"], result["episodes"]
    if distinct < episodes:
        lines.append(
            f"warning: only {distinct} of the {episodes} games were distinct; the interval counts equal ones as one"
            f"{', and of so few it says little' if distinct < 20 else ''}"
        )
    else:
        lines.append(f"all {episodes} games were distinct")
    if result.get("kept") is not None:  # else it was not asked for, or a warning has told why
        lines.append("kept as best/" if result["kept"] else "not kept: the agent in best/ was scored higher")
    return "\n".join(lines)
