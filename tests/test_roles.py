"""Every position knows what it is to the edit, and contrasts that are not aligned are refused."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mechir as mi
from mechir.batches import Batch
from mechir.contrasts import ROLES, Contrast, align, contrasts_hash, encode_contrasts, refuse_unaligned
from mechir.diagnostics import QuerySwap, Tfc1
from mechir.encoder import HookedEncoder
from mechir.encoding import Encoded, encode
from mechir.errors import MechirError
from mechir.pair import Pair
from mechir.reranker import Reranker
from mechir.segments import Segment
from tests.models import FAMILIES, Checkpoints, stub
from tests.test_contrasts import (
    BERT,
    DOCUMENT,
    FILLER,
    FILLERS,
    PLAIN,
    WORD,
    encoded,
    few,
    insertion,
    pair_of,
    pieces,
)
from tests.test_no_contrast import byte_level

# Roles


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, checkpoints: Checkpoints) -> HookedEncoder:
    return HookedEncoder.from_pretrained(checkpoints.path(request.param))


def named(model: HookedEncoder, contrast: Contrast) -> list[str]:
    """The role of every position of one contrast."""
    return [ROLES[role] for role in encode_contrasts(model, [contrast]).roles[0]]


QUERIES = st.lists(WORD | FILLER, min_size=1, max_size=4).filter(lambda words: not set(words) <= set(FILLERS))


@given(data=st.data(), query=QUERIES, document=DOCUMENT, filler=FILLER)
@few
def test_every_position_has_the_one_role_that_its_ids_say(
    model: HookedEncoder, data: st.DataObject, query: list[str], document: list[str], filler: str
) -> None:
    term = data.draw(st.sampled_from([word for word in query if word not in FILLERS]))
    place = data.draw(st.integers(0, len(document)))
    found = align(pair_of(document, " ".join(query)), insertion(place, [term]), model.tokenizer, filler)
    base, donor = encoded(found, model.tokenizer)
    wanted = []
    for one, other, segment in zip(base.ids[0], donor.ids[0], base.segments[0], strict=True):
        part = {Segment.QUERY: "query", Segment.DOC: "doc"}.get(Segment(int(segment)))
        if one != other:
            wanted.append("injected")
        elif part:
            wanted.append(f"{part} match" if one in pieces([term], model.tokenizer) else f"{part} other")
        else:
            wanted.append("cls" if segment == Segment.CLS.value else "sep")
    assert named(model, found) == wanted
    assert wanted[0] == "cls" and wanted[-1] == "sep"
    assert named(model, found.swapped()) == wanted


def test_the_filler_is_no_match_wherever_else_it_stands(tiny: HookedEncoder) -> None:
    pair = Pair("do a goldfish grow", "a goldfish and a dog", "q7", "d7")
    term = mi.diagnostics.Term({"q7": "goldfish"})
    found = align(pair, Tfc1("append", term), tiny.tokenizer, "a")
    assert named(tiny, found) == [
        *("cls", "query other", "query other", "query match", "query other", "sep"),
        *("doc other", "doc match", "doc other", "doc other", "doc other", "injected", "sep"),
    ]
    taken = align(pair, Tfc1("replace", term), tiny.tokenizer, "a")
    assert Counter(named(tiny, taken)) == {
        "query other": 3,
        "doc other": 4,
        "sep": 2,
        "cls": 1,
        "query match": 1,
        "injected": 1,
    }


def test_a_swapped_word_of_the_query_matches_in_the_document(tiny: HookedEncoder) -> None:
    pair = Pair("what is wifi", "wifi is a signal", "q7", "d7")
    found = align(pair, QuerySwap(["moon"], mi.diagnostics.Term({"q7": "wifi"})), tiny.tokenizer)
    assert named(tiny, found) == [
        *("cls", "query other", "query other", "injected", "sep"),
        *("doc match", "doc other", "doc other", "doc other", "sep"),
    ]


def contrasts(n: int = 9) -> list[Contrast]:
    documents = [("dog cat " * k + "river").split() for k in range(n)]
    return [
        align(replace(pair_of(words), doc_id=f"d{k}"), Tfc1("inject"), BERT, FILLERS[k % 2])
        for k, words in enumerate(documents)
    ]


def test_batches_hold_every_contrast_once_with_its_roles_and_no_role_on_padding(tiny: HookedEncoder) -> None:
    wanted = contrasts()
    encoded_all = encode_contrasts(tiny, wanted)
    seen: list[int] = []
    for batch in encoded_all.batches(tiny, max_rows=4, max_tokens=100):
        seen += batch.rows.tolist()
        assert batch.base.pairs == tuple(wanted[k].base for k in batch.rows)
        assert batch.donor.pairs == tuple(wanted[k].donor for k in batch.rows)
        assert torch.equal(batch.base.segment, batch.donor.segment)
        assert torch.equal(batch.roles == -1, batch.base.at(Segment.PAD))
        assert torch.equal(batch.roles == ROLES.index("injected"), batch.base.input_ids != batch.donor.input_ids)
        for row, place in enumerate(batch.rows):
            roles = encoded_all.roles[place]
            assert batch.roles[row, : len(roles)].tolist() == roles.tolist()
    assert sorted(seen) == list(range(len(wanted)))
    widths = [len(encoded_all.roles[place]) for place in seen]
    assert widths == sorted(widths, reverse=True)
    assert len(set(widths)) > 4


def test_the_hash_is_of_both_sides_and_the_filler_in_order() -> None:
    wanted = contrasts(3)
    first, *rest = wanted
    others = [
        replace(first, base=replace(first.base, document="dog")),
        replace(first, donor=replace(first.donor, document="dog")),
        replace(first, filler="of"),
        first.swapped(),
    ]
    found = [
        contrasts_hash(listed) for listed in (wanted, rest, wanted[::-1], [], *([other, *rest] for other in others))
    ]
    assert len(set(found)) == len(found) == 8
    assert found[0] == contrasts_hash(iter(contrasts(3)))


def test_a_batch_is_as_a_whole_on_the_device_of_the_model(tiny: HookedEncoder) -> None:
    def batches(self: Reranker, pairs: Encoded, **options: Any) -> Iterator[tuple[np.ndarray, Batch]]:
        return ((index, batch.to("meta")) for index, batch in tiny.batches(pairs, **options))

    elsewhere = stub(Reranker, batches=batches, device=torch.device("meta"))
    batch = next(encode_contrasts(tiny, contrasts(3)).batches(elsewhere))
    assert {batch.base.input_ids.device.type, batch.donor.segment.device.type, batch.roles.device.type} == {"meta"}


def test_the_filler_of_byte_level_bpe_is_no_match() -> None:
    def encoded(self: Reranker, pairs: Sequence[Pair], max_length: int | None = None) -> Encoded:
        return encode(self.tokenizer, pairs, 512)

    reader = stub(Reranker, tokenizer=byte_level(), encode=encoded)

    pair = Pair("goldfish", "the moon is a stone", "q7", "d7")
    found = Contrast(
        replace(pair, document=f"{pair.document} a"), replace(pair, document=f"{pair.document} river"), "a"
    )
    donor = encode(byte_level(), [found.donor], 512)
    assert len(donor.ids[0]) == len(encode(byte_level(), [found.base], 512).ids[0])
    assert "doc match" not in named(reader, found)  # type: ignore[arg-type]


# Contrasts made by hand


def test_contrasts_that_are_not_aligned_are_refused_by_pair_position_and_tokens(tiny: HookedEncoder) -> None:
    pair = Pair("bread", "dog", "q7", "d7")
    good = align(Pair("bread", "cat"), Tfc1(), BERT)
    longer = replace(pair, document="dog cat")
    message = r"Pair q7/d7 is not aligned: at position 4 the base has '\[SEP\]' and the donor 'cat' \(lengths 5 and 6\)"
    with pytest.raises(MechirError, match=message):
        encode_contrasts(tiny, [good, Contrast(pair, longer)])
    message = r"Pair q7/d7 is not aligned: at position 4 the base has 'cat' and the donor '\[SEP\]' \(lengths 6 and 5\)"
    with pytest.raises(MechirError, match=message):
        encode_contrasts(tiny, [good, Contrast(longer, pair)])
    other = Pair("bread dog", "cat", "q7", "d7")
    message = r"Pair q7/d7 is not aligned: at position 2 the base has '\[SEP\]' and the donor 'dog' \(lengths 6 and 6\)"
    with pytest.raises(MechirError, match=message):
        encode_contrasts(tiny, [Contrast(longer, other), good])


def test_a_text_that_ends_before_the_other_has_nothing_there() -> None:
    contrast = Contrast(Pair("bread", "dog"), Pair("bread", "dog cat"))
    base, donor = encoded(contrast)
    cut = replace(base, ids=(base.ids[0][:4],), segments=(base.segments[0][:4],))
    message = r"at position 4 the base has 'nothing' and the donor 'cat' \(lengths 4 and 6\)"
    with pytest.raises(MechirError, match=message):
        refuse_unaligned(contrast, cut, donor, BERT)


def test_aligned_texts_are_not_refused() -> None:
    for contrast in contrasts():
        refuse_unaligned(contrast, *encoded(contrast), BERT)


def test_no_contrasts_are_refused(tiny: HookedEncoder) -> None:
    with pytest.raises(MechirError, match=r"There are no contrasts to run: none was given, or none could be aligned"):
        encode_contrasts(tiny, [])


def test_a_contrast_for_another_tokenizer_s_filler_is_refused(tiny: HookedEncoder) -> None:
    pair = Pair("bread", "dog zebra")
    with pytest.raises(MechirError, match=r"The filler 'zebra' is 1 word pieces of this tokenizer, or unknown to it"):
        encode_contrasts(tiny, [Contrast(pair, replace(pair, document="dog cat"), "zebra")])


def test_what_is_encoded_is_cut_where_asked(tiny: HookedEncoder) -> None:
    found = align(pair_of(PLAIN), Tfc1("prepend"), BERT)
    cut = encode_contrasts(tiny, [found], 20)
    assert cut.base.lengths.tolist() == cut.donor.lengths.tolist() == [len(cut.roles[0])] == [20]
    assert cut.contrasts == (found,)
