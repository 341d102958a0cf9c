"""Roles of heads confirmed or contradicted by edges, in the graph itself, in the table of links and in the dossier."""

from __future__ import annotations

from pathlib import Path

import pytest

import mechir as mi
from mechir.circuits import Circuit
from mechir.measures import EDGE
from mechir.registry.edge_roles import EdgeGraph
from mechir.sites import Head
from tests.test_links import NOT, SURE, one, row, tell

EDGES = Circuit(
    [
        "resid0->h1.1.k",
        "resid0->h0.3.v",
        "h0.3->h2.2.v",
        "h1.1->h2.9.v",
        "h2.9->mlp3",
        "mlp3->mlp5",
        "mlp5->score",
        "h4.4->h5.5.k",
        "h5.5->score",
        "h5.5->mlp5",
    ]
)


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        (Head(1, 1), {"soft-tf": "confirmed", "scoring": "open", "query-context": "confirmed"}),
        (Head(2, 9), {"soft-tf": "open", "scoring": "confirmed", "query-context": "open"}),  # nothing enters q or k
        (Head(5, 5), {"soft-tf": "confirmed", "scoring": "confirmed", "query-context": "open"}),
        (Head(4, 4), {"soft-tf": "open", "scoring": "open", "query-context": "open"}),  # k is no v
        (Head(0, 3), {"soft-tf": "open", "scoring": "open", "query-context": "open"}),  # 2.2 leads nowhere
        (Head(3, 3), dict.fromkeys(("soft-tf", "scoring", "query-context"), "contradicted")),
    ],
)
def test_a_role_needs_its_edges(head: Head, expected: dict[str, str]) -> None:
    assert EdgeGraph(EDGES).verdicts(head, expected) == expected


def test_a_graph_without_edges_contradicts_every_role() -> None:
    assert EdgeGraph([]).verdicts(Head(1, 1), ["scoring"]) == {"scoring": "contradicted"}


def test_links_and_the_dossier_say_what_edges_say(tmp_path: Path) -> None:
    one(tmp_path)
    before = mi.links(registry=tmp_path)
    assert (before["edges"] == "").all()  # no edges were measured
    edge = {"measure": str(EDGE("tfc1", "eap-ig")), "unit": "logits", "term": "tf", "causal": True}
    held = [row(edge, text, 0.3, SURE) for text in ("resid0->h1.2.k", "h1.2->mlp1", "mlp1->score")]
    tell(tmp_path, "a7", [*held, row(edge, "h3.1->score", 0.0, NOT)])
    edges = {str(site): text for site, text in mi.links(registry=tmp_path)[["site", "edges"]].itertuples(index=False)}
    assert (edges["h1.2"], edges["h3.1"]) == ("soft-tf confirmed", "scoring contradicted")
    assert edges["embed.u0"] == edges["h0.0"] == ""
    assert "soft-tf: confirmed by edges, m on c" in str(mi.dossier("h1.2", registry=tmp_path))
    site = mi.findings(site="h1.2->mlp1.in", registry=tmp_path)["site"].iloc[0]
    assert site == mi.Edge("h1.2", "mlp1") and site in mi.Circuit(site)
