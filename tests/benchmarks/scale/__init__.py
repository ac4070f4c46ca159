"""What Redis, more of them, near caches and combined look-ups give a growing fleet.

    PYTHONPATH=tests python -m benchmarks.scale
    PYTHONPATH=tests python -m benchmarks.scale --quick

__main__  measures, computes and simulates; prints, and with --write writes docs/performance.md
costs     what a server spends on a GET, a PING and so on, measured here
load      the replicas and the keys
paper     closed formulas
simulate  the discrete-event simulation beside them
"""
