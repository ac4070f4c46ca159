"""jmcache beside plain redis-py and its peers, on one private server, in one run.

    make bench                       a quarter of an hour
    make bench ARGS=--quick          two minutes, less exact
    make bench ARGS="--only threads --only tasks --json FILE"
    make bench ARGS=--write          and write docs/performance.md

All contenders are in one process, made from the peers' own environment, and take turns in short
rounds, so that what else the machine does hits all alike. Only ratios mean anything elsewhere.

__main__    starts the server, and the process that measures
run         the command line, and the parts in their order
contenders  every client as get, set, get_many and set_many
payloads    real match results of a given size
rounds      taking turns, and the arithmetic of rounds
calls       the same call alone, on threads, in tasks
beside      jmcache beside its peers
latency     the percentiles of single calls
inside      what has a bound of its own: breaker, near cache, keys, import, loop, memory
replicas    one process beside two
replay      real look-ups, and what a cache saves on them
bars        what has to hold, and whether it does
report      text, JSON and the page in docs/
plots       SVG
progress    a bar with the time left
"""
