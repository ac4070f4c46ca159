"""Functions whose results are cached: their keys, their tags, and what may be asked of them."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from jmcache import AsyncRedisCache, Cache, LocalCache
from jmcache.testing import ManualClock

ROOT = Path(__file__).resolve().parents[1]
RUNS: list[Any] = []


@pytest.fixture(autouse=True)
def _no_runs() -> None:
    RUNS.clear()


@pytest.fixture
def cache(clock: ManualClock) -> Cache:
    return LocalCache(clock=clock)


# Calls ------------------------------------------------------------------------------------------


def test_a_call_is_computed_once_however_it_is_written(cache: Cache) -> None:
    """f("a"), f("a", 10) and f(job_id="a") are one call, and would be three entries."""

    @cache.cached(ttl=60)
    def applicants(job_id: str, limit: int = 10, *, city: str | None = None) -> list[str]:
        RUNS.append(job_id)
        return [job_id] * limit

    first = applicants("p1")
    assert first == ["p1"] * 10
    assert applicants("p1", 10) == applicants(job_id="p1") == first
    assert applicants(limit=10, job_id="p1", city=None) == first
    assert RUNS == ["p1"]
    assert applicants("p1", 11) == ["p1"] * 11
    assert applicants("p1", city="Berlin") == first
    assert RUNS == ["p1"] * 3


def test_an_object_that_is_called_keeps_its_attributes_to_itself(cache: Cache) -> None:
    """A decorator of a class has names of its own, and some of them are ours."""

    class Doubled:
        def __init__(self, func: Any) -> None:
            functools.update_wrapper(self, func)
            self._func = func
            self._keys = self._compute = None

        def __call__(self, number: int) -> int:
            return 2 * int(self._func(number))

    @cache.cached()
    @Doubled
    def count(number: int) -> int:
        RUNS.append(number)
        return number

    assert (count(2), count(2), RUNS) == (4, 4, [2])


def test_one_cached_function_above_another_has_a_cache_and_a_key_of_its_own(cache: Cache) -> None:
    """In this process for a second, in Redis for an hour."""
    near, far = LocalCache(), cache

    @near.cached(ttl=1, key="near:{number}")
    @far.cached(ttl=3600)
    def count(number: int) -> int:
        RUNS.append(number)
        return number

    assert (count(2), count(2), RUNS) == (2, 2, [2])
    assert near.get(count.key(2)) == 2
    assert count.key(2) != count.__wrapped__.key(2)
    assert far.get(count.__wrapped__.key(2)) == 2
    count.invalidate(2)
    assert (near.get(count.key(2)), count(2), RUNS) == (None, 2, [2])


def test_different_arguments_never_share_a_result(cache: Cache) -> None:
    """1, "1" and True as one key shows one candidate another's matches."""

    @cache.cached()
    def typed(*args: Any, **kwargs: Any) -> str:
        return repr((args, kwargs))

    calls = [((1,), {}), (("1",), {}), ((True,), {}), (("a_b",), {}), (("a", "b"), {})]
    calls += [((), {"a": 1}), ((), {"b": 1}), (((1, 2),), {}), ((1, 2), {}), ((None,), {})]
    for _ in range(2):
        for args, kwargs in calls:
            assert typed(*args, **kwargs) == repr((args, kwargs))


def test_two_functions_never_share_a_key(cache: Cache) -> None:
    """Both take a candidate; one returns matches, the other a salary."""

    @cache.cached()
    def matches(candidate: str) -> str:
        return "matches"

    @cache.cached()
    def salary(candidate: str) -> str:
        return "salary"

    @cache.cached(key="{candidate}")
    def by_template(candidate: str) -> str:
        return "by template"

    @cache.cached(key=lambda candidate: candidate)
    def by_callable(candidate: str) -> str:
        return "by callable"

    functions = [matches, salary, by_template, by_callable]
    assert len({function.key("c1") for function in functions}) == 4
    assert [function("c1") for function in functions] == [
        "matches",
        "salary",
        "by template",
        "by callable",
    ]


def test_two_templates_of_one_function_name_never_share_a_key(cache: Cache) -> None:
    """ "{a}:{b}" of ("x", "y:z") and ("x:y", "z") is the same text for two calls."""

    @cache.cached(key="{a}:{b}")
    def joined(a: str, b: str) -> str:
        return f"{a}|{b}"

    assert joined("x", "y:z") == "x|y:z"
    assert joined("x:y", "z") == "x:y|z"


def test_the_key_is_the_same_in_every_process(cache: Cache) -> None:
    """Replicas that name one result differently share nothing, and invalidate nothing."""
    program = textwrap.dedent("""
        import types, sys
        module = types.ModuleType("app"); sys.modules["app"] = module
        exec('''
        from jmcache import LocalCache
        @LocalCache().cached()
        def match(candidate, skills=frozenset(), limit=10): ...
        '''.replace("\\n        ", "\\n"), module.__dict__)
        print(module.match.key("c1", {"b", "a", "c"}))
    """)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert outputs.pop().strip()


def test_an_argument_without_a_place_in_a_key_is_refused_by_its_name(cache: Cache) -> None:
    """repr() of a session in a key is another one in every process: a cache that never hits."""

    @cache.cached()
    def query(session: object, job_id: str) -> None:
        RUNS.append(job_id)

    with pytest.raises(TypeError, match=r"'session'.*object"):
        query(object(), "p1")
    with pytest.raises(TypeError, match=r"query.*'session'"):
        query.key(object(), "p1")
    assert RUNS == []


def test_a_call_that_does_not_fit_the_function_is_its_error(cache: Cache) -> None:
    """The error has to be the one that the function itself would raise."""

    @cache.cached()
    def one(a: int) -> int:
        return a

    with pytest.raises(TypeError, match="argument"):
        one()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="argument"):
        one(1, 2)  # type: ignore[call-arg]


def test_a_call_that_does_not_fit_is_an_error_also_when_its_key_does_not_mind(
    cache: Cache,
) -> None:
    """The loader's context in place of a job would be computed with, and kept for everybody."""

    @cache.cached(key=lambda *args, **kwargs: list(args))
    def two(x: int, y: object) -> str:
        RUNS.append(y)
        return repr(y)

    with pytest.raises(TypeError, match="'y'"):
        two(1)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="'y'"):
        two.key(1)  # type: ignore[call-arg]

    async def use() -> None:
        awaited = AsyncRedisCache(cache)

        @awaited.cached(key=lambda *args, **kwargs: list(args))
        async def two_soon(x: int, y: object) -> str:
            RUNS.append(y)
            return repr(y)

        with pytest.raises(TypeError, match="'y'"):
            await two_soon(1)  # type: ignore[call-arg]
        assert await two_soon(1, 2) == "2"
        RUNS.clear()
        await awaited.aclose()

    asyncio.run(use())
    assert RUNS == []


# Keys of one's own ------------------------------------------------------------------------------


def test_a_method_needs_a_key_of_its_own(cache: Cache) -> None:
    """An object has no place in a key: two models would share results, or none would."""
    with pytest.raises(TypeError, match=r"key: .*Matcher\.match is a method"):

        class Matcher:
            @cache.cached()
            def match(self, candidate: str) -> str:
                return candidate


class Matcher:
    """Told apart by its model."""

    cache = LocalCache()

    def __init__(self, model: str) -> None:
        self.model = model

    @cache.cached(key="{self.model}:{candidate}", tags=("model:{self.model}",))
    def match(self, candidate: str, limit: int = 3) -> str:
        RUNS.append(candidate)
        return f"{candidate} by {self.model}"


def test_a_method_is_cached_for_each_object_that_its_key_tells_apart() -> None:
    """Results of another model are wrong results."""
    a, also_a, b = Matcher("a"), Matcher("a"), Matcher("b")
    a.cache.clear()
    assert a.match("c1") == also_a.match("c1") == also_a.match(candidate="c1") == "c1 by a"
    assert b.match("c1") == "c1 by b"
    assert len(RUNS) == 2
    assert a.match.key("c1") == also_a.match.key("c1") == Matcher.match.key(a, "c1")
    a.match.invalidate("c1")
    assert a.cache.exists(b.match.key("c1"))
    assert a.match("c1") == "c1 by a"
    assert len(RUNS) == 3
    a.match.refresh("c1")
    assert len(RUNS) == 4
    a.cache.invalidate_tags("model:b")
    assert not a.cache.exists(b.match.key("c1"))
    assert a.cache.exists(a.match.key("c1"))


def test_a_template_picks_what_tells_calls_apart(cache: Cache) -> None:
    """A request object has an id; the rest of it is noise."""

    @cache.cached(key="{request[id]}")
    def handle(request: dict[str, object]) -> object:
        return request["noise"]

    assert handle({"id": 1, "noise": "first"}) == "first"
    assert handle({"id": 1, "noise": "second"}) == "first"
    assert handle({"id": "1", "noise": "text"}) == "text"


def test_a_callable_picks_what_tells_calls_apart(cache: Cache) -> None:
    """Whatever a template cannot say."""

    @cache.cached(key=lambda words: sorted(set(words)), tags=lambda words: set(words))
    def count(words: list[str]) -> int:
        RUNS.append(words)
        return len(words)

    assert count(["b", "a"]) == count(["a", "b", "a"]) == 2
    assert len(RUNS) == 1
    cache.invalidate_tags("b")
    assert count(["a", "b", "a"]) == 3


async def _soon(value: Any) -> bool:
    return value is None


def _shown(given: object) -> str:
    """As a test's name: the same in every process."""
    return re.sub(" at 0x[0-9a-f]+", "", str(given))


WRONG: list[tuple[str, Any, str]] = [
    ("refresher", 5, "refresher: a callable"),
    ("validate", 5, "validate: a callable"),
    ("validate", _soon, "validate: a plain function"),
    ("no_stale_for", (int,), "no_stale_for: classes of exceptions"),
    ("no_stale_for", KeyError, "no_stale_for: classes of exceptions"),
    ("negative", 5, "negative: a callable"),
    ("negative", _soon, "negative: a plain function"),
    ("force", "no", "force: True or False"),
    ("read_only", 5, "read_only: True or False"),
    ("write_only", "no", "write_only: True or False"),
    ("stale_ttl", 1e300, "stale_ttl: seconds .*at most"),
    ("stale_if_error", 1e300, "stale_if_error: seconds .*at most"),
    ("negative_ttl", 1e300, "negative_ttl: seconds .*at most"),
    ("lock_timeout", 1e300, "lock_timeout: seconds .*at most"),
    ("soft_timeout", 1e300, "soft_timeout: seconds .*at most"),
    ("loader_timeout", 1e300, "loader_timeout: seconds .*at most"),
]


@pytest.mark.parametrize(("option", "given", "named"), [*WRONG, ("tags", 5, "tags: several texts")])
def test_what_cannot_work_is_refused_whatever_is_cached(
    cache: Cache, option: str, given: Any, named: str
) -> None:
    """Found with the first hit, the first old value or in Redis, it is found by a customer."""

    def load() -> int:
        RUNS.append(1)
        return 1

    async def use() -> None:
        awaited = AsyncRedisCache(cache)
        with pytest.raises((TypeError, ValueError), match=named):
            await awaited.get_or_set("k", load, **{option: given})
        await awaited.aclose()

    with pytest.raises((TypeError, ValueError), match=named):
        cache.get_or_set("k", load, **{option: given})
    if option != "refresher":
        with pytest.raises((TypeError, ValueError), match=named):
            cache.get_or_set_many(["k"], lambda keys: {"k": load()}, **{option: given})
    asyncio.run(use())
    assert RUNS == []


@pytest.mark.parametrize("validate", [5, _soon], ids=_shown)
def test_a_validator_that_is_none_is_refused_without_a_value(cache: Cache, validate: Any) -> None:
    """The first day of a service has no hits."""
    for read in (cache.get, cache.lookup):
        with pytest.raises(TypeError, match="validate"):
            read("k", validate=validate)
    with pytest.raises(TypeError, match="validate"):
        cache.get_many(["k"], validate=validate)


def test_tags_as_one_list_are_refused_by_name(cache: Cache) -> None:
    """ "unhashable type" says nothing of the star that is missing."""
    with pytest.raises(TypeError, match="tags: text, each of them, not list"):
        cache.invalidate_tags(["a"])  # type: ignore[arg-type]


def test_tags_that_a_callable_returns_as_one_text_are_refused(cache: Cache) -> None:
    """ "job" would be the tags j, o and b, and no invalidation would ever reach it."""

    @cache.cached(tags=lambda job_id: f"job:{job_id}")
    def function(job_id: str) -> None: ...

    with pytest.raises(TypeError, match="tags: several texts"):
        function("p1")


def test_a_refresher_that_nobody_awaits_is_refused(cache: Cache) -> None:
    """The coroutine would be made and dropped, and nothing refreshed."""
    with pytest.raises(TypeError, match="refresher: a plain function"):
        cache.cached(refresher=_soon)


def test_parentheses_that_are_missing_are_named(cache: Cache) -> None:
    """Many decorators do without."""

    def function() -> None: ...

    for decorate in (cache.cached, AsyncRedisCache(cache).cached):
        with pytest.raises(TypeError, match=r"write @cache\.cached\(\)"):
            decorate(function)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "named"),
    [
        (staticmethod(len), "put @staticmethod above"),
        (classmethod(len), "put @classmethod above"),
        (functools.partial(int, base=2), "key: a partial has no name"),
        (functools.update_wrapper(functools.partial(pow, 2), pow), "key: a partial has no name"),
        (5, "cached: a function, not int"),
    ],
    ids=str,
)
def test_what_is_no_function_with_a_name_is_refused(
    cache: Cache, function: Any, named: str
) -> None:
    """A static method was called with the object before its arguments."""
    for decorate in (cache.cached(key="k"), AsyncRedisCache(cache).cached(key="k")):
        with pytest.raises(TypeError, match=named):
            decorate(function)


def test_a_lambda_needs_a_key(cache: Cache) -> None:
    """All lambdas of a place have one name: the second was handed the first one's results."""
    for decorate in (cache.cached(), AsyncRedisCache(cache).cached()):
        with pytest.raises(TypeError, match="key: all lambdas of a place have one name"):
            decorate(lambda x: x)  # type: ignore[arg-type]
    assert cache.cached(key="one:{x}")(lambda x: x)(1) == 1


def test_a_field_that_an_argument_does_not_have_is_named(cache: Cache) -> None:
    """ "'int' object has no attribute 'id'" might come from anywhere."""

    @cache.cached(key="{x.id}")
    def by_key(x: object) -> None: ...

    @cache.cached(key="{x[0]}")
    def by_item(x: object) -> None: ...

    @cache.cached(tags=("x:{x.id}",))
    def by_tag(x: object) -> None: ...

    with pytest.raises(ValueError, match=r"key: .*by_key has no {x\.id}"):
        by_key(5)
    for wrong in (5, ()):
        with pytest.raises(ValueError, match=r"key: .*by_item has no {x\[0\]}"):
            by_item(wrong)
    with pytest.raises(ValueError, match=r"tags: .*by_tag .*{x\.id}"):
        by_tag(5)


def test_a_field_within_a_field_tells_calls_apart(cache: Cache) -> None:
    """It was left out of the key: one width for all."""

    @cache.cached(key="{x:>{width}}")
    def padded(x: str, width: int) -> str:
        return f"{x:>{width}}"

    assert (padded("a", 2), padded("a", 3)) == (" a", "  a")


def test_a_parameter_may_be_called_self(cache: Cache) -> None:
    """By name it was taken for the decorator's own."""

    @cache.cached()
    def function(args: int, self: int = 1) -> tuple[int, int]:
        return args, self

    @cache.cached()
    def of_first(self: int) -> int:
        return self

    assert function(1, self=2) == function.refresh(1, self=2) == (1, 2)
    assert function.key(1, self=2) == function.key(1, 2)
    assert function.invalidate(1, self=2) is True
    assert of_first(self=3) == 3

    class Service:
        @cache.cached(key="{this.name}:{self}")
        def method(this, self: int) -> int:  # noqa: N805 - so the name is free
            return self

        name = "s"

    assert Service().method(self=5) == 5


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"key": "{nobody}"}, "key.*nobody"),
        ({"tags": ("job:{nobody}",)}, "tags.*nobody"),
        ({"tags": "job:{job_id}"}, "tags"),
        ({"tll": 5}, "tll"),
        ({"ttl": 0}, "ttl"),
        ({"early_refresh": 2.0}, "early_refresh"),
        ({"key": 5}, "key"),
        ({"key": "{job_id"}, "key: '{job_id' is no template"),
        ({"key": "{job_id:>{width}}"}, "key: .*{width}"),
        ({"key": "{}"}, "key"),
        ({"tags": ("job:{job_id",)}, "tags: 'job:{job_id' is no template"),
        ({"tags": 5}, "tags: several texts"),
        ({"tags": (5,)}, "tags: text"),
        ({"timeout": -1}, "timeout: seconds"),
        *[({option: given}, named) for option, given, named in WRONG],
    ],
    ids=_shown,
)
def test_what_cannot_work_is_refused_when_it_decorates(
    cache: Cache, options: dict[str, Any], named: str
) -> None:
    """Found at the first call, it is found by a customer."""
    with pytest.raises((TypeError, ValueError), match=named):

        @cache.cached(**options)
        def function(job_id: str) -> None: ...


# Asking of it -----------------------------------------------------------------------------------


def test_invalidate_forgets_one_call_and_refresh_computes_it_now(cache: Cache) -> None:
    """A candidate changed: theirs and nobody else's."""

    @cache.cached(ttl=60)
    def match(candidate: str) -> int:
        RUNS.append(candidate)
        return len(RUNS)

    assert (match("a"), match("b")) == (1, 2)
    assert match.invalidate("a") is True
    assert (match("a"), match("b")) == (3, 2)
    assert match.refresh("b") == 4
    assert match("b") == 4
    assert cache.get(match.key("b")) == 4


def test_tags_are_made_of_the_arguments(cache: Cache) -> None:
    """Job 42 was withdrawn: every result that mentions it goes, however it was asked for."""

    @cache.cached(tags=("job:{job_id}", "all"))
    def applicants(job_id: int, limit: int = 10) -> int:
        RUNS.append(job_id)
        return len(RUNS)

    for _ in range(2):
        assert (applicants(42), applicants(42, 5), applicants(43)) == (1, 2, 3)
    cache.invalidate_tags("job:42")
    assert (applicants(42), applicants(42, 5), applicants(43)) == (4, 5, 3)


def test_options_hold_for_every_call(cache: Cache, clock: ManualClock) -> None:
    """Given once, where the function is, and not at each of its calls."""

    @cache.cached(ttl=10, stale_if_error=60)
    def match() -> str:
        if RUNS:
            raise ConnectionError
        return "old"

    assert match() == "old"
    RUNS.append(1)
    clock.advance(11)
    assert match() == "old"


def test_it_looks_like_the_function(cache: Cache) -> None:
    """Frameworks read names, docs and signatures."""

    @cache.cached()
    def match(candidate: str) -> str:
        """Match."""
        return candidate

    assert (match.__name__, match.__doc__, match.__module__) == ("match", "Match.", __name__)
    assert match.__wrapped__("c1") == "c1"


def test_a_method_looks_like_the_method() -> None:
    """Frameworks read names, docs and signatures of methods, too."""
    method = Matcher("a").match
    assert method.__name__ == "match"
    assert method.__qualname__ == "Matcher.match"
    assert list(inspect.signature(method).parameters) == ["candidate", "limit"]
    assert method.__wrapped__("c1") == "c1 by a"
    assert list(inspect.signature(Matcher.match).parameters) == ["self", "candidate", "limit"]


def test_a_method_stays_that_of_its_object() -> None:
    """As a plain method does that another class has for an attribute."""

    class Other:
        match = Matcher("a").match

    assert Other().match("c1") == "c1 by a"


def test_coroutine_functions_are_awaited() -> None:
    """The same names, awaited."""

    async def use() -> None:
        cache = AsyncRedisCache(LocalCache())

        class Service:
            name = "s"

            @cache.cached(key="{self.name}:{candidate}")
            async def match(self, candidate: str) -> int:
                RUNS.append(candidate)
                await asyncio.sleep(0)
                return len(RUNS)

        @cache.cached(ttl=60, tags=("c:{candidate}",))
        async def match(candidate: str, limit: int = 10) -> int:
            RUNS.append(candidate)
            await asyncio.sleep(0)
            return len(RUNS)

        assert await asyncio.gather(*(match("a") for _ in range(8))) == [1] * 8
        assert await match("a", 10) == 1
        assert await match.invalidate("a") is True
        assert await match("a") == 2
        assert await match.refresh("a") == 3
        assert await cache.get(match.key("a")) == 3
        await cache.invalidate_tags("c:a")
        assert await match("a") == 4
        assert await Service().match("a") == 5
        assert await Service().match("a") == 5
        with pytest.raises(TypeError, match="'candidate'"):
            await match(object())  # type: ignore[arg-type]
        await cache.aclose()

    asyncio.run(use())


TYPED = """
import asyncio
from typing import Any, assert_type

from jmcache import AsyncCachedFunction, AsyncRedisCache, CachedFunction, LoadContext, LocalCache

cache = LocalCache()
awaited = AsyncRedisCache(cache)

@cache.cached(ttl=60)
def match(candidate: str, limit: int = 10) -> list[str]:
    return [candidate] * limit

@awaited.cached(ttl=60)
async def match_soon(candidate: str) -> list[str]:
    return [candidate]

@cache.cached()
def anything(candidate: str) -> Any:
    return candidate

class Matcher:
    @cache.cached(key="{candidate}")
    def match(self, candidate: str, *, limit: int = 10) -> list[str]:
        return [candidate]

    @awaited.cached(key="{candidate}")
    async def match_soon(self, candidate: str) -> list[str]:
        return [candidate]

    @staticmethod
    @cache.cached()
    def rank(candidate: str) -> int:
        return 1

    @classmethod
    @cache.cached(key="{candidate}")
    def of_all(cls, candidate: str) -> int:
        return 1

def load(context: LoadContext) -> int:
    return 1

async def load_soon() -> int:
    return 1

async def load_many_soon(keys: list[str]) -> dict[str, int]:
    return dict.fromkeys(keys, 1)

matcher = Matcher()
kept: CachedFunction[[str], Any] = anything
kept_soon: AsyncCachedFunction[[str], list[str]] = match_soon
assert_type(match("a", limit=5), list[str])
assert_type(match.refresh("a"), list[str])
assert_type(match.key("a", 5), str)
assert_type(match.invalidate("a"), bool)
assert_type(anything.invalidate("a"), bool)
assert_type(matcher.match("a", limit=1), list[str])
assert_type(matcher.match.refresh("a"), list[str])
assert_type(matcher.match.key("a"), str)
assert_type(matcher.match.invalidate("a"), bool)
assert_type(matcher.of_all("a"), int)
number: int = Matcher.rank("a") + Matcher.of_all("a") + len(Matcher.match(matcher, "a"))
assert_type(cache.get_or_set("k", load), int)
assert_type(cache.get_or_set("k", lambda: 1), int)
assert_type(cache.get_or_set_many(["k"], lambda keys: dict.fromkeys(keys, 1)), dict[str, int])

async def use() -> None:
    assert_type(await match_soon("a"), list[str])
    assert_type(await match_soon.refresh("a"), list[str])
    assert_type(await match_soon.invalidate("a"), bool)
    assert_type(await asyncio.create_task(match_soon("a")), list[str])
    assert_type(await matcher.match_soon("a"), list[str])
    assert_type(await matcher.match_soon.invalidate("a"), bool)
    assert_type(await awaited.get_or_set("k", load_soon), int)
    assert_type(await awaited.get_or_set("k", load, ttl=5), int)
    assert_type(await awaited.get_or_set("k", lambda: 1), int)
    assert_type(await awaited.get_or_set_many(["k"], load_many_soon), dict[str, int])
    many = await awaited.get_or_set_many(["k"], lambda keys: dict.fromkeys(keys, 1))
    assert_type(many, dict[str, int])
    await matcher.match_soon(5)  # E
    await awaited.get_or_set("k", load_soon, tll=5)  # E
    wrong_soon: str = await awaited.get_or_set("k", load_soon)  # E

bad_result: int = match("a")  # E
match(1)  # E
match("a", limits=5)  # E
match.invalidate()  # E
match.refresh("a", "b")  # E
match.key(b"a")  # E
match_soon(5)  # E
matcher.match(5)  # E
matcher.match("a", 5)  # E
matcher.match.invalidate()  # E
matcher.of_all()  # E
cache.cached(match)  # E
cache.cached(tll=5)  # E
cache.get_or_set("k", lambda: 1, ttl="x")  # E
value: int = cache.get_or_set("k", lambda: 1)
wrong: str = cache.get_or_set("k", lambda: 1)  # E
"""


def test_a_type_checker_sees_the_functions_arguments_and_result(tmp_path: Path) -> None:
    """A decorator that turns everything into Any switches the checker off where it matters."""
    program = tmp_path / "typed.py"
    program.write_text(TYPED, encoding="utf-8")
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--no-error-summary", str(program)),
        ],
        cwd=ROOT,  # its settings, and what it has checked already
        env={"MYPYPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    lines = {int(line.split(":")[1]) for line in checked.stdout.splitlines() if "typed.py:" in line}
    wanted = {number for number, line in enumerate(TYPED.splitlines(), 1) if "# E" in line}
    assert lines == wanted, checked.stdout + checked.stderr


IN_MEMORY = LocalCache()


@IN_MEMORY.cached()
def squared(number: int) -> int:
    """For other processes, which find it by its name."""
    return number * number


class Board:
    @IN_MEMORY.cached(key="{number}")
    def cubed(self, number: int) -> int:
        return number**3


def test_it_is_pickled_by_its_name() -> None:
    """Pools of processes, and task queues, send functions so."""
    assert pickle.loads(pickle.dumps(squared)) is squared
    assert pickle.loads(pickle.dumps(Board().cubed))(2) == 8
    assert copy.deepcopy(squared) is squared
