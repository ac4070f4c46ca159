"""Load, faults and a judge: hours of mixed use while everything around the cache breaks.

    make soak                                                    ten minutes
    make soak ARGS="--seconds 60 --seed 7 --processes 2 --threads 16"
    make soak ARGS="--calls 10000000"                            a night's length
    make soak ARGS="--peers"                                     other clients in the same scenes

One process of ours breaks things (`run`, `faults`) and counts (`report`); each replica is a process
of its own (`worker`, kept by `crew`) in which callers follow a script (`load`) that real look-ups
dictate (`trace`), with jmcache or another client (`contenders`), under the eyes of the `judge`.

Only `contenders` and the breaking process know jmcache: a peer's replica runs without it.
"""
