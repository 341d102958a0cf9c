"""What the numbers and charts of the documentation come from, by name.

In commands SHARED is the folder that MECHIR_SHARED names, with `data/` and `models/`; where it is not set, what needs
it stays as it is.
"""

from __future__ import annotations

MODEL = "--model SHARED/models/ce-minilm-l6"
TEN, FIVE = (f"{MODEL} --collection SHARED/data/dl19 --per-grade {n} --easy-negatives {n}" for n in (10, 5))
FORTY = f"lu2025/semantic_bm25 {MODEL} --per-grade 5 --easy-negatives 10 --limit-queries 40 --collection SHARED/data"
IN_AND_OUT = "in:SHARED/data/dl19 --collection out:SHARED/data/cranfield --collection out:SHARED/data/vaswani"
GROUPS = f"{MODEL} --collection {IN_AND_OUT} --limit-queries 9 --per-grade 3 --easy-negatives 3 --take 2"
PATHWAY = f"joint/pathway {MODEL} --per-grade 2 --easy-negatives 4 --collection SHARED/data"
CIRCUITS = f"{MODEL} --collection SHARED/data/dl19 --filler a --per-grade 2 --limit-queries 27"
RUNS = {
    "attention_contrast": "vast2025/attention_contrast",
    "attention_contrast-sep2": "vast2025/attention_contrast --sep2",
    "idf_direction": "lu2025/idf_direction",
    "semantic_bm25": "lu2025/semantic_bm25",
    "soft_tf": "lu2025/soft_tf",
    "head_to_score": "lu2025/head_to_score",
    "cls_lens": "vast2025/cls_lens",
    "cls_lens-judged": "vast2025/cls_lens --easy-negatives 0",
    "cls_lens-weak": "vast2025/cls_lens --penalty 0.1",
    "cls_lens-strong": "vast2025/cls_lens --penalty 10",
    "qk_svd": "vast2025/qk_svd",
    "robust_metric": "polyakov2025/robust_metric --limit-queries 6 --filler a",
    "idf_edit": "lu2025/idf_edit",
    "qk_projection": "vast2025/qk_projection",
    "importance": "vast2024/importance",
    "transfer": "vast2024/transfer",
    "distribution": "vast2024/distribution",
    "pruning": "vast2024/pruning",
    "matching_heads": "vast2024/matching_heads",
    "matching_heads-judged": "vast2024/matching_heads --easy-negatives 0",
    "edges": "circuits/edges --sample 300",
    "faithfulness": "circuits/faithfulness",
    "faithfulness-greedy": "circuits/faithfulness --how greedy",
    "stability": "circuits/stability --sample 300",
    "pathway": "joint/pathway",
    "edges-dl19": f"circuits/edges {CIRCUITS} --sample 300",
    "faithfulness-dl19": f"circuits/faithfulness {CIRCUITS}",
    "stability-dl19": f"circuits/stability {CIRCUITS} --sample 300",
    "layer_sweep-dl19": f"vast2025/layer_sweep {FIVE} --limit-queries 12",
    "direction_ablation-dl19": f"vast2025/direction_ablation {FIVE}",
    **{f"forty-{name}": f"{FORTY}/{name}" for name in ("dl19", "dl21", "cranfield", "vaswani")},
    **{f"pathway-{name}": f"{PATHWAY}/{name}" for name in ("dl19", "dl21")},
    "transfer_groups": f"vast2024/transfer {GROUPS}",
    "pruning_groups": f"vast2024/pruning {GROUPS} --grid 5",
}
AGAIN = "attention_contrast attention_contrast-sep2 idf_direction semantic_bm25 soft_tf qk_svd idf_edit qk_projection"
RUNS |= {f"{name}-dl19": f"{RUNS[name]} {TEN}" for name in AGAIN.split()}
"""What follows `mechir run`; a chart is docs/figures/NAME.png, where that file is there."""
FRAMES = {
    "pools-dl19": "pools SHARED/data/dl19",
    "others-dl19": "others SHARED/models/ce-minilm-l6 SHARED/data/dl19",
    "power": "power",
    "diagnostics": "diagnostics",
    "paths": "paths",
    "padded": "padded",
    "planted": "planted",
    "planted-edges": "planted_edges",
    "alignment": "alignment",
    "across_models": "across_models SHARED/models/ce-minilm-l6",
    "code-lu2025": "code lu2025",
    "code-patching": "code patching",
}
"""A function of scripts/docs_frames.py and what it is given: what no experiment stores."""
SCRIPTS = {
    "inference": "measure_inference.py --write",
    "default": "exam_default_model.py --write --shared SHARED",
    "report": "report_picture.py",
}
"""Scripts that write into the pages, or draw, themselves."""
COMMANDS = RUNS | FRAMES | SCRIPTS
