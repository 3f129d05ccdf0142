"""The order of layers by sensitivity, and the smallest number to keep in float32."""

import math

import numpy as np
import pytest

from learnkit.optimize.quantize.sensitivity import (
    by_worth,
    fewest,
    relative_error,
    sensitive_layers,
)

EXACT = np.array([[0.0, 2.0], [2.0, 0.0], [4.0, 4.0]])


class TestRelativeError:
    def test_is_the_distance_in_units_of_the_spread(self):
        spread = np.sqrt(np.square(EXACT - [2.0, 2.0]).sum() / 3)
        moved = EXACT + [[0.3, 0.4]]
        assert relative_error(moved, EXACT) == pytest.approx(0.5 / spread)

    def test_does_not_depend_on_the_unit_or_the_origin(self):
        moved = EXACT + [[0.1], [0.2], [-0.1]]
        assert relative_error(3 * moved + 7, 3 * EXACT + 7) == pytest.approx(
            relative_error(moved, EXACT)
        )

    def test_without_spread_any_change_is_infinite(self):
        flat = np.ones((3, 2))
        assert relative_error(flat, flat) == 0
        assert relative_error(flat + 1, flat) == math.inf


class TestSensitiveLayers:
    def test_the_worst_comes_first_and_equals_keep_their_order(self):
        sensitivity = {"a": 0.1, "b": 0.5, "c": 0.1, "d": 0.0}
        found = sensitive_layers("abcd", lambda name: EXACT + sensitivity[name], EXACT)
        assert [name for name, _ in found] == ["b", "a", "c", "d"]
        assert found[0][1] == pytest.approx(relative_error(EXACT + 0.5, EXACT))

    def test_every_layer_is_counted(self):
        counted = []
        sensitive_layers("abc", lambda _: EXACT, EXACT, counted.append)
        assert counted == [1, 1, 1]


class TestByWorth:
    def test_of_equal_cost_the_most_damaging_comes_first(self):
        sensitivities = [("a", 0.1), ("b", 0.3), ("c", 0.2)]
        assert by_worth(sensitivities, dict.fromkeys("abc", 7)) == ["b", "c", "a"]

    def test_of_equal_damage_the_narrowest_comes_first_and_equals_keep_their_order(self):
        sensitivities = [(name, 0.5) for name in "abcd"]
        assert by_worth(sensitivities, {"a": 9, "b": 4, "c": 9, "d": 1}) == ["d", "b", "a", "c"]

    def test_twice_the_damage_pays_for_sixteen_times_the_numbers_and_no_more(self):
        sensitivities = [("wide", 0.2), ("narrow", 0.1)]
        assert by_worth(sensitivities, {"wide": 1599, "narrow": 100})[0] == "wide"
        assert by_worth(sensitivities, {"wide": 1601, "narrow": 100})[0] == "narrow"


class TestFewest:
    @pytest.mark.parametrize("n", [1, 2, 7, 26])
    def test_finds_the_threshold_wherever_it_is_in_few_attempts(self, n):
        for threshold in range(1, n + 1):
            tried = []
            found = fewest(n, lambda k, tried=tried: tried.append(k) or k, threshold.__le__)
            assert found == threshold
            assert len(tried) <= 2 * math.ceil(math.log2(threshold + 1)) + 1
            assert len(set(tried)) == len(tried)

    def test_gives_nothing_if_all_do_not_suffice(self):
        assert fewest(5, lambda k: k, lambda k: k > 5) is None
        assert fewest(0, lambda k: k, lambda k: True) is None
