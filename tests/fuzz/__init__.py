"""Whatever the bytes: only our own errors. Each target by hypothesis in the ordinary tests, by
atheris where that runs.

.venv/bin/pip install atheris && .venv/bin/python -m tests.fuzz [--seconds N] [TARGET…]
"""
