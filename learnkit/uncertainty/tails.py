"""Probability of a larger value, of the normal and of Student's distribution, without scipy."""

import math

_TINY = 1e-300
_PRECISION = 1e-16
_MAX_TERMS = 10_000


def normal_tail(value: float) -> float:
    """Probability that a standard normal variable exceeds `value`, relative error about 1e-15.

    >>> round(normal_tail(1.959963984540054), 12)
    0.025
    """
    return 0.5 * math.erfc(value / math.sqrt(2))


def student_tail(value: float, dof: int) -> float:
    """Probability that Student's t with `dof` degrees of freedom exceeds `value`.

    >>> round(student_tail(0.5, 1), 12) == round(0.5 - math.atan(0.5) / math.pi, 12)
    True
    """
    if math.isinf(value) or value == 0:
        return {0.0: 0.5, math.inf: 0.0, -math.inf: 1.0}[value]
    x, rest = dof / (dof + value * value), 1 / (1 + dof / (value * value))
    half = _incomplete_beta(dof / 2, 0.5, x, rest) / 2
    return half if value > 0 else 1 - half


def _incomplete_beta(a: float, b: float, x: float, rest: float) -> float:
    """Regularised incomplete beta function at `x`; `rest` is 1 - x without its rounding."""
    if x <= 0 or rest <= 0:
        return float(rest <= 0)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(log_front + a * math.log(x) + b * math.log(rest))
    if x < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, x) / a
    return 1 - front * _fraction(b, a, rest) / b


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction of the incomplete beta function, by Lentz's method.

    Source: Press et al., "Numerical recipes", 3rd edition, 2007, section 6.4.
    """
    c, d = 1.0, 1 / _away(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, _MAX_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        for term in (even, odd):
            d, c = 1 / _away(1 + term * d), _away(1 + term / c)
            value *= c * d
        if abs(c * d - 1) < _PRECISION * 4:
            break
    return value


def _away(value: float) -> float:
    """`value`, never 0."""
    return value if abs(value) > _TINY else _TINY
