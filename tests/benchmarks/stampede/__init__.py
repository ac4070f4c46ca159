"""Many processes ask for the same key at the same moment: who computes it how often, who waits.

    make bench-stampede                  five minutes
    make bench-stampede ARGS="--quick"   less exact
    make bench-stampede ARGS="--processes 4 --callers 8 --json FILE"

One process of ours starts the others (`__main__`) and counts. Each replica is a process of its own
(`replica`), which runs without jmcache where it is a peer's, with one of the `contenders`.
"""
