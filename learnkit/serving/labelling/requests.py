"""Requests of a page: what is checked before anything is done, and those that are sent again."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from learnkit.continual.knowledge import Knowledge
from learnkit.serving.http_errors import Refusal
from learnkit.serving.labelling.journal import ASIDE, Change
from learnkit.serving.labelling.label_names import (
    NameProblem,
    checked_name,
    problem_of,
)

_LONGEST_WHO = 40
_REMEMBERED = 10_000
_SECONDS = 24 * 3600.0

Answer = tuple[int, dict[str, Any]]  # status and content


def key_in(asked: dict[str, Any]) -> str:
    """The key of a request; Refusal 400 if it has none."""
    key = asked.get("key")
    if not isinstance(key, str) or not 8 <= len(key) <= 64 or not key.isascii():
        raise Refusal(400, "send `key`, a new random text of 8 to 64 letters, for each request")
    return key


def who_in(asked: dict[str, Any], *, named: bool) -> str:
    """What the person calls themselves, in 40 signs that can be shown; "" if that is not kept."""
    who = asked.get("who")
    if not named or not isinstance(who, str):
        return ""
    return "".join(sign for sign in who if sign.isprintable())[:_LONGEST_WHO].strip()


def label_in(asked: dict[str, Any], known: Knowledge, *, locked: bool) -> str:
    """The class that a request names: one there is, or a new one that may be made.

    Raises:
        Refusal: 400 no name, or one that cannot be; 403 no classes are made here.
    """
    label = asked.get("label")
    if not isinstance(label, str):
        raise Refusal(400, "send `label`, the name of a class, or `action`")
    label = checked_name(label)
    if known.n_images.get(label):
        # a model trained elsewhere may have a class whose name leads out of the folder
        if label.startswith(".") or any(sign in label for sign in "/\\\0"):
            raise Refusal(400, f"{label!r} can be no folder's name; rename the class first")
        return label
    if locked:
        raise Refusal(403, "no classes can be made here", more={"kind": "locked"})
    check_name(label, known, again=asked.get("again") is True)
    if asked.get("new") is not True:
        raise Refusal(400, f"there is no class {label!r}; send `new` to make it")
    return label


def check_name(name: str, known: Knowledge, *, again: bool = False) -> None:
    """Raise Refusal 400 for what no new class can be called; `again` takes up a former name."""
    problem = _problem(name, known)
    if problem is not None and not (again and problem.code == "forgotten"):
        more = {"kind": "name", "code": problem.code, "known": problem.known}
        raise Refusal(400, problem.sentence, more=more)


def _problem(name: str, known: Knowledge) -> NameProblem | None:
    n_images, name = known.n_images, checked_name(name)
    if n_images.get(name):
        return NameProblem("same", f"There is a class {name} already.", name)
    forgotten = {one: one for one, n in n_images.items() if not n}
    there = [one for one, n in n_images.items() if n]
    return problem_of(name, there, {**known.statistics.former_names, **forgotten})


def check_class_change(do: str, name: Any, to: Any, known: Knowledge) -> None:
    """Raise Refusal 400 for a class that cannot be renamed, merged or forgotten so."""
    n_images = known.n_images
    if not isinstance(name, str) or not n_images.get(name):
        raise Refusal(400, f"there is no class {str(name)[:80]!r} with images")
    if do == "forget":
        return
    if not isinstance(to, str):
        raise Refusal(400, f"`{do}` needs the name to go to")
    if do == "merge" and (not n_images.get(to) or to == name):
        raise Refusal(400, f"there is no other class {to[:80]!r} with images")
    if do == "rename":
        problem = _problem(to, known)
        # its own name in another spelling is no other class
        respelled = problem is not None and problem.code == "same" and problem.known == name
        if not respelled or to == name:
            check_name(to, known)


def outcome_of(change: Change) -> dict[str, Any]:
    """What a page is told of a change."""
    about, state = change.about, change.state
    done = "moved" if change.do in ASIDE else "learned"
    return {
        "result": state if state in ("queued", "undone", "refused") else done,
        "ids": [image["id"] for image in change.images],
        "label": about.get("label"),
        "n": about.get("n"),
        "reason": about.get("reason"),
        "n_known_now": 0,
        "suspicion": None,
        "already": None,
        "since": None,
    }


class Repeats:
    """Answers by the keys of their requests, for a day.

    Args:
        clock: gives seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.time):
        self._clock = clock
        self._answers: OrderedDict[str, tuple[float, Answer]] = OrderedDict()

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def answer(self, key: str, make: Callable[[], Answer]) -> Answer:
        """The answer that was given under a key, or the one that is made now.

        What `make` raises comes through and is not kept: nothing was done, and may be tried again.
        """
        now = self._clock()
        while self._answers and next(iter(self._answers.values()))[0] < now - _SECONDS:
            self._answers.popitem(last=False)
        if key not in self._answers:
            self._answers[key] = now, make()
            if len(self._answers) > _REMEMBERED:
                self._answers.popitem(last=False)
        return self._answers[key][1]
