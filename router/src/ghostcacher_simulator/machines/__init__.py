"""What a fleet is made of.

workers.py   a worker in numbers, and a fleet of them
presets.py   GPUs and models, with the source of each figure, and what a worker of both can do
"""
