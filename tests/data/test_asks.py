import pytest

from edgegen.data.asks import AskBatches


@pytest.mark.parametrize(("count", "size"), [(1, 1), (1, 5), (7, 3), (6, 3), (10, 4)])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_ask_is_in_one_process_and_every_batch_is_full(
    count: int, size: int, world: int
) -> None:
    batches = AskBatches(count, size)
    shares = [[batches[n] for n in batches.share(rank, world)] for rank in range(world)]
    flat = [batch for share in shares for batch in share]
    assert all(len(batch) == size for batch in flat)
    once = [place for batch in flat for place in dict.fromkeys(batch)]
    assert sorted(once) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_the_last_is_repeated() -> None:
    assert list(AskBatches(5, 3)) == [[0, 1, 2], [3, 4, 4]]


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="must be 1 or more"):
        AskBatches(0, 3)
    with pytest.raises(IndexError):
        AskBatches(5, 3)[2]
