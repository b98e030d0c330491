"""Every default in one place, a round trip through TOML, and refusals that name field, value and remedy."""

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from fastdqn import config as config_module
from fastdqn.arguments import train_config
from fastdqn.config import _RANGES, Config, load_preset, preset_names
from fastdqn.errors import UsageError
from fastdqn.parts import NETWORK_FIELDS


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_resolves_and_survives_a_round_trip(name: str, tmp_path) -> None:
    config, _ = load_preset(name).resolved()
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert Config.load(path) == config
    assert config.preset == name


def test_a_round_trip_keeps_awkward_values(tmp_path) -> None:
    config = replace(Config(), run_dir='a "quoted" \\ path\nwith a break', learning_rate=1e-7, gamma=0.1 + 0.2)
    config = config.resolved()[0]
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert Config.load(path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gama = 0.9", "unknown field gama; did you mean gamma"),
        ("num_envs = 1.5", "num_envs=1.5 has the wrong type"),
        ("num_envs = true", "num_envs=True has the wrong type"),
        (
            'total_frames = "10M"',
            "total_frames='10M' has the wrong type; give a whole number in digits, as 40_000_000",
        ),
        ("total_frames = 1e7", "total_frames=10000000.0 has the wrong type; give a whole number in digits"),
        ("gamma = nan", "gamma=nan has the wrong type"),
        ('learning_rate = "3e-4"', "learning_rate='3e-4' has the wrong type; give a number without quotes"),
        ('double = "no"', "double='no' has the wrong type; give true or false"),
        ("env = 3", "env=3 has the wrong type; give a text in quotes"),
        ("[replay]\nreplay_capacity = 9", r"\[replay\]: the fields stand in no table; leave it out"),
        ('loss = "l1"', "loss='l1': use auto or huber or mse"),
        ("num_envs = ", "not TOML"),
    ],
)
def test_a_bad_file_is_refused_by_name(text: str, message: str, tmp_path) -> None:
    path = tmp_path / "config.toml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        Config.load(path)


def test_a_file_may_begin_with_the_mark_of_unicode(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("n_step = 7\n", encoding="utf-8-sig")
    assert load_preset(str(tmp_path / "mine.toml")).n_step == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_envs", 0),
        ("total_frames", 0),
        ("gamma", 1.5),
        ("gamma", float("nan")),
        ("epsilon_end", -0.1),
        ("replay_ratio", float("inf")),
        ("replay_capacity", 100),
        ("learning_starts", 64 * 8 - 1),
        ("learning_rate", 0.0),
        ("frame_stack", 9),
        ("n_step", 0),
        ("seed", -1),
        ("batch_size", 0),
        ("max_episode_steps", 0),
        ("env", "Brekout"),
        ("encoder", "mlp"),
    ],
)
def test_a_value_that_cannot_work_is_refused_in_one_line_that_names_it(field: str, value: object) -> None:
    with pytest.raises(UsageError, match=f"{field}=") as error:
        replace(Config(), **{field: value}).resolved()
    assert "\n" not in str(error.value)


def test_learning_starts_at_its_floor_is_accepted() -> None:
    assert replace(Config(), learning_starts=64 * 8).resolved()[0].learning_starts == 64 * 8


def test_the_ale_spelling_means_sticky_actions_unless_a_flag_says_otherwise() -> None:
    config, notes = replace(Config(), env="ALE/Breakout-v5").resolved()
    assert config.sticky_actions == 0.25 and config.env == "Breakout-v5" and "sticky" in notes[0]
    assert replace(Config(), env="ALE/Breakout-v5", sticky_actions=0.0).resolved()[0].sticky_actions == 0.0
    assert Config().resolved()[0].sticky_actions == 0.0


def test_a_vector_task_under_an_image_preset_is_unstacked_and_says_so() -> None:
    config, notes = replace(Config(), env="CartPole-v1").resolved()
    assert (config.frame_stack, config.encoder, config.action_repeat) == (1, "mlp", 1)
    assert any("frame_stack 4 -> 1" in note for note in notes)
    assert any("reward_clip: of CartPole-v1's rewards only the sign counts" in note for note in notes)
    assert load_preset("lunar-lander").resolved()[1] == []


def test_a_game_under_a_preset_for_vector_tasks_says_that_it_sees_one_frame() -> None:
    config, notes = replace(load_preset("cartpole"), env="Pong").resolved()
    assert config.frame_stack == 1 and any("frame_stack 1" in note for note in notes)
    assert not any("frame_stack" in note for note in load_preset("cartpole").resolved()[1])


def test_a_refusal_names_the_exact_range() -> None:
    with pytest.raises(UsageError, match="from 0 to 9,223,372,036,854,775,807"):
        replace(Config(), seed=2**63).resolved()
    with pytest.raises(UsageError, match="from 1e-12 to 10"):
        replace(Config(), learning_rate=0.0).resolved()


def test_frames_and_env_steps_differ_by_the_frame_skip_on_atari_only() -> None:
    assert replace(Config(), total_frames=4_001).total_env_steps == 1_001
    assert replace(Config(), env="CartPole-v1", total_frames=4_001).total_env_steps == 4_001


def test_an_unknown_preset_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match="preset=quik: no such preset; the nearest are quick"):
        load_preset("quik")


def test_every_field_is_documented() -> None:
    import inspect

    source = inspect.getsource(Config)
    for field in fields(Config):
        after = source.split(f"    {field.name}: ", 1)[1].split("\n", 1)[1]
        assert after.lstrip().startswith('"""'), f"{field.name} has no line of help"


def test_every_number_has_its_range() -> None:
    """Without one NaN and infinity are taken, and so is any other value that cannot work."""
    numbers = {field.name for field in fields(Config) if field.type in (int, float, int | None, float | None)}
    assert numbers == set(_RANGES)


def test_every_field_is_read_by_something() -> None:
    """A flag that is taken, saved and compared, and reaches nothing, would be an ablation of nothing."""
    package = Path(config_module.__file__).parent
    rest = "".join(path.read_text() for path in package.rglob("*.py") if path.name != "config.py")
    read = set(re.findall(r"\b(?:config|own|share|whole)\.(\w+)", rest)) | set(NETWORK_FIELDS)
    assert {field.name for field in fields(Config)} <= read


def test_a_run_made_with_what_has_no_effect_can_still_be_read(tmp_path: Path) -> None:
    one: dict[str, Any] = {"polyak": 0.005, "target_update_period": 4_000}
    for changes in (one, {"eval_episodes": 100}):
        config = replace(Config(), **changes)
        with pytest.raises(UsageError):
            config.resolved()
        (tmp_path / "config.toml").write_text(config.to_toml())
        resolved, notes = config.resolved(loaded=True)
        assert Config.load(tmp_path / "config.toml") == resolved
        assert any(name in note for note in notes for name in changes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"total_frames": 80_000}, "learning_starts 20,000: the run ends at env step 20,000 and learns nothing"),
        ({"total_frames": 580_000}, "the run ends before epsilon has fallen, at 0.50"),
        ({"total_frames": 580_000, "noisy": True}, ""),
        ({"total_frames": 80_000, "replay_ratio": 0.0}, ""),
        ({"total_frames": 1_080_000}, ""),
    ],
)
def test_a_run_too_short_for_what_it_asks_for_is_told(changes: dict[str, Any], said: str) -> None:
    """learning_starts 20,000 and 250,000 env steps of decay, 4 frames to a step."""
    notes = [note for note in replace(Config(), epsilon_end=0.0, **changes).resolved()[1] if "the run ends" in note]
    assert (said in notes[0] and "--total-frames" in notes[0]) if said else notes == []


@pytest.mark.parametrize(("frame_skip", "cap"), [(1, 108_000), (4, 27_000), (5, 21_600)])
def test_a_game_is_cut_after_half_an_hour_of_play_at_every_frame_skip(frame_skip: int, cap: int) -> None:
    assert replace(Config(), frame_skip=frame_skip).resolved()[0].max_episode_steps == cap


def test_a_file_of_settings_is_a_preset(tmp_path: Path) -> None:
    """One's own, called as the file is, with flags on top; and a run's config.toml, which says whose settings it has."""
    mine, run = tmp_path / "slow-start.toml", tmp_path / "config.toml"
    mine.write_text("# mine\nlearning_starts = 50_000\ndueling = true\n")
    config = train_config(["--preset", str(mine), "--no-dueling", "--seed=7"], prog="fastdqn train")
    assert config == replace(Config(), preset="slow-start", learning_starts=50_000, seed=7)
    resolved, _ = replace(load_preset("rainbow"), env="Pong", seed=3).resolved()
    run.write_text(resolved.to_toml())
    assert train_config([f"--preset={run}"], prog="fastdqn train").resolved()[0] == resolved


@pytest.mark.parametrize(
    ("of", "on_top", "implied"),
    [
        ({"env": "Pong"}, ["--env", "ALE/Pong-v5"], {"sticky_actions": 0.25}),
        ({"env": "ALE/Pong-v5"}, ["--env", "Breakout"], {"sticky_actions": 0.25}),  # a setting of that run
        ({"env": "Pong"}, ["--frame-skip", "2"], {"max_episode_steps": 54_000}),
        ({"env": "Pong", "max_episode_steps": 7}, ["--frame-skip", "2"], {"max_episode_steps": 7}),
        ({"env": "Pong", "encoder": "wide"}, ["--env", "Breakout"], {"encoder": "wide"}),
        ({"env": "Pong"}, ["--env", "CartPole"], {"encoder": "mlp", "max_episode_steps": None}),
        ({"deterministic": True}, ["--no-deterministic"], {"checkpoint_replay": "none"}),
    ],
)
def test_flags_on_top_of_a_runs_config_imply_what_they_imply_by_themselves(
    of: dict[str, Any], on_top: list[str], implied: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(replace(Config(), **of).resolved()[0].to_toml())
    config = train_config(["--preset", str(tmp_path / "config.toml"), *on_top], prog="fastdqn train").resolved()[0]
    assert {name: getattr(config, name) for name in implied} == implied


def test_a_file_that_names_a_preset_begins_with_its_values(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('preset = "rainbow"\nenv = "Pong"\nn_step = 5\n')
    config = train_config(["--preset", str(mine), "--seed", "7"], prog="fastdqn train")
    assert config == replace(load_preset("rainbow"), env="Pong", n_step=5, seed=7)
    mine.write_text('preset = "cpu"\nrun_dir = "here"\ndevice = "cpu"\nui = "plain"\njson = true\nresume = true\n')
    calls = {"run_dir": "here", "device": "cpu", "ui": "plain", "json": True, "resume": True}
    assert train_config(["--preset", str(mine)], prog="fastdqn train") == replace(load_preset("cpu"), **calls)


@pytest.mark.parametrize("preset", ["quick", "slow-start"])
def test_a_runs_config_is_read_as_it_was_written_though_its_preset_has_changed_or_was_a_file(
    preset: str, tmp_path: Path
) -> None:
    then = replace(Config(), preset=preset, env="Pong", batch_size=32, n_step=1).resolved()[0]
    assert then.preset not in preset_names() or then.batch_size != load_preset(preset).batch_size
    (tmp_path / "config.toml").write_text(then.to_toml())
    again = load_preset(str(tmp_path / "config.toml")).resolved()[0]
    assert again == Config.load(tmp_path / "config.toml") == then


@pytest.mark.parametrize("preset", ["cpu", "slow-start"])
def test_a_run_of_an_older_version_as_a_preset_has_the_settings_it_had_and_not_its_folder_nor_its_display(
    preset: str, tmp_path: Path
) -> None:
    new, file = ("learning_rate_end", "weight_init", "keep_checkpoints", "resume"), tmp_path / "config.toml"
    then = replace(Config(), preset=preset, run_dir="elsewhere/run", ui="plain", json=True).resolved()[0]
    lines = then.to_toml().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith(new)))
    assert "learning_rate_end" not in file.read_text() and load_preset("cpu").learning_rate_end > 0
    again = train_config(["--preset", str(file)], prog="fastdqn train").resolved()[0]
    assert again == replace(then, run_dir="", ui="auto", json=False)


@pytest.mark.parametrize(
    ("name", "text", "refusal"),
    [
        ("mine.toml", "lr = 3\n", r"mine\.toml: unknown field lr; did you mean learning_rate"),
        ("none.toml", None, r"preset=.*none\.toml: cannot be read .*No such file"),
        ("fast.toml", "seed = 2\n", r"preset=.*fast\.toml: fast is a preset that ships with fastdqn; .*another name"),
        ("mine.toml", "sede = 2\n", r"mine\.toml: unknown field sede; did you mean seed"),
        ("mine.toml", 'preset = "rainbwo"\n', r"mine\.toml: preset='rainbwo': no such preset .* or leave it out"),
        ("mine.toml", "preset = 3\n", r"mine\.toml: preset=3: no such preset"),
        ("mine.toml", "seed = [\n", r"mine\.toml: not TOML"),
        ("mine.toml", f"env = '{'x' * 20_000}'\n", r"preset=.*mine\.toml: has more than 16,384 bytes"),
    ],
)
def test_a_file_that_is_no_preset_is_refused_in_one_line(
    tmp_path: Path, name: str, text: str | None, refusal: str
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(UsageError, match=refusal) as refused:
        load_preset(str(tmp_path / name))
    assert "\n" not in str(refused.value)
