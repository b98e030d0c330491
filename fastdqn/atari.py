"""The games by name, their published scores, and the other tasks that go through the same pipeline. No envpool here."""

import difflib
import re
from typing import NamedTuple

from fastdqn.errors import UsageError

# The 104 Atari games whose ROMs EnvPool ships.
GAMES = """
Adventure AirRaid Alien Amidar Assault Asterix Asteroids Atlantis Atlantis2 Backgammon BankHeist BasicMath
BattleZone BeamRider Berzerk Blackjack Bowling Boxing Breakout Carnival Casino Centipede ChopperCommand
CrazyClimber Crossbow Darkchambers Defender DemonAttack DonkeyKong DoubleDunk Earthworld ElevatorAction Enduro
Entombed Et FishingDerby FlagCapture Freeway Frogger Frostbite Galaxian Gopher Gravitar Hangman HauntedHouse
Hero HumanCannonball IceHockey Jamesbond JourneyEscape Kaboom Kangaroo KeystoneKapers KingKong Klax Koolaid
Krull KungFuMaster LaserGates LostLuggage MarioBros MiniatureGolf MontezumaRevenge MrDo MsPacman NameThisGame
Othello Pacman Phoenix Pitfall Pitfall2 Pong Pooyan PrivateEye Qbert Riverraid RoadRunner Robotank Seaquest
SirLancelot Skiing Solaris SpaceInvaders SpaceWar StarGunner Superman Surround Tennis Tetris TicTacToe3d
TimePilot Trondead Turmoil Tutankham UpNDown Venture VideoCheckers VideoChess VideoCube VideoPinball WizardOfWor
WordZapper YarsRevenge Zaxxon
""".split()  # noqa: SIM905 (104 quoted lines otherwise)

FRAME_CAP = 108_000  # of a game: 30 minutes of play, Machado et al. 2018

_ATARI_HZ = 60.0  # emulator frames a second


class _Task(NamedTuple):
    """Another EnvPool task with discrete actions and vector observations."""

    size: int  # numbers in an observation
    actions: int
    hz: float | None  # env steps a second, Gymnasium's `render_fps`; None: EnvPool draws no picture of it


_TASKS = {
    "Acrobot-v1": _Task(6, 3, 15.0),
    "CartPole-v1": _Task(4, 2, 50.0),
    "Catch-v0": _Task(50, 3, None),
    "LunarLander-v3": _Task(8, 4, 50.0),
    "MountainCar-v0": _Task(2, 3, 30.0),
}
VECTOR_TASKS = tuple(_TASKS)

# Well-known tasks that are refused by name.
_CONTINUOUS_TASKS = """
bipedalwalker-v3 bipedalwalkerhardcore-v3 carracing-v3 lunarlandercontinuous-v3 mountaincarcontinuous-v0 pendulum-v1
""".split()  # noqa: SIM905

# Actions of the minimal sets, EnvPool 1.2.7; all other games use the full set of 18.
FULL_ACTION_SET = 18
_FULL_SET_WITHOUT_FIRE = frozenset({"LostLuggage", "Skiing"})  # 9 actions: the console has no use for FIRE there
_GAMES_BY_NUM_ACTIONS = {
    3: "Backgammon Freeway Skiing",
    4: "Atlantis Atlantis2 Blackjack Breakout Casino Kaboom",
    5: "Frogger Pacman Surround Tetris VideoCheckers",
    6: "AirRaid BasicMath Bowling Carnival DemonAttack Galaxian KingKong NameThisGame Pong Pooyan Qbert SirLancelot "
    "SpaceInvaders UpNDown",
    7: "Assault",
    8: "Gopher Phoenix Tutankham",
    9: "Asterix BeamRider CrazyClimber Enduro Koolaid LostLuggage MsPacman VideoPinball",
    10: "Amidar MrDo Othello TicTacToe3d TimePilot VideoChess WizardOfWor",
    12: "Turmoil",
    14: "Asteroids KeystoneKapers KungFuMaster",
    16: "JourneyEscape",
}
_NUM_ACTIONS = {game: number for number, games in _GAMES_BY_NUM_ACTIONS.items() for game in games.split()}

# FIRE is action 1 of a game's minimal action set (read off ale-py 0.12.1's getMinimalActionSet), except in these:
_FIRE_IS_ACTION_0 = frozenset({"Backgammon", "VideoCheckers"})
_NO_FIRE = frozenset(
    """
    Asterix CrazyClimber Freeway Frogger JourneyEscape Koolaid KungFuMaster LostLuggage MsPacman Pacman
    Skiing Surround Tutankham
    """.split()  # noqa: SIM905
)

# Random play and a professional human tester, no-op starts, 30 minutes at most: Wang et al. 2016 (arXiv 1511.06581),
# as carried by google-deepmind/dqn_zoo, atari_data.py.
_SCORES = """
Alien 227.8 7127.7, Amidar 5.8 1719.5, Assault 222.4 742, Asterix 210 8503.3, Asteroids 719.1 47388.7,
Atlantis 12850 29028.1, BankHeist 14.2 753.1, BattleZone 2360 37187.5, BeamRider 363.9 16926.5, Berzerk 123.7 2630.4,
Bowling 23.1 160.7, Boxing 0.1 12.1, Breakout 1.7 30.5, Centipede 2090.9 12017, ChopperCommand 811 7387.8,
CrazyClimber 10780.5 35829.4, Defender 2874.5 18688.9, DemonAttack 152.1 1971, DoubleDunk -18.6 -16.4, Enduro 0 860.5,
FishingDerby -91.7 -38.7, Freeway 0 29.6, Frostbite 65.2 4334.7, Gopher 257.6 2412.5, Gravitar 173 3351.4,
Hero 1027 30826.4, IceHockey -11.2 0.9, Jamesbond 29 302.8, Kangaroo 52 3035, Krull 1598 2665.5,
KungFuMaster 258.5 22736.3, MontezumaRevenge 0 4753.3, MsPacman 307.3 6951.6, NameThisGame 2292.3 8049,
Phoenix 761.4 7242.6, Pitfall -229.4 6463.7, Pong -20.7 14.6, PrivateEye 24.9 69571.3, Qbert 163.9 13455,
Riverraid 1338.5 17118, RoadRunner 11.5 7845, Robotank 2.2 11.9, Seaquest 68.4 42054.7, Skiing -17098.1 -4336.9,
Solaris 1236.3 12326.7, SpaceInvaders 148 1668.7, StarGunner 664 10250, Surround -10 6.5, Tennis -23.8 -8.3,
TimePilot 3568 5229.2, Tutankham 11.4 167.6, UpNDown 533.4 11693.2, Venture 0 1187.5, VideoPinball 16256.9 17667.9,
WizardOfWor 563.5 4756.5, YarsRevenge 3092.9 54576.9, Zaxxon 32.5 9173.3
"""
RANDOM_AND_HUMAN_SCORES = {
    game: (float(random), float(human)) for game, random, human in map(str.split, _SCORES.split(","))
}

# Sets of games that results are reported on. atari5 and atari10 predict the median over all 57 (Aitchison et al. 2023,
# arXiv 2210.02019); atari26 is the Atari 100k benchmark (Kaiser et al. 2020); atari57 is the set of Wang et al. 2016.
_SETS = {
    "atari5": "BattleZone DoubleDunk NameThisGame Phoenix Qbert",
    "atari10": "Amidar BattleZone Bowling DoubleDunk Frostbite KungFuMaster NameThisGame Phoenix Qbert Riverraid",
    "atari26": "Alien Amidar Assault Asterix BankHeist BattleZone Boxing Breakout ChopperCommand CrazyClimber "
    "DemonAttack Freeway Frostbite Gopher Hero Jamesbond Kangaroo Krull KungFuMaster MsPacman Pong PrivateEye Qbert "
    "RoadRunner Seaquest UpNDown",
    "atari57": " ".join(RANDOM_AND_HUMAN_SCORES),
}
GAME_SETS = {name: games.split() for name, games in _SETS.items()}


class EnvName(NamedTuple):
    """What a spelling of an environment means."""

    canonical: str  # EnvPool's id, "Breakout-v5"
    game: str  # "Breakout"
    is_atari: bool
    sticky_actions: float | None  # what the spelling implies, None where it implies nothing
    note: str  # what to tell the user about it, or ""


def parse_env(name: str) -> EnvName:
    """Understands `Breakout`, `breakout`, `Breakout-v5`, `BreakoutNoFrameskip-v4`, `ALE/Breakout-v5`, `space_invaders`.

    `ALE/` and, without it, `-v0` imply sticky actions, as in Gymnasium, and the note says so.

    Raises:
        UsageError: unknown (names the three nearest), or continuous actions.
    """
    spelled = name.strip().lower()
    for task in VECTOR_TASKS:
        if spelled in (task.lower(), task.split("-")[0].lower()):
            return EnvName(task, task.split("-")[0], False, None, "")
    if spelled in _CONTINUOUS_TASKS:
        raise UsageError(f"env={name}: it has continuous actions and a DQN needs discrete ones; try LunarLander-v3")
    stem = spelled.removeprefix("ale/")
    is_ale = stem != spelled
    stem = re.sub(r"-v5$" if is_ale else r"((noframeskip|deterministic)?-v[04]|-v5)$", "", stem)
    game = {known.lower(): known for known in GAMES}.get(re.sub(r"[ _-]", "", stem))
    if not stem:
        raise UsageError(f"env={name}: names no game; give Breakout, or another that fastdqn envs lists")
    if game is None:
        raise UsageError(f"env={name}: no such game; the nearest are {', '.join(_nearest(stem))}")
    sticky = is_ale or spelled.endswith("-v0")
    note = f"{name} implies sticky_actions 0.25 (Machado et al. 2018); {game} does not" if sticky else ""
    return EnvName(f"{game}-v5", game, True, 0.25 if sticky else None, note)


def fire_action(game: str, *, full_action_set: bool) -> int | None:
    """The index of FIRE among the game's actions, None where there is none or it is no Atari game."""
    if game not in GAMES:
        return None
    if full_action_set:
        return None if game in _FULL_SET_WITHOUT_FIRE else 1
    if game in _NO_FIRE:
        return None
    return 0 if game in _FIRE_IS_ACTION_0 else 1


def num_actions(env: EnvName, *, full_action_set: bool = False) -> int:
    """Actions of a game, by itself those of its minimal set, or of a vector task."""
    if not env.is_atari:
        return _TASKS[env.canonical].actions
    if full_action_set:
        return FULL_ACTION_SET // 2 if env.game in _FULL_SET_WITHOUT_FIRE else FULL_ACTION_SET
    return _NUM_ACTIONS.get(env.game, FULL_ACTION_SET)


def vector_size(task: str) -> int:
    """Numbers in an observation of a vector task. KeyError: no such task."""
    return _TASKS[task].size


def steps_per_second(env: EnvName, frame_skip: int) -> float | None:
    """Env steps a second at the game's own speed; None for a task of which EnvPool draws no picture."""
    return _ATARI_HZ / frame_skip if env.is_atari else _TASKS[env.canonical].hz


def human_normalized_score(game: str, score: float) -> float | None:
    """(score - random) / (human - random); None where no human score is published."""
    if game not in RANDOM_AND_HUMAN_SCORES:
        return None
    random, human = RANDOM_AND_HUMAN_SCORES[game]
    return (score - random) / (human - random)


def _nearest(name: str) -> list[str]:
    known = {candidate.lower(): candidate for candidate in (*GAMES, *VECTOR_TASKS)}
    return [known[match] for match in difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.0)]
