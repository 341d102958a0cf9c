"""What a model must offer: its tiers, the structure that methods rely on, batches, edits, and what a run records."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

import mechir as mi
from mechir import methods
from mechir.encoder import HookedEncoder
from mechir.errors import MechirError
from mechir.hooks import Edit, Function, Hook, as_edit
from mechir.methods import attribution, patching
from mechir.parts import Structure
from mechir.recorder import observe
from mechir.reranker import Reranker, Restarts, Weights, needs, score_parity
from tests.models import PAIRS, stub

OTHER = Structure(norm="pre", positions="rotary", reads="mean", causal=True, window=128, scaled=False)


def of_methods() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Every public function of `methods/` with a parameter `model`."""
    for module in pkgutil.iter_modules(methods.__path__, f"{methods.__name__}."):
        for name, function in vars(importlib.import_module(module.name)).items():
            here = inspect.isfunction(inspect.unwrap(function)) and function.__module__ == module.name
            if here and not name.startswith("_") and "model" in inspect.signature(function).parameters:
                yield f"{module.name.rpartition('.')[2]}.{name}", inspect.unwrap(function)


FUNCTIONS = dict(of_methods())
ANY = {
    "spectra.qk_spectra",
    "paths.of_sums",
    "paths.path_patch",
    "paths.scoring_heads",
    "sum_paths.patched_sums",
    "lens.read_depths",
    "conductance.conductance",
    "cutting.cut_scores",
    "importance.unit_rows",
    "patching.choose_heads",
    "patching.patch",
    "tokens.token_attribution",
    "walk.walk",
    "attention.pair_attention",
    "attention.role_attention",
    "attribution.gradients",
    "checks.heads_there",
    "checks.heads_or_search",
    "checks.place",
    "checks.unit_target",
    "circuit_runs.donor_batch",
    "conductance.unit_readers",
    "cut_ranking.sets_of",
    "cutting.cut_sets",
    "cutting.head_means",
    "cutting.term_contrasts",
    "edge_graph.checked_reader",
    "edge_graph.checked_senders",
    "edge_graph.every_sender",
    "edge_graph.refuse_foreign_edges",
    "importance.against_others",
    "lexical.collection_counts",
    "lexical.pieces_of",
    "lexical.query_pieces",
    "lexical.read_idf",
    "lexical.refuse_idf",
    "matching.attention_by_grade",
    "matching.attention_by_pair",
    "matching.choose_matching",
    "matching.matching_heads",
    "pruning.pruned_sets",
    "pruning.refuse_small",
    "pruning.sizes",
    "soft_tf.frequencies",
    "soft_tf.term_mass",
    "tokens.rows_of",
}
"""Those that need a `Reranker` alone, of any structure."""
SOFTMAX = "absolute positions and attention in both directions and attention over the whole text"
EDGES = (
    f"post-norm layers and {SOFTMAX.replace(' and attention', ' and a head that reads the CLS row and attention', 1)}"
)
STRUCTURED = {
    "spectra.head_inputs": "absolute positions",
    "attend.attend": f"post-norm layers and {SOFTMAX}",
    "attend_writers.written": "post-norm layers",
    "attribution.attribute": r"attention scores of q k / sqrt\(d_head\) alone",
    "attribution.screen_then_verify": r"attention scores of q k / sqrt\(d_head\) alone",
    **dict.fromkeys(("edges.edges", "faithfulness.circuit_scores", "faithfulness.faithfulness"), EDGES),
    **dict.fromkeys(("edge_gradients.averaged", "edge_gradients.first_order", "edge_patching.exact"), EDGES),
    **dict.fromkeys(
        (f"edge_roles.{name}" for name in ("averaged_roles", "first_order_roles", "role_gradients")), EDGES
    ),
    **dict.fromkeys(("completeness.completeness", "edge_backups.edge_backups", "specificity.specificity"), EDGES),
    "circuit_files.load_circuit": "post-norm layers",
    "circuit_files.save_circuit": "post-norm layers",
    **dict.fromkeys(("edge_streams.changes", "edge_streams.steps"), EDGES),
    "dose.dose_response": "a head that reads the CLS row",
    "paths.carry": "post-norm layers",
    "projection.project_heads": SOFTMAX,
    "spectra.aligned": "absolute positions",
    "spectra.preferences": "absolute positions",
}
"""Those that rely on a structure, and on what."""


def call(function: Callable[..., Any], model: Any) -> None:
    """Calls it with nothing but a model, and a query's site where it has sites."""
    given = {"model": model, "contrasts": [], "head": "h0.0", "sites": ["h0.0.q"]}
    filled = {
        name: given.get(name)
        for name, parameter in inspect.signature(function).parameters.items()
        if name in given or (parameter.default is parameter.empty and parameter.kind != parameter.VAR_KEYWORD)
    }
    out = function(**filled)
    if inspect.isgenerator(out):
        next(out)


def of_other_structure(tier: type) -> Any:
    """A model of another structure that has sites to name and computes nothing."""
    sizes = type(
        "Sizes", (), {"model_name": "other", "n_layers": 1, "n_heads": 1, "d_mlp": 1, "n_key_value_heads": None}
    )()
    return stub(tier, cfg=sizes, structure=OTHER, fingerprint="", resolve=lambda self, hooks: [])


@pytest.mark.parametrize("name", sorted(FUNCTIONS.keys() - ANY))
def test_a_method_refuses_a_model_without_its_needs(name: str) -> None:
    """A new function is listed as one for any model, or is refused here in one sentence."""
    needed = inspect.signature(FUNCTIONS[name], eval_str=True).parameters["model"].annotation
    if name in STRUCTURED:
        with pytest.raises(MechirError, match=rf"^[\w.()=]+ assumes .*{STRUCTURED[name]}, and 'other' has .+: .+\.$"):
            call(FUNCTIONS[name], of_other_structure(Weights))
    if name not in STRUCTURED or needed is not Reranker:
        with pytest.raises(MechirError, match=r"^\w+ needs a model that .+, and 'scores only' does not: .+\.$"):
            call(FUNCTIONS[name], scores_only())


def scores_only() -> Any:
    """A model of the lowest tier, of a class that derives from nothing."""
    sizes = type("Sizes", (), {"model_name": "scores only", "n_layers": 1, "n_heads": 1, "d_mlp": 1})()
    attributes: dict[str, Any] = dict.fromkeys([*members(Reranker), "__call__"], lambda *given, **options: [])
    return type("Scores", (), attributes | {"cfg": sizes, "structure": HookedEncoder.structure})()


def members(tier: type) -> list[str]:
    """The names that a tier asks for, those below it among them."""
    found = [name for kind in tier.__mro__[:-3] for name in (*vars(kind), *kind.__annotations__)]
    return [name for name in dict.fromkeys(found) if not name.startswith("_")]


def test_the_lists_name_functions_that_there_are_and_the_annotation_says_the_same() -> None:
    assert ANY | set(STRUCTURED) <= FUNCTIONS.keys() and not ANY & set(STRUCTURED)
    for name in ANY:
        assert inspect.signature(FUNCTIONS[name]).parameters["model"].annotation == "Reranker", name


def test_no_function_takes_a_model_of_any_kind() -> None:
    for name, function in FUNCTIONS.items():
        assert inspect.signature(function).parameters["model"].annotation in ("Reranker", "Restarts", "Weights"), name


def test_a_hooked_encoder_has_every_tier(tiny: HookedEncoder) -> None:
    assert all(isinstance(tiny, tier) for tier in (Reranker, Restarts, Weights))
    assert tiny.structure == Structure("post", "absolute", "cls", causal=False, window=None)
    needs(tiny, "any", Weights, norm="post", positions="absolute", reads="cls", causal=False, window=None)


def test_a_refusal_names_method_assumption_model_and_alternative() -> None:
    with pytest.raises(MechirError) as error:
        needs(of_other_structure(Weights), "path_patch", Weights, norm="post", reads="cls")
    assert str(error.value) == (
        "path_patch assumes post-norm layers and a head that reads the CLS row, and 'other' has pre-norm layers and a "
        "head that reads the mean of all rows: measure it by patching.patch, which relies on no structure."
    )
    with pytest.raises(MechirError) as error:
        needs("a name", "patch", Restarts)
    assert str(error.value) == (
        "patch needs a model that starts at any layer, and a str does not: "
        "score it under interventions with model.score(pairs, do=...)."
    )


def test_attribution_relies_on_positions_only_where_it_puts_queries_through_the_softmax() -> None:
    model = of_other_structure(Reranker)
    with pytest.raises(MechirError, match="no contrasts"):
        attribution.attribute(model, [], "h0.0.q", qk_fix=False)
    with pytest.raises(MechirError, match="no contrasts"):
        attribution.attribute(model, [], "h0.0.v")


def test_batches_hold_every_pair_once_and_take_what_was_encoded(tiny: HookedEncoder) -> None:
    for given in (PAIRS, tiny.encode(PAIRS)):
        found = list(tiny.batches(given, max_rows=3, max_tokens=60))
        assert len(found) > 2 and sorted(place for index, _ in found for place in index) == list(range(len(PAIRS)))
        for index, batch in found:
            assert batch.pairs == tuple(PAIRS[place] for place in index)
            assert batch.input_ids.numel() <= 60 or len(batch) == 1
    assert max(batch.input_ids.shape[1] for _, batch in tiny.batches(PAIRS, max_length=16)) == 16
    assert all(len(batch) == 1 for _, batch in tiny.batches(PAIRS, max_tokens=0))


def test_a_run_records_the_activations_of_the_cache_in_the_order_of_the_layers(tiny: HookedEncoder) -> None:
    batch = tiny.batch(PAIRS)
    names = [f"blocks.{layer}.attn.hook_z" for layer in (2, 0, 1)]
    score, kept = observe(tiny, batch, names, head_row=False)
    whole, cache = tiny.run_with_cache(batch, names_filter=names, head_row=False)
    assert list(kept) == sorted(names) and torch.equal(score, whole)
    assert all(torch.equal(kept[name], cache[name]) for name in names)
    _, means = observe(tiny, batch, lambda name: name.endswith("hook_z"), lambda name, x: (name, x.mean().item()))
    assert {name: mean for name, mean in means.values()}.keys() == set(names)
    assert not any(point.has_hooks() for point in tiny.hook_dict.values())


@dataclass(frozen=True)
class Doubled(Edit):
    """Twice the activation; notes how many rows it saw."""

    rows: list[int]
    head_row = True

    def __hash__(self) -> int:
        return 0

    def __call__(self, x: Tensor, hook: Any) -> Tensor:
        self.rows.append(x.shape[1])
        return 2 * x


@dataclass(frozen=True)
class At:
    """An intervention that puts one edit at one hook."""

    edit: Callable[..., Any]
    name: str = "blocks.2.hook_mlp_out"

    def hooks(self, batch: mi.Batch) -> list[Hook]:
        return [(self.name, self.edit)]


def test_an_edit_that_is_right_on_the_heads_row_sees_that_row_alone_and_a_function_sees_all(
    tiny: HookedEncoder,
) -> None:
    edit, seen = Doubled([]), list[int]()

    def function(x: Tensor, hook: Any) -> Tensor:
        seen.append(x.shape[1])
        return 2 * x

    scores = [mi.sweep(tiny, PAIRS[:1], {"x": At(one)})["score"] for one in (edit, function)]
    assert edit.rows == [1] and seen[0] > 1
    assert torch.allclose(*(torch.tensor(one.to_numpy()) for one in scores), atol=1e-5)


def test_equal_edits_are_computed_once(tiny: HookedEncoder) -> None:
    seen: list[int] = []

    def function(x: Tensor, hook: Any) -> None:
        seen.append(0)

    mi.sweep(tiny, PAIRS[:1], {"one": At(function), "two": At(function)})
    assert len(seen) == 1


def test_a_plain_function_becomes_an_edit_of_no_model(tiny: HookedEncoder) -> None:
    def function(x: Tensor, hook: Any) -> None: ...

    edit = as_edit(function)
    assert edit == Function(function) == as_edit(edit) and hash(edit) == hash(Function(function))
    assert not edit.head_row and edit.model == "" and edit != as_edit(lambda x, hook: None)
    assert tiny.resolve([("blocks.0.attn.hook_z", function)]) == [("blocks.0.attn.hook_z", edit)]


def test_an_edit_with_activations_of_another_model_is_refused(tiny: HookedEncoder) -> None:
    @dataclass(frozen=True)
    class Foreign(Edit):
        model = "0" * 64

        def __call__(self, x: Tensor, hook: Any) -> None: ...

    with pytest.raises(MechirError, match="another model"), tiny.hooks([("blocks.0.attn.hook_z", Foreign())]):
        pass


def test_parity_is_read_from_new_and_old_certificates(tiny: HookedEncoder) -> None:
    certificate = tiny.certify(PAIRS)
    assert score_parity(certificate) == certificate["score_head_row"] == tiny.parity
    assert score_parity({"score_cls_only": 2e-7}) == 2e-7


def test_a_model_without_weights_is_patched_and_one_without_layers_scored(tiny: HookedEncoder) -> None:
    """What a refusal offers instead works: `patch` asks for the tier that it names, and for nothing of `Weights`."""
    offered = {name: getattr(tiny, name) for name in members(Restarts)}
    restarts = stub(Restarts, **offered, __call__=lambda self, *given, **options: tiny(*given, **options))
    contrast = mi.align(PAIRS[0], mi.diagnostics.Tfc1(), tiny.tokenizer)
    rows = patching.patch(restarts, [contrast], "h1.2")
    assert rows["effect"].equals(patching.patch(tiny, [contrast], "h1.2")["effect"])
    with pytest.raises(MechirError, match="path_patch needs a stream that is a sum up to the score"):
        FUNCTIONS["paths.path_patch"](restarts, [contrast])
