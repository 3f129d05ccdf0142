"""Settings of a continual classifier: everything about it that no image can teach."""

from dataclasses import asdict, dataclass, fields
from typing import Any

from learnkit.continual.closed_form.near_copies import COPY_RULE, CopyRule
from learnkit.errors import OodInsufficientDataError, StatisticsError

CLASSIFIERS = ("lda", "ridge", "prototype")
SCORES = ("combined", "mahalanobis", "relative", "knn", "msp", "energy")
GUARANTEES = ("loo", "split", "pac")
PRIORS = ("training", "uniform")
# What leads from the statistics to the answers. A state keeps the rules it began with, so that it
# answers as ever; 1 are those of before it had a number.
RULES = 4
# By these most versions of images of 32 pixels were missed: of fresh ones .19 were flagged where
# five images a class came in ten versions each, .12 where twenty did.
_COPY_RULES = {1: CopyRule(0.35, 2.0, strays=0), 2: CopyRule(0.35, 2.0)}
# A Gram matrix of more features takes 34 GB, and no memory holds more images.
MOST_FEATURES, MOST_REMEMBERED = 2**16, 2**31 - 1
_CHOICES = {
    "classifier": CLASSIFIERS,
    "score": SCORES,
    "guarantee": GUARANTEES,
    "prior": PRIORS,
}


def check_whole(name: str, value: Any, *, least: int, most: int = MOST_REMEMBERED) -> None:
    """Raise StatisticsError unless `value` is a whole number in least..most."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        limit = f", {most:,} at most" if isinstance(value, int) and value > most else ""
        raise StatisticsError(
            f"`{name}` is {value!r:.80}; give a whole number of {least} or more{limit}"
        )


@dataclass(frozen=True)
class Settings:
    """Settings of a `ContinualClassifier`; see there. They are checked when made.

    Raises:
        StatisticsError: A value is none of those allowed.
        OodInsufficientDataError: The score needs a memory, and there is none.
    """

    n_features: int
    root: bool = False
    memory: int = 64
    classifier: str = "lda"
    score: str = "combined"
    false_alarm_rate: float = 0.05
    guarantee: str = "loo"
    prior: str = "training"
    per_class: bool = False
    case_sensitive: bool = False
    blend: bool = True
    near_copies: bool = True
    rules: int = RULES

    def __post_init__(self) -> None:
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise StatisticsError(
                    f"`{name}` is {getattr(self, name)!r}; choose one of {', '.join(choices)}"
                )
        check_whole("n_features", self.n_features, least=1, most=MOST_FEATURES)
        check_whole("memory", self.memory, least=0)
        check_whole("rules", self.rules, least=1, most=RULES)
        for name in "root", "per_class", "case_sensitive", "blend", "near_copies":
            if not isinstance(getattr(self, name), bool):
                raise StatisticsError(f"`{name}` is {getattr(self, name)!r}; give True or False")
        rate = self.false_alarm_rate
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate < 1:
            raise StatisticsError(
                f"`false_alarm_rate` is {rate!r}; give a share between 0 and 1, such as 0.05"
            )
        if self.score == "knn" and not self.memory:
            raise OodInsufficientDataError(
                "`score='knn'` measures the distance to remembered features, and `memory=0` "
                "remembers none; choose a memory above 0 or another score"
            )

    @property
    def rule(self) -> tuple[str, bool, int]:
        """What decides, beside the statistics, on weights and held-out logits."""
        return self.classifier, self.blend, self.rules

    @property
    def copy_rule(self) -> CopyRule:
        """What near copies are."""
        return _COPY_RULES.get(self.rules, COPY_RULE)

    @property
    def fresh_rule(self) -> CopyRule | None:
        """What near copies among validation images are; None: they are not looked for."""
        return self.copy_rule if self.near_copies else None

    @property
    def of_statistics(self) -> dict[str, Any]:
        """What class statistics are made with, apart from their width."""
        return {
            "root": self.root,
            "memory_size": self.memory,
            "case_sensitive": self.case_sensitive,
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Any) -> "Settings":
        """Settings from what `to_dict` gave.

        Raises:
            StatisticsError: Keys are missing or unknown, or a value is none of those allowed.
        """
        wanted = {field.name for field in fields(cls)}
        if not isinstance(values, dict) or set(values) != wanted:
            seen = sorted(map(str, values)) if isinstance(values, dict) else type(values).__name__
            raise StatisticsError(f"settings are {seen}; they must be {sorted(wanted)}")
        return cls(**values)
