"""Stops asking Redis while Redis is failing.

    closed ──too many failures, or slow calls──▶ open ──reset_timeout──▶ half-open
      ▲                                           ▲                        │   │
      │                                           └─a probe failed, or slow┘   │
      └────────────────────────────────────────────────────a probe succeeded───┘

Closed lets everyone through, open nobody, half-open as many probes at once as it is told and
nobody else. The state is per process on purpose: kept in Redis, it would be in what is down.

The package circuitbreaker has no lock, lets everyone through when half-open, takes any exception
that is not on its list for a success and keeps the last exception with all its frames alive. It
is here as what other tools know: a breaker of ours shows in `circuitbreaker.CircuitBreakerMonitor`,
but nothing is decided there.

    _breaker     calls, permits, the one lock        _states   what a breaker knows, as values
    _rules       which state follows from what       _news     what the end of a call says
    _window      how the latest calls ended          _view     what there is to see from outside
    _listeners   who is told of a change
"""

from jmcache.circuit_breaker._breaker import CircuitBreaker
from jmcache.circuit_breaker._states import CircuitState, Transition

__all__ = ["CircuitBreaker", "CircuitState", "Transition"]
