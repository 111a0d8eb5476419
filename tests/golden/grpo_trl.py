"""Makes grpo_trl.json: loss, gradient and metrics of GRPO cases by TRL's own functions, without any model.

    git clone https://github.com/huggingface/trl && git -C trl checkout f2cd57710ae345ea6428ae95363267fcf38a3dc8
    python tests/golden/grpo_trl.py trl tests/golden/grpo_trl.json
    python tests/golden/grpo_trl.py trl other.json --seed 1 --rows 7 --tokens 9 --groups 5

With --seed the inputs are random: another file of the same form, for `MSJOE_GRPO_GOLDEN=other.json make test`.

Pinned: torch 2.7.1. Nothing else of TRL is imported: the functions are taken out of its source, and run on a stand-in for the
trainer that holds the settings they read.
"""

import argparse
import ast
import hashlib
import json
import math
import types
from collections import defaultdict
from pathlib import Path

import torch
import torch.nn.functional as F

assert torch.__version__.startswith("2.7.1"), torch.__version__

SHA256 = {
    "grpo_trainer.py": "655d9ad98549290fd32381174bfca5cab9f849b839966edc9a4d3abe67dd97bc",
    "utils.py": "ebdf6145e76ca552cb323d074c9429d6ee9eb94d129dfd823385f8211a3f208f",
}
METHODS = ["get_high_entropy_mask", "get_off_policy_mask", "get_gamma_weights", "_compute_loss"]
UTILITIES = ["nanstd", "nanmin", "nanmax", "selective_log_softmax", "entropy_from_logits"]
SAPO = dict(pos=1.0, neg=1.05)
VESPO = dict(k_pos=2.0, lambda_pos=3.0, k_neg=3.0, lambda_neg=2.0)


def source(folder, name):
    text = (Path(folder) / "trl" / "trainer" / name).read_bytes()
    found = hashlib.sha256(text).hexdigest()
    assert found == SHA256[name], f"{name}: expected sha256 {SHA256[name]}, got {found}"
    return ast.parse(text)


def run(nodes, names):
    exec(compile(ast.Module(body=nodes, type_ignores=[]), "trl", "exec"), names)


def trl(folder):
    """TRL's functions, and the statements that turn rewards into advantages."""
    names = dict(torch=torch, F=F, math=math, profiling_decorator=lambda f: f)
    utilities = source(folder, "utils.py").body
    run([n for n in utilities if isinstance(n, ast.FunctionDef) and n.name in UTILITIES], names)
    classes = [n for n in source(folder, "grpo_trainer.py").body if isinstance(n, ast.ClassDef)]
    trainer = next(n for n in classes if n.name == "GRPOTrainer")
    methods = {n.name: n for n in trainer.body if isinstance(n, ast.FunctionDef)}
    run([methods[name] for name in METHODS], names)

    def assigns(node, name):
        return isinstance(node, ast.Assign) and getattr(node.targets[0], "id", None) == name

    body = methods["_generate_and_score_completions"].body
    start = next(i for i, n in enumerate(body) if assigns(n, "unscorable_mask"))
    end = next(i for i, n in enumerate(body) if i > start and assigns(n, "advantages"))
    names["advantage_statements"] = body[start : end + 1]
    return names


def advantages(names, rewards, weights, group, scale, aggregation):
    trainer = types.SimpleNamespace(
        multi_objective_aggregation=aggregation,
        scale_rewards=scale,
        reward_weights=torch.tensor(weights),
        reward_funcs=weights,
    )
    local = dict(names, self=trainer, rewards_per_func=rewards, num_generations=group, device="cpu")
    run(names["advantage_statements"], local)
    return {key: local[key] for key in ("rewards", "std_rewards", "advantages", "is_std_zero")}


def loss(names, inputs, params):
    """Loss, gradient and metrics of one case."""
    accelerator = types.SimpleNamespace(
        pad_across_processes=lambda x, **_: x,
        gather=lambda x: x,
        reduce=lambda x, **_: x,
        num_processes=1,
        sync_gradients=True,
    )
    wide = {k: torch.tensor(inputs[k], dtype=torch.float64) for k in ("logps", "old_logps", "ref_logps", "entropies")}
    mask = torch.tensor(inputs["mask"])
    mask[params["masked_rows"]] = 0
    logps = wide["logps"].requires_grad_()
    items = mask.sum() if params["num_items"] is None else torch.tensor(params["num_items"])
    trainer = types.SimpleNamespace(
        accelerator=accelerator,
        model=types.SimpleNamespace(training=True),
        args=types.SimpleNamespace(
            delta=params["delta"],
            use_bias_correction_kl=params["bias_kl"],
            sapo_temperature_pos=SAPO["pos"],
            sapo_temperature_neg=SAPO["neg"],
            **{f"vespo_{key}": value for key, value in VESPO.items()},
        ),
        loss_type=params["loss_type"],
        importance_sampling_level=params["level"],
        beta=params["beta"],
        epsilon_low=params["eps"],
        epsilon_high=params["eps_hi"],
        top_entropy_quantile=params["quantile"],
        off_policy_mask_threshold=params["opm"],
        max_completion_length=inputs["max_completion_length"],
        current_gradient_accumulation_steps=params["ga"],
        aux_loss_enabled=False,
        use_vllm=False,
        use_adaptive_entropy=False,
        _entropy_bonus_enabled=params["ent_coef"] != 0,
        entropy_coef=params["ent_coef"],
        _metrics=dict(train=defaultdict(list)),
        _get_per_token_logps_and_entropies=lambda *_, **__: (logps, wide["entropies"], None),
        get_off_policy_mask=names["get_off_policy_mask"],
        get_gamma_weights=names["get_gamma_weights"],
    )
    trainer.get_high_entropy_mask = types.MethodType(names["get_high_entropy_mask"], trainer)
    prompt = torch.ones(mask.shape[0], 1, dtype=torch.long)
    batch = dict(
        prompt_ids=prompt,
        prompt_mask=prompt,
        completion_ids=torch.zeros_like(mask),
        completion_mask=mask,
        advantages=torch.tensor(inputs["advantages"], dtype=torch.float64),
        ref_per_token_logps=wide["ref_logps"],
        num_items_in_batch=items,
    )
    if not params["on_policy"]:
        batch["old_per_token_logps"] = wide["old_logps"]
    value = names["_compute_loss"](trainer, None, batch)
    value.backward()
    metrics = {name: values[0] for name, values in trainer._metrics["train"].items()}
    return dict(loss=value.item(), grad=rounded(logps.grad), metrics={k: known(v) for k, v in metrics.items()})


def known(value):
    return None if isinstance(value, float) and not math.isfinite(value) else value


def rounded(tensor):
    return [[round(value, 10) for value in row] for row in tensor.tolist()]


def cases():
    plain = dict(loss_type="dapo", level="token", beta=0.0, eps=0.2, eps_hi=0.28, delta=None, on_policy=False)
    plain |= dict(quantile=1.0, ent_coef=0.0, bias_kl=False, ga=1, opm=None, num_items=None, masked_rows=[])
    result = {}
    for loss_type in ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo"]:
        result[f"{loss_type}/token/beta0"] = dict(loss_type=loss_type, eps_hi=5.0 if loss_type == "cispo" else 0.28)
    result["luspo/token/beta0"] = dict(loss_type="luspo", level="sequence")
    result["vespo/token/beta0"] = dict(loss_type="vespo")
    for loss_type in ["grpo", "dr_grpo", "dapo"]:
        result[f"{loss_type}/token/beta0.04"] = dict(loss_type=loss_type, beta=0.04)
        result[f"{loss_type}/token/beta0.04/onpolicy"] = dict(loss_type=loss_type, beta=0.04, on_policy=True)
        result[f"{loss_type}/token/beta0/onpolicy"] = dict(loss_type=loss_type, on_policy=True)
    gspo = dict(loss_type="grpo", level="sequence")
    result["grpo/sequence(gspo)/beta0"] = gspo | dict(eps=3e-4, eps_hi=4e-4)
    result["grpo/sequence/beta0/eps0.2"] = gspo
    result["dapo/token/beta0.04/delta1.3"] = dict(beta=0.04, delta=1.3)
    result["dapo/token/beta0.04/biaskl"] = dict(beta=0.04, bias_kl=True)
    result["dapo/token/top_entropy0.2"] = dict(quantile=0.2)
    result["dapo/token/entcoef0.01"] = dict(ent_coef=0.01)
    result["dapo/token/opm0.1"] = dict(opm=0.1)
    result["dapo/token/numitems28"] = dict(num_items=28)
    result["grpo/token/ga4"] = dict(loss_type="grpo", ga=4)
    result["dapo/token/opm-0.06"] = dict(opm=-0.06)
    for loss_type in ["grpo", "bnpo", "dr_grpo", "dapo"]:
        result[f"{loss_type}/token/beta0.04/row0masked"] = dict(loss_type=loss_type, beta=0.04, masked_rows=[0])
    result["grpo/sequence/beta0.04/row0masked"] = gspo | dict(beta=0.04, masked_rows=[0])
    return {name: plain | changed for name, changed in result.items()}


def extra_cases():
    """Combinations that the file of the repository does not hold; only with --seed."""
    plain = cases()["dapo/token/beta0"]
    every = dict(beta=0.1, bias_kl=True, quantile=0.37, ent_coef=0.02, opm=0.05, delta=1.4, ga=3, masked_rows=[1])
    result = {}
    for loss_type in ["grpo", "bnpo", "dr_grpo", "dapo", "cispo", "sapo", "vespo"]:
        for level in ["token", "sequence"]:
            if loss_type == "vespo" and level == "sequence":
                continue
            changed = dict(loss_type=loss_type, level=level, eps_hi=1.1 if loss_type == "cispo" else 0.28)
            result[f"{loss_type}/{level}/everything"] = plain | every | changed
            result[f"{loss_type}/{level}/all masked"] = plain | changed | dict(masked_rows="all", beta=0.04)
    result["luspo/sequence/masked"] = plain | dict(loss_type="luspo", level="sequence", ga=2, masked_rows=[0])
    return result


def fixed_inputs():
    pad = lambda rows: [row + [0.0] * (5 - len(row)) for row in rows]
    logps = [[-0.5, -1.2, -0.1, -2.0, -0.7], [-0.9, -0.3, -1.1], [-0.05, -3.0, -0.6, -0.4], [-1.5, -0.2]]
    old = [[-0.6, -1.0, -0.45, -2.1, -0.7], [-0.8, -0.6, -1.1], [-0.2, -2.6, -0.55, -0.9], [-1.2, -0.25]]
    reference = [[-0.55, -1.1, -0.3, -1.8, -0.9], [-1.0, -0.4, -1.0], [-0.1, -2.8, -0.7, -0.5], [-1.4, -0.3]]
    entropies = [[0.9, 1.5, 0.2, 2.2, 1.0], [1.1, 0.6, 1.3], [0.1, 2.5, 0.8, 0.7], [1.9, 0.3]]
    inputs = dict(logps=pad(logps), old_logps=pad(old), ref_logps=pad(reference), entropies=pad(entropies))
    inputs |= dict(mask=[[1] * len(row) + [0] * (5 - len(row)) for row in logps], max_completion_length=8)
    none = None
    rewards = [[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    rewards += [[1.0, 0.5], [none, none], [0.0, none], [0.25, 1.0]]
    logits = [[[0.1, -1.0, 2.0, 0.5], [3.0, 0.0, -2.0, 1.0]]]
    return inputs, rewards, [1.0, 0.5], 4, logits, [[2, 3]]


def random_inputs(options):
    generator = torch.Generator().manual_seed(options.seed)
    draw = lambda *shape: torch.rand(*shape, generator=generator, dtype=torch.float64)
    rows, tokens, group = options.rows, options.tokens, 3
    lengths = torch.randint(1, tokens + 1, (rows,), generator=generator)
    mask = (torch.arange(tokens)[None] < lengths[:, None]) & (draw(rows, tokens) < 0.9)
    logps = -3 * draw(rows, tokens) - 0.05
    near = lambda by: torch.minimum(logps + by * (draw(rows, tokens) - 0.5), torch.tensor(-0.01))
    values = dict(logps=logps, old_logps=near(1.2), ref_logps=near(1.0), entropies=3 * draw(rows, tokens))
    inputs = {name: (value * mask).tolist() for name, value in values.items()}
    inputs |= dict(mask=mask.long().tolist(), max_completion_length=tokens + 3)
    holes = lambda values: [[None if x < 0.15 else round(x, 2) for x in row] for row in values.tolist()]
    rewards = holes(draw(options.groups * group, 3))
    rewards[:group] = [[0.5, None, 0.25]] * group
    logits = (8 * draw(2, 3, 11) - 4).tolist()
    ids = torch.randint(0, 11, (2, 3), generator=generator).tolist()
    return inputs, rewards, [1.0, 0.5, -0.25], group, logits, ids


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trl")
    parser.add_argument("out")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--rows", type=int, default=6)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--groups", type=int, default=4)
    options = parser.parse_args()
    names = trl(options.trl)
    made = fixed_inputs() if options.seed is None else random_inputs(options)
    inputs, rewards, weights, group, logits, ids = made
    scores = torch.tensor([[math.nan if x is None else x for x in row] for row in rewards])
    listed = lambda tensor: [known(value) for value in tensor.tolist()]
    result = dict(trl_commit="f2cd57710ae345ea6428ae95363267fcf38a3dc8", torch=torch.__version__)
    result |= dict(rewards_per_func=rewards, G=group, weights=weights, advantages={})
    for scale in ("group", "batch", "none"):
        ours = advantages(names, scores, weights, group, scale, "sum_then_normalize")
        result["advantages"][scale] = dict(
            rewards=listed(ours["rewards"]),
            std=listed(ours["std_rewards"]),
            adv=listed(ours["advantages"]),
            is_std_zero=ours["is_std_zero"].tolist(),
        )
    ours = advantages(names, scores, weights, group, "group", "normalize_then_sum")
    result["advantages"]["normalize_then_sum"] = dict(adv=listed(ours["advantages"]))

    if options.seed is None:
        inputs["rewards"] = [1.5, 0.5, 0.0, 1.0]
        inputs["advantages"] = result["advantages"]["group"]["adv"][:4]
    else:
        generator = torch.Generator().manual_seed(options.seed + 1)
        inputs["advantages"] = torch.randn(options.rows, generator=generator).tolist()
    result["loss_inputs"] = inputs | dict(sapo_temperature=SAPO, vespo=VESPO)
    wanted = cases() if options.seed is None else cases() | extra_cases()
    result["cases"] = {}
    for name, params in wanted.items():
        if params["masked_rows"] == "all":
            params = params | dict(masked_rows=list(range(len(inputs["mask"]))))
        result["cases"][name] = loss(names, inputs, params) | dict(params=params)

    wide = torch.tensor(logits, dtype=torch.float64)
    result |= dict(logits=logits, idx=ids, logprobs={})
    for temperature in (1.0, 0.7):
        scaled = wide / temperature
        result["logprobs"][str(temperature)] = dict(
            logps=names["selective_log_softmax"](scaled, torch.tensor(ids)).tolist(),
            entropy=names["entropy_from_logits"](scaled).tolist(),
        )
    Path(options.out).write_text(json.dumps(result, indent=1) + "\n")


main()
