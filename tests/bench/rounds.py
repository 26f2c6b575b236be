"""How contenders take turns, and what they have to show for it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from tests.bench.contenders import Contender, GaveUp, told
from tests.bench.figures import RUNPOD, RUNPOD_ASYNCIO

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from tests.bench.figures import Figure

PATIENT = (RUNPOD, RUNPOD_ASYNCIO)
"""Those that sleep for a second before each look: nothing is gained by warming them up, and nobody is
disturbed when they wait at the same time."""


def in_turn(
    repeats: int,
    contenders: Sequence[Contender],
    once: Callable[[Contender], None],
    figures: Iterable[Figure],
    *,
    together: Collection[str] = PATIENT,
) -> None:
    """Let each contender do something once, and again, so that a busy moment of the machine hits all.

    Args:
        repeats: How often.
        contenders: Who.
        once: What; it adds its samples itself.
        figures: Where it is noted that one of them did not come back.
        together: Those that do it at the same time, after the others.
    """

    def one(contender: Contender) -> None:
        try:
            once(contender)
        except GaveUp:
            for figure in figures:
                figure.fail(contender.name, "did not come back")

    for _ in range(repeats):
        for contender in contenders:
            if contender.name not in together:
                one(contender)
        beside = [contender for contender in contenders if contender.name in together]
        if beside:
            with ThreadPoolExecutor(len(beside)) as threads:
                list(threads.map(one, beside))


def warmed_up(contender: Contender) -> None:
    """Let its open client make its connection, and import what it imports."""
    if contender.name not in PATIENT:
        contender.order("streams", inputs=[{"tokens": 1}], patience=10.0)


def streamed(contender: Contender, *inputs: dict[str, Any], **details: Any) -> list[dict[str, Any]]:
    """What was seen of a stream for each of these inputs, all at once."""
    found: list[dict[str, Any]] = contender.order("streams", inputs=inputs, **details)["streams"]
    return found


def missing(seen: dict[str, Any], tokens: int) -> str | None:
    """What a stream did not deliver, in words; None where every token came, in order and once."""
    came = seen["tokens"]
    if came == list(range(tokens)) and seen["error"] is None:
        return None
    how = f"{len(came)} of {tokens} tokens"
    if len(set(came)) < len(came):
        how += f", {len(came) - len(set(came))} twice"
    return f"{how}, {(seen['error'] or 'as if that were all')[:70]}"


def tag(contender: Contender, number: int = 0) -> str:
    """What its jobs are known by, where others have jobs too."""
    return f"{contender.name.replace(' ', '-')}-{number}"


def stamps(url: str, tag: str) -> dict[str, Any]:
    """What the stopwatch wrote down about the newest job with this tag."""
    found: dict[str, Any] = told(url, f"/tagged/{tag}")
    return found
