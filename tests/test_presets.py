"""Every preset: it can be built and learns at full size, its algorithm learns Catch, and its notes are complete."""

import json
import math
import re
import tomllib
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from small_runs import quiet, reaches

from fastdqn import config as config_module
from fastdqn.cli import main
from fastdqn.config import Config, load_preset, preset_names
from fastdqn.errors import UsageError
from fastdqn.run import Run
from fastdqn.trainer import step_group, train

NOTES = (Path(config_module.__file__).parent / "presets" / "README.md").read_text()
PRESETS = preset_names()
ALGORITHMS = ["nature", "double", "dueling", "prioritized", "c51", "qrdqn", "iqn", "munchausen", "rainbow", "btr"]
# what Catch needs of any algorithm; everything else, the head, the loss, n, the noise, comes from the preset
CATCH = {
    field: getattr(load_preset("catch"), field)
    for field in (
        "env", "num_envs", "total_frames", "replay_capacity", "replay_ratio", "batch_size", "learning_starts",
        "target_update_period", "epsilon_end", "epsilon_decay_steps", "hidden_size", "frame_stack", "reward_clip",
        "life_loss_terminal", "learning_rate",
    )
}  # fmt: skip
CATCH |= {"encoder": "mlp", "impala_width": 1, "spectral_norm": False, "optimizer_eps": 1e-5, "num_envs": 16}


def few_quantiles(config: Config, count: int) -> Config:
    return replace(config, num_quantiles=count) if config.head in ("qrdqn", "iqn") else config


def learn(config: Config, updates: int) -> dict[str, float]:
    """Runs the training loop until so many updates have been made; the means of their losses."""
    run = Run(config, ["test"])
    run.envs.start()
    while run.clock.updates < updates:
        step_group(run)
    metrics, *_ = run.learner.read_metrics()
    run.envs.close()
    return metrics


@pytest.mark.parametrize("name", PRESETS)
def test_three_updates_at_full_size_have_finite_losses(name: str, tmp_path: Path) -> None:
    """The preset's own network, batch and observation; a small ring and an early start, on few games."""
    config = load_preset(name)
    starts = 16 * (config.frame_stack + config.n_step + 2)
    config = replace(
        config, num_envs=16, replay_capacity=4_000, learning_starts=starts, replay_ratio=config.batch_size / 8,
        compile=False, ui="quiet", run_dir=str(tmp_path / "run"), torch_threads=1,
    )  # fmt: skip
    metrics = learn(config, 3)
    assert all(math.isfinite(value) for value in metrics.values())
    assert metrics["losses/grad_norm"] > 0


@pytest.mark.parametrize("name", PRESETS)
def test_two_hundred_updates_of_a_narrow_network_have_finite_losses(name: str, tmp_path: Path) -> None:
    config = load_preset(name)
    config = replace(
        config, num_envs=8, replay_capacity=4_000, learning_starts=8 * (config.frame_stack + config.n_step + 2),
        hidden_size=16, batch_size=8, impala_width=1, replay_ratio=8.0, compile=False, precision="fp32", ui="quiet",
        run_dir=str(tmp_path / "run"), torch_threads=1,
    )  # fmt: skip
    metrics = learn(few_quantiles(config, 8), 200)
    assert all(math.isfinite(value) for value in metrics.values())


@pytest.mark.parametrize(
    "name",
    [name if name in ("c51", "munchausen", "prioritized") else pytest.param(name, marks=pytest.mark.long)
     for name in ALGORITHMS],
)  # fmt: skip
def test_the_algorithm_learns_catch(name: str, tmp_path: Path) -> None:
    """The preset's algorithm on a small network: 0.9 within the 60,000 env steps that plain DQN is given."""
    config = quiet(name, tmp_path / "run", **CATCH)
    assert reaches(few_quantiles(config, 32), 0.9)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "mse", "head": "c51"}, "loss=mse: has no effect with head=c51; use --head q, or --loss auto"),
        ({"num_atoms": 21}, "num_atoms=21: has no effect with head=q; use --head c51, or --num-atoms 51"),
        (
            {"num_quantiles": 8},
            "num_quantiles=8: has no effect with head=q; use --head qrdqn or iqn, or --num-quantiles 200",
        ),
        (
            {"priority_exponent": 0.7},
            "priority_exponent=0.7: has no effect with prioritized=False; use --prioritized, or --priority-exponent 0.5",
        ),
        (
            {"spectral_norm": True},
            "spectral_norm=True: has no effect with encoder=auto; use --encoder impala, or --no-spectral-norm",
        ),
        ({"rmsprop_centered": True}, "rmsprop_centered=True: has no effect with optimizer=adam"),
        ({"munchausen_floor": -2.0}, "munchausen_floor=-2.0: has no effect with munchausen=False"),
        ({"observation": "crop", "resize": "device"}, "resize=device: has no effect with observation=crop"),
        ({"observation": "crop", "env": "CartPole-v1"}, "observation=crop: CartPole-v1 has no screen"),
        ({"encoder": "impala", "env": "CartPole-v1"}, "encoder=impala: CartPole-v1 has vector observations"),
    ],
)
def test_a_field_without_effect_is_refused_in_one_line(changes: dict, message: str) -> None:
    with pytest.raises(UsageError) as error:
        replace(Config(), **changes).resolved()
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_what_the_preset_brought_and_a_flag_made_void_is_noted() -> None:
    config, notes = replace(load_preset("btr"), encoder="nature").resolved()
    assert config.encoder == "nature"
    assert any("spectral_norm=True of preset btr has no effect with encoder=nature" in note for note in notes)


def test_the_command_lists_all_presets_and_prints_one(capsys: pytest.CaptureFixture) -> None:
    assert main(["presets"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^{re.escape(name)} +\S", listed, re.MULTILINE) for name in PRESETS)
    assert main(["presets", "rainbow", "--json"]) == 0
    rainbow = json.loads(capsys.readouterr().out.splitlines()[-1])["rainbow"]
    assert rainbow["changes"]["head"] == "c51" and rainbow["values"] == asdict(load_preset("rainbow"))
    assert main(["presets", "rainbowl"]) == 2
    assert "the nearest are rainbow" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*PRESETS, "mine.toml"])
def test_a_preset_is_printed_with_every_value_and_is_the_same_as_a_file(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('preset = "rainbow"\n\n# games\nnum_envs = 32  # few')
    assert main(["presets", name]) == 0
    printed = capsys.readouterr().out
    Path("printed.toml").write_text(printed)
    assert replace(load_preset("printed.toml"), preset="any") == replace(load_preset(name), preset="any")
    unset = {"preset", *(field.name for field in fields(Config) if field.default is None)}
    assert {field.name for field in fields(Config)} - unset <= tomllib.loads(printed).keys()
    assert printed.startswith(config_module.preset_text(name).rstrip() + "\n\n# what it takes over:\n")


@pytest.mark.parametrize(
    ("name", "published"),
    [  # batch, learning rate, Adam's or RMSprop's epsilon, discount, n, learning from, target copied every, exploration's end
        # and length in env steps, norm of the gradient; notes: fastdqn/presets/README.md
        ("nature", (32, 2.5e-4, 3e-3, 0.99, 1, 50_000, 10_000, 0.1, 1_000_000, 0)),
        ("double", (32, 2.5e-4, 3e-3, 0.99, 1, 50_000, 10_000, 0.1, 1_000_000, 0)),
        ("dueling", (32, 6.25e-5, 7.8e-4, 0.99, 1, 50_000, 30_000, 0.01, 1_000_000, 10)),
        ("prioritized", (32, 6.25e-5, 7.8e-4, 0.99, 1, 50_000, 30_000, 0.01, 1_000_000, 0)),
        ("c51", (32, 2.5e-4, 0.01 / 32, 0.99, 1, 50_000, 10_000, 0.01, 1_000_000, 0)),
        ("qrdqn", (32, 5e-5, 0.01 / 32, 0.99, 1, 50_000, 10_000, 0.01, 1_000_000, 0)),
        ("iqn", (32, 5e-5, 0.01 / 32, 0.99, 1, 50_000, 10_000, 0.01, 1_000_000, 0)),
        ("munchausen", (32, 5e-5, 0.01 / 32, 0.99, 1, 20_000, 8_000, 0.01, 250_000, 0)),
        ("rainbow", (32, 6.25e-5, 1.5e-4, 0.99, 3, 20_000, 8_000, 0, 0, 10)),
        ("btr", (256, 1e-4, 0.005 / 256, 0.997, 3, 200_000, 32_000, 0.01, 3_600_000, 10)),
    ],
)
def test_a_preset_has_the_values_of_its_source(name: str, published: tuple[float, ...]) -> None:
    config = load_preset(name)
    ours = (
        config.batch_size, config.learning_rate, config.optimizer_eps, config.gamma, config.n_step, config.learning_starts,
        config.target_update_period, config.epsilon_end, config.epsilon_decay_steps, config.max_grad_norm,
    )  # fmt: skip
    assert ours == published
    assert config.replay_ratio == (4 if name == "btr" else 8) and config.total_frames == 200_000_000
    assert config.double == (name in ("double", "dueling", "prioritized", "rainbow"))
    assert config.dueling == (name in ("dueling", "rainbow", "btr")) and config.noisy == (name in ("rainbow", "btr"))
    assert config.munchausen == (name in ("munchausen", "btr"))
    priorities = {"prioritized": (0.6, 0.4, 1), "rainbow": (0.5, 0.4, 1), "btr": (0.2, 0.2, 0.2)}.get(name)
    assert config.prioritized == (priorities is not None)
    if priorities:
        exponents = config.priority_exponent, config.importance_exponent, config.importance_exponent_end
        assert exponents == priorities


@pytest.mark.parametrize("name", PRESETS)
def test_the_notes_give_every_value_in_which_a_preset_differs_from_the_defaults(name: str) -> None:
    """`fastdqn/presets/README.md`: a section per preset, naming each field it sets."""
    assert f"\n## {name}\n" in NOTES
    section = NOTES.split(f"\n## {name}\n")[1].split("\n## ")[0]
    default = Config()
    for field in fields(Config):
        value = getattr(load_preset(name), field.name)
        if value != getattr(default, field.name) and field.name not in ("preset", "checkpoint_period_frames"):
            assert f"`{field.name}`" in section, f"{field.name}={value} is not in the notes of {name}"


def test_the_notes_give_the_formula_of_every_logged_metric(tmp_path: Path) -> None:
    train(quiet("catch", tmp_path / "run", total_frames=2_000))
    row = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert len(row) > 12
    for tag in row:
        name = re.sub(r"perf/\w+_frac", "perf/{phase}_frac", tag)
        assert f"`{name}`" in NOTES, f"{tag} has no formula"
