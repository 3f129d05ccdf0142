"""The confusion matrix of a page: which classes it shows, in what orders, how dark, how named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

_ALL = 32  # so many classes are shown whether they have mistakes or not
_MOST = 60  # above that a matrix is no longer read, but a list is
_PAIRS = 50
_LEVELS = 10
_LABEL = 22  # characters of a class beside or above its cells


@dataclass(frozen=True)
class MatrixCell:
    """How many images of a row's class were taken for a column's, and their share of the row.

    Attributes:
        actual: index of the row's class.
        predicted: index of the column's class.
        n: the images.
        share: of the row, 0 to 1; 0 in an empty row.
    """

    actual: int
    predicted: int
    n: int
    share: float

    @property
    def level(self) -> int:
        """How dark it is, 0 to 10: by share, so that frequent classes do not bleach rare ones."""
        # rounded up: one mistake among thousands has a shade, too
        return min(-int(-self.share * _LEVELS // 1), _LEVELS)


@dataclass(frozen=True)
class Matrix:
    """What is shown of a confusion matrix.

    Attributes:
        shown: indices of the classes, in the order of the rows and columns.
        rows: the cells of each.
        by_errors: positions in `shown`, most mistakes first.
        by_similarity: positions in `shown`, classes that are confused beside each other.
        n_faultless: classes left out, which have no mistakes.
        pairs: the largest confusions, instead of rows where these would be too many.
    """

    shown: list[int]
    rows: list[list[MatrixCell]]
    by_errors: list[int]
    by_similarity: list[int]
    n_faultless: int
    pairs: list[MatrixCell]


def shown_matrix(confusion: Sequence[Sequence[int]]) -> Matrix:
    """What is shown of the counts `confusion[actual][predicted]`.

    All of up to 32 classes; of more only those with mistakes, most first; of more than 60 of those
    the 50 largest confusions.
    """
    counts = np.array(confusion, np.int64).reshape(len(confusion), -1)
    wrong = counts - np.diag(np.diag(counts))
    errors = wrong.sum(0) + wrong.sum(1)
    # stable: of classes with as many mistakes the first stays first
    most_first = np.argsort(-errors, kind="stable")
    shown = np.arange(len(counts))
    if len(counts) > _ALL:
        shown = most_first[errors[most_first] > 0]
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    cell = lambda a, y: MatrixCell(int(a), int(y), int(counts[a, y]), float(share[a, y]))
    if len(shown) > _MOST:
        largest = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
        pairs = [cell(a, y) for a, y in zip(*np.unravel_index(largest, wrong.shape), strict=True)]
        return Matrix([], [], [], [], 0, [one for one in pairs if wrong[one.actual, one.predicted]])
    return Matrix(
        shown.tolist(),
        [[cell(a, y) for y in shown] for a in shown],
        np.argsort(-errors[shown], kind="stable").tolist(),
        _similarity_order(wrong[np.ix_(shown, shown)]),
        len(counts) - len(shown),
        [],
    )


def sparse_counts(counts: np.ndarray) -> list[list[int]]:
    """A confusion matrix for JSON: for each actual class those predicted and how often, in turn.

    Of 1,000 classes it is a hundredth of all the zeros.

    >>> sparse_counts(np.array([[8, 0, 2], [0, 0, 0], [0, 1, 9]]))
    [[0, 8, 2, 2], [], [1, 1, 2, 9]]
    """
    found = (zip(row.nonzero()[0].tolist(), row[row != 0].tolist(), strict=True) for row in counts)
    return [[number for pair in pairs for number in pair] for pairs in found]


def dense_counts(rows: Sequence[Sequence[int]]) -> np.ndarray:
    """The confusion matrix int64 (C, C) that `sparse_counts` wrote.

    >>> dense_counts([[0, 8, 1, 2], []]).tolist()
    [[8, 2], [0, 0]]
    """
    counts = np.zeros((len(rows), len(rows)), np.int64)
    for own, row in zip(counts, rows, strict=True):
        own[row[::2]] = row[1::2]
    return counts


def _similarity_order(wrong: np.ndarray) -> list[int]:
    """Positions so that classes confused either way lie beside each other.

    Groups that are never confused follow each other; within one the order is along the Fiedler
    vector of the graph whose edges are confusions.
    """
    weight = (wrong + wrong.T).astype(float)
    order: list[int] = []
    for start in range(len(weight)):
        if start not in order:
            group = _connected(weight > 0, start)
            inside = weight[np.ix_(group, group)]
            order += [group[k] for k in _fiedler_order(inside)]
    return order


def _connected(edges: np.ndarray, start: int) -> list[int]:
    """The positions that edges lead to from `start`, itself included, in order."""
    reached = np.zeros(len(edges), bool)
    reached[start] = True
    while (wider := reached | edges[reached].any(0)).sum() > reached.sum():
        reached = wider
    return np.flatnonzero(reached).tolist()


def _fiedler_order(weight: np.ndarray) -> list[int]:
    if len(weight) < 3:
        return [*range(len(weight))]
    # the second: eigenvalues ascend, and one of a connected graph is 0
    along = np.linalg.eigh(np.diag(weight.sum(0)) - weight)[1][:, 1].round(9)
    # an eigenvector is one up to its sign
    return np.argsort(along * (-1 if along[0] > 0 else 1), kind="stable").tolist()


def short_names(names: Sequence[str], limit: int = _LABEL) -> list[str]:
    """Labels of at most about `limit` characters that stay distinct where the names are.

    What all long names begin and end with is cut first, as it tells none from another; then what
    is still too long loses its end, and those that are the same by then what they share.

    >>> short_names(["line4_camera_left_crack_2026", "line4_camera_left_fray_2026", "ok"], 12)
    ['…crack…', '…fray…', 'ok']
    """
    labels = _cut(list(names), limit)
    seen: dict[str, int] = {}
    for i, label in enumerate(labels):
        seen[label] = seen.get(label, 0) + 1
        if seen[label] > 1 and names.index(names[i]) == i:
            labels[i] = f"{label} ({i + 1})"
    return labels


def _cut(names: list[str], limit: int) -> list[str]:
    long = [name for name in names if len(name) > limit]
    head, tail = _shared(long)
    labels = []
    for name in names:
        core = name[head : len(name) - tail]
        if len(name) <= limit:
            labels.append(name)
        elif len(core) <= limit:
            labels.append(f"{'…' * (head > 0)}{core}{'…' * (tail > 0)}")
        else:
            labels.append(f"{'…' * (head > 0)}{core[: limit - 1]}…")
    for label in {one for one in labels if labels.count(one) > 1}:
        same = [i for i, one in enumerate(labels) if one == label]
        alike = [names[i] for i in same]
        # the whole names agree for longer now: each round cuts more, until they part
        if len({*alike}) > 1 and _shared(alike) != (head, tail):
            for i, again in zip(same, _cut(alike, limit), strict=True):
                labels[i] = again
    return labels


def _shared(names: list[str]) -> tuple[int, int]:
    """Lengths of what all names begin and end with; a character is left of the shortest."""
    if len({*names}) < 2:
        return 0, 0
    room = min(map(len, names)) - 1
    head, tail = min(_n_same(names), room), _n_same([name[::-1] for name in names])
    head, tail = (n if n > 3 else 0 for n in (head, tail))  # a few characters are kept as they are
    return head, min(tail, room - head)


def _n_same(names: list[str]) -> int:
    """How many characters all begin with."""
    columns = zip(*names, strict=False)
    return sum(1 for _ in takewhile(lambda column: len({*column}) == 1, columns))
