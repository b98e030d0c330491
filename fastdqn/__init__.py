"""fastdqn: deep Q-networks on Atari, trained as fast as the machine can emulate the games."""

__version__ = "0.1.0"
