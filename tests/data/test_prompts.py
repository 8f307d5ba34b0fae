from __future__ import annotations

from pathlib import Path

import pytest

from edgegen.data.emoji import EmojiSet
from edgegen.data.evaluation import evaluation_pictures
from edgegen.data.prompts import PromptData

GROUPS = ["animals-nature", "food-drink"]


def samples(data: PromptData, count: int, start: int = 0) -> list[dict]:
    data.setup()
    return [data.train_set[number] for number in range(start, start + count)]


@pytest.mark.parametrize("distinct", [None, 2000])
def test_captions_are_of_the_dev_half_of_the_training_split(
    emoji_file: Path, distinct: int | None
) -> None:
    emoji = EmojiSet(emoji_file, groups=GROUPS, tones=False)

    def things(split: str, half: str | None) -> set[tuple[str, str]]:
        found = [emoji.pictures[i] for i in evaluation_pictures(emoji, split, half)]
        return {(emoji.concepts[picture.concept].label, picture.style) for picture in found}

    allowed = things("train", "dev")
    refused = things("train", "test") | things("cells", None) | things("concepts", None)
    assert allowed
    assert refused
    data = PromptData(4, emoji=str(emoji_file), groups=GROUPS, distinct=distinct)
    asked = set()
    for sample in samples(data, 2000):
        parts = sample["prompt"].split(", ")
        if not parts[-1].endswith(" style"):
            continue  # left out at times
        label = parts[0].removeprefix("a ").removeprefix("an ")
        asked.add((label, parts[-1].removesuffix(" style")))
    assert asked <= allowed
    assert not asked & refused
    assert len(asked) > 0.9 * len(allowed)


def test_endless_samples_never_share_noise(emoji_file: Path) -> None:
    found = samples(PromptData(4, emoji=str(emoji_file)), 1000)
    assert len({sample["seed"] for sample in found}) == 1000
    assert {sample["row"] for sample in found} == {-1}
    again = samples(PromptData(4, emoji=str(emoji_file)), 10, start=500)
    assert again == found[500:510]
    other = samples(PromptData(4, emoji=str(emoji_file), seed=1), 1000)
    assert not {s["seed"] for s in other} & {s["seed"] for s in found}


def test_distinct_samples_come_again_in_another_order(emoji_file: Path) -> None:
    data = PromptData(4, emoji=str(emoji_file), distinct=30)
    first, second = samples(data, 30), samples(data, 30, start=30)
    assert first != second
    by_row = {sample["row"]: sample for sample in first}
    assert sorted(by_row) == list(range(30))
    assert {sample["row"]: sample for sample in second} == by_row
    assert len({sample["seed"] for sample in first}) == 30
    # More of them are other rows beside these.
    larger = samples(PromptData(4, emoji=str(emoji_file), distinct=60), 60)
    assert {s["row"]: s for s in larger if s["row"] < 30} == by_row


def test_digest_tells_what_the_samples_are(emoji_file: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a\nb\n")
    other = tmp_path / "other.txt"
    other.write_text("a\nc\n")
    digests = [
        PromptData(1, emoji=str(emoji_file)).digest,
        PromptData(1, emoji=str(emoji_file), seed=1).digest,
        PromptData(1, emoji=str(emoji_file), limit=6).digest,
        PromptData(1, prompts_file=str(file)).digest,
        PromptData(1, prompts_file=str(other)).digest,
    ]
    assert len(set(digests)) == 5
    # The batch and the number of rows change no sample.
    assert PromptData(2, prompts_file=str(file), distinct=9).digest == digests[3]


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a fox\n\n  an ox, é \n", encoding="utf-8")
    found = samples(PromptData(1, prompts_file=str(file)), 8)
    assert [sorted(s["prompt"] for s in found[i : i + 2]) for i in range(0, 8, 2)] == [
        ["a fox", "an ox, é"]
    ] * 4


def test_mistakes(emoji_file: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"prompts_file=none\.txt: no such file"):
        PromptData(1, prompts_file="none.txt")
    empty = tmp_path / "empty.txt"
    empty.write_text(" \n")
    with pytest.raises(ValueError, match="holds no prompt"):
        PromptData(1, prompts_file=str(empty))
    empty.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        PromptData(1, prompts_file=str(empty))
    with pytest.raises(ValueError, match="distinct=3: must be the batch size of 4 or more"):
        PromptData(4, emoji=str(emoji_file), distinct=3)
    with pytest.raises(ValueError, match="no captions"):
        PromptData(4, emoji=str(emoji_file), limit=0)
