from hypothesis import given
from hypothesis import strategies as st

from speechssl.data.manifest import Utterance
from speechssl.data.subsets import label_subset, random_key


@given(st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=30), st.integers(1, 60))
def test_subsets_are_nested_and_have_every_letter(texts: list[str], seconds: int) -> None:
    utterances = [Utterance(f"{n}", 16_000, text=text) for n, text in enumerate(texts)]
    keys = [random_key("seed", str(n)) for n in range(len(texts))]
    small, large = (label_subset(utterances, keys, minutes / 60) for minutes in (seconds, 2 * seconds))
    assert len(small) == min(seconds, len(texts))
    assert set(small) <= set(large)
    assert sorted(large, key=utterances.index) == large
    if len(small) >= len(set("".join(texts))):
        assert set("".join(u.text or "" for u in small)) == set("".join(texts))


def test_the_order_depends_on_seed_and_name() -> None:
    names = [str(number) for number in range(20)]
    orders = [sorted(names, key=lambda name: random_key(seed, name)) for seed in ("a", "a", "b")]
    assert orders[0] == orders[1] != orders[2] != names
