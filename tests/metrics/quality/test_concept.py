"""Against loops over pictures, and cases whose answer is plain to see."""

import math

import pytest
import torch

from edgegen.metrics.quality.concept import Gallery, copies, cosine


def at(*degrees: float) -> torch.Tensor:
    """Unit features in the plane: the cosine of two is that of the angle between them."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def plain_nearest(query, concept, family, gallery, k):
    """The definition, a loop over pictures."""
    scored = []
    for row in range(len(gallery.features)):
        if gallery.concepts[row] == concept and gallery.families[row] == family:
            continue
        other = gallery.features[row].double()
        similarity = torch.dot(query.double(), other) / (query.double().norm() * other.norm())
        scored.append((-similarity.item(), row))
    return [row for _, row in sorted(scored)[:k]]


def test_it_agrees_with_a_loop_over_pictures():
    generator = torch.Generator().manual_seed(0)
    draw = lambda high, n: torch.randint(high, (n,), generator=generator)  # noqa: E731
    gallery = Gallery(torch.randn(90, 7, generator=generator), draw(20, 90), draw(4, 90))
    features, concepts, families = torch.randn(600, 7), draw(20, 600), draw(4, 600)
    nearest = gallery.nearest(features, concepts, families)
    correct = gallery.correct(features, concepts, families)
    answerable = gallery.answerable(concepts, families)
    for i in range(len(features)):
        asked, family = concepts[i].item(), families[i].item()
        expected = plain_nearest(features[i], asked, family, gallery, 5)
        assert nearest[i].tolist() == expected
        assert correct[i] == any(gallery.concepts[row] == asked for row in expected)
        others = [
            row
            for row in range(len(gallery.concepts))
            if gallery.concepts[row] == asked and gallery.families[row] != family
        ]
        assert answerable[i] == bool(others)
    assert 0 < correct.float().mean() < 1


NOTO, FLUENT = 0, 1
FOX, CAT, DOG = 0, 1, 2


def test_the_asked_picture_and_its_siblings_are_left_out():
    # A fox in noto, then in three Fluent styles, then cats.
    gallery = Gallery(
        at(0, 50, 51, 52, 90, 91),
        torch.tensor([FOX, FOX, FOX, FOX, CAT, CAT]),
        torch.tensor([NOTO, FLUENT, FLUENT, FLUENT, NOTO, FLUENT]),
    )
    near_fluent = at(51.2)
    ask = lambda concept, family, k: gallery.correct(  # noqa: E731
        near_fluent, torch.tensor([concept]), torch.tensor([family]), k
    ).item()
    assert ask(FOX, NOTO, 1)  # the Fluent foxes are in another family
    assert not ask(FOX, FLUENT, 2)  # all of them are hidden, and the noto fox is far: two cats
    assert ask(FOX, FLUENT, 3)
    assert not ask(CAT, NOTO, 3)
    assert gallery.nearest(
        near_fluent, torch.tensor([FOX]), torch.tensor([FLUENT]), 3
    ).tolist() == [[4, 5, 0]]


def test_a_copy_of_the_hidden_picture_earns_nothing():
    gallery = Gallery(at(0, 80, 10), torch.tensor([FOX, FOX, CAT]), torch.tensor([0, 1, 0]))
    asked = torch.tensor([FOX]), torch.tensor([0])
    assert not gallery.correct(at(0), *asked, k=1)
    assert gallery.correct(at(60), *asked, k=1)


def test_an_ask_without_another_picture_of_its_concept_is_not_answerable():
    gallery = Gallery(
        at(0, 10, 20, 30), torch.tensor([FOX, FOX, CAT, CAT]), torch.tensor([1, 1, 0, 1])
    )
    concepts, families = torch.tensor([FOX, FOX, CAT, CAT, DOG]), torch.tensor([1, 0, 0, 1, 0])
    expected = [False, True, True, True, False]
    assert gallery.answerable(concepts, families).tolist() == expected
    assert gallery.correct(at(0, 0, 0, 0, 0), concepts, families).tolist() == expected


def test_a_short_gallery_fills_up_with_minus_one():
    gallery = Gallery(at(0, 10), torch.tensor([FOX, CAT]), torch.tensor([0, 0]))
    asked = torch.tensor([FOX]), torch.tensor([0])
    assert gallery.nearest(at(0), *asked).tolist() == [[1, -1, -1, -1, -1]]
    assert not gallery.correct(at(0), *asked).item()
    # Row -1 is the last picture, and must not be taken for one.
    asked = torch.tensor([CAT]), torch.tensor([0])
    assert not gallery.correct(at(0), *asked).item()


def test_the_length_of_features_does_not_matter_and_ties_go_to_the_first():
    gallery = Gallery(
        at(30, 30, 30) * torch.tensor([[5.0], [0.1], [1.0]]),
        torch.tensor([CAT, FOX, FOX]),
        torch.tensor([0, 0, 0]),
    )
    nearest = gallery.nearest(at(30) * 7, torch.tensor([DOG]), torch.tensor([0]), 3)
    assert sorted(nearest[0].tolist()) == [0, 1, 2]
    same = Gallery(at(30, 30, 30), torch.tensor([CAT, FOX, FOX]), torch.tensor([0, 0, 0]))
    found = same.nearest(at(12), torch.tensor([DOG]), torch.tensor([0]), 3)
    assert found.tolist() == [[0, 1, 2]]


def test_lengths_must_agree():
    with pytest.raises(ValueError, match="must be of one length, got 2, 1, 2"):
        Gallery(at(0, 1), torch.tensor([0]), torch.tensor([0, 0]))


def test_cosine_is_that_of_torch():
    a, b = torch.randn(4, 9), torch.randn(3, 9)
    expected = torch.nn.functional.cosine_similarity(a[:, None].double(), b[None].double(), dim=2)
    torch.testing.assert_close(cosine(a, b), expected)


def test_a_copy_is_nearer_than_the_nearest_other_training_picture():
    training = at(0, 20, 90)  # 0 and 20 are 20 apart; 90 has its nearest other at 70
    made = {1.0: True, 19.0: True, -19.0: True, -21.0: False, 39.0: True, 41.0: True, 100.0: True}
    # 41 is 21 from 20, but only 49 from 90, whose own nearest is 70 away.
    assert copies(at(*made), training).tolist() == list(made.values())
    assert copies(at(200.0), training).tolist() == [False]
    assert copies(training, training).all()


def test_copies_agree_with_a_loop_over_pictures():
    generator = torch.Generator().manual_seed(1)
    training = torch.randn(530, 6, generator=generator)  # more than one chunk
    made = torch.randn(540, 6, generator=generator)
    unit = torch.nn.functional.normalize(training.double()).numpy()
    queries = torch.nn.functional.normalize(made.double()).numpy()
    reach = [max(unit[t] @ unit[u] for u in range(530) if u != t) for t in range(530)]
    expected = [any(query @ unit[t] > reach[t] for t in range(530)) for query in queries]
    found = copies(made, training)
    assert found.tolist() == expected
    assert 0 < sum(expected) < len(expected)


def test_one_training_picture_cannot_tell_copies():
    with pytest.raises(ValueError, match="two training pictures or more, got 1"):
        copies(at(0), at(0))
