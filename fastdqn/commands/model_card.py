"""The card of an exported agent: what it plays, how well, what goes in and comes out, and how it was made. Markdown."""

from pathlib import Path
from typing import Any

from fastdqn import runs
from fastdqn.checkpoint import Checkpoint
from fastdqn.config import Config
from fastdqn.machine import hardware
from fastdqn.units import cores


def text(
    run: Path, config: Config, saved: Checkpoint, figures: dict[str, Any], comparison: str, *, fire_action: int | None
) -> str:
    """The card. `figures` is what `fastdqn export --json` prints, `comparison` its check in words."""
    file = Path(figures["file"]).name
    return f"""# {figures["env"]}: an agent of preset {config.preset}

`{file}` is the agent of run `{run.resolve().name}` after {saved.state.get("frames", 0):,} frames ({saved.step:,} env steps,
{saved.state.get("updates", 0):,} updates), sha256 `{figures["sha256"]}`.

## Score

{score(run, saved)}

## Input and output

* Input: {inputs(config, figures)}
* Output: Q-values, float32 [B, {figures["num_actions"]}], one per action; {outputs(config)}. Play the largest.
{actions(config, figures, fire_action)}

```python
{usage(file, figures)}
```

## Protocol it was trained under

{protocol(config)}

## Training

* Algorithm: {config.algorithm}; preset {config.preset}, seed {config.seed}. All settings: `config.toml` of the run.
* Command: `{runs.command(run) or "unknown"}`
* {machine(runs.environment(run))}

## Check

Read back from the file and compared with the agent, in float32 on a CPU: {comparison}. The observations are of
{figures["env"]}, played by the agent with some random actions. Exported on: {machine(hardware.environment())}
"""


def score(run: Path, saved: Checkpoint) -> str:
    """A table of the evaluations of this very checkpoint, or what else is known, called by its name."""
    rows = [result for result in runs.evaluations(run) if result.get("checkpoint") == saved.path.name]
    if not rows:
        mean = saved.state.get("score_mean_100")
        known = "" if mean is None else f" The last 100 games of training had a mean of {mean:.2f}, with exploration."
        return f"This checkpoint was not evaluated; `fastdqn eval` does it.{known}"
    lines = [
        "| protocol | sticky | epsilon | games | mean | 95 % interval | median | human-normalised |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in rows:
        low, high = result["score_ci95"]
        human = result.get("human_normalized")
        lines.append(
            f"| {result['protocol']} | {result['sticky_actions']:g} | {result['epsilon']:g} | {result['episodes']} | "
            f"{result['score_mean']:.2f} | {low:.2f} to {high:.2f} | {result['score_median']:.2f} | "
            f"{'none published' if human is None else f'{human:.1%}'} |"
        )
    lines += ["", "The interval is a bootstrap over these games of this one agent; agents of other seeds may differ."]
    return "\n".join(lines)


def inputs(config: Config, figures: dict[str, Any]) -> str:
    """Shape, dtype, scaling and origin of an observation."""
    shape = f"{figures['obs_dtype']} [B, {', '.join(map(str, figures['obs_shape']))}], any B"
    if not config.name.is_atari:
        return f"{shape}: the task's own vector as it comes, unscaled."
    picture = (
        "grey, resized from 210x160 by area (OpenCV's INTER_AREA)"
        if config.observation == "standard"
        else "rows 15 to 200 and columns 30 to 125 of the RGB screen, mean of the colours"
    )
    frame = "each of the emulator's"
    if config.frame_skip > 1:
        frame = f"one in {config.frame_skip} of the emulator's, the maximum of it and the one before"
    return (
        f"{shape}: the last {config.frame_stack} frames, oldest first, the first of a game repeated. A frame is "
        f"{frame}, {picture}. Bytes from 0 to 255 as "
        "they are: the network itself divides by 255."
    )


def outputs(config: Config) -> str:
    """What a Q-value is the mean of, and of which rewards."""
    head = {
        "q": "the network's own output",
        "c51": f"the mean over {config.num_atoms} atoms",
        "qrdqn": f"the mean of {config.num_quantiles} quantiles",
        "iqn": f"the mean of {config.num_acting_quantiles} quantiles at evenly spread fractions",
    }[config.head]
    rewards = "rewards clipped to [-1, 1]" if config.reward_clip else "rewards as the game gives them"
    noise = ", without the noise of its layers" if config.noisy else ""
    return f"{head}{noise}; expected sum of {rewards}, discounted by {config.gamma:g} per env step"


def actions(config: Config, figures: dict[str, Any], fire_action: int | None) -> str:
    if not config.name.is_atari:
        return "* Actions: the task's own, in its order."
    which = "all that the console has for it" if config.full_action_set else "the game's minimal set"
    fire = config.fire_after_life_loss != "off" and fire_action is not None
    pressed = f" After a lost life it was trained to have FIRE ({fire_action}) pressed for it." if fire else ""
    return f"* Actions: {which}, {figures['num_actions']}, in the order of the Arcade Learning Environment.{pressed}"


def usage(file: str, figures: dict[str, Any]) -> str:
    if figures["format"] == "pt2":
        return (
            "import torch\n\n"
            f'network = torch.export.load("{file}").module()  # may run code: load it only from those you trust\n'
            "with torch.no_grad():\n    action = network(obs).argmax(dim=1)\n"
            "# on the CPU; for a GPU see torch.export.passes.move_to_device_pass"
        )
    return (
        "from pathlib import Path\n\nimport torch\n\nfrom fastdqn.commands.export import load_safetensors\n\n"
        f'network = load_safetensors(Path("{file}"))  # data only\n'
        "with torch.no_grad():\n    action = network(obs).argmax(dim=1)"
    )


def protocol(config: Config) -> str:
    if not config.name.is_atari:
        cap = f"{config.max_episode_steps} env steps" if config.max_episode_steps else "the task's own step limit"
        return f"{config.name.canonical} of EnvPool; a game is cut at {cap}."
    lost = "ends the return but not the game" if config.life_loss_terminal else "does not end the return"
    return (
        f"Sticky actions {config.sticky_actions or 0.0:g}, frame skip {config.frame_skip}, up to {config.noop_max} no-ops "
        f"at the start, games cut at {config.max_episode_steps:,} env steps; a lost life {lost}."
    )


def machine(environment: dict[str, Any]) -> str:
    """Hardware, versions and commit in one line."""
    names = ("fastdqn", "torch", "envpool", "numpy", "tensordict", "python")
    versions = ", ".join(f"{name} {environment.get(name) or 'unknown'}" for name in names)
    gpu = f", {environment['gpu']}" if environment.get("gpu") else ""
    return (
        f"{environment.get('cpu', 'unknown processor')}, {cores(environment.get('cores', '?'))}{gpu}; {versions}; "
        f"commit {environment.get('commit') or 'unknown'}."
    )
