"""Hundreds of tasks on workers that are stopped, killed, frozen and disconnected at random; then everything is counted.

python -m tests.chaos --broker redis --seconds 25 --seed 7
"""
