"""Configs of published methods, as changes to one: `paper(default_config())`. Each changes it in place and returns it.

A preset sets what makes the method: the tree, the credit, the filter, the loss and how tokens are drawn. Model, task,
lengths and sizes of a run stay as they are. What was read in a paper or in code and what is ours is in the docstrings.
"""

from typing import Any

from iiblpo_jax.config.defaults import KNOBS, RunConfig


def plain_grpo(c: RunConfig, *, samples: int) -> RunConfig:
    """`c` with `samples` independent samples a prompt and all that IIB-LPO adds switched off, in place."""
    c.rollout.roots = samples
    c.branch.k = 0
    c.latent.z = 0
    c.ib.estimator = "none"
    c.ib.filter = "none"
    c.ib.reward_coef = 0.0
    c.ib.entropy_coef = 0.0
    c.advantage.weight = "none"
    return c


def dapo(c: RunConfig, *, samples: int) -> RunConfig:
    """`c` with all of DAPO (Yu et al., arXiv 2503.14476), in place: plain GRPO with `samples` samples a prompt, and
    clip-higher, token-mean, dynamic sampling, soft overlong punishment over the last fifth, no KL.

    Set rollout.max_tokens before. A rollout asks P prompts, where the authors' script asks 3P at a time; right and
    wrong are 1 apart and there 2, so the punishment is half of theirs. Importance weights pi_old / mu, which the paper
    does not have, stay as they are in `c`.
    """
    plain_grpo(c, samples=samples)
    c.objective.update({"name": "dapo", "clip_low": 0.2, "clip_high": 0.28, "aggregate": "token-mean"})
    c.ib.update({"filter": "contrast", "keep": 0})
    c.train.refills = 10
    c.rollout.update({"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0})
    c.reward.update({"overlong": "shape", "overlong_penalty": 0.5})
    c.reward.overlong_buffer = max(1, c.rollout.max_tokens // 5)
    c.update.kl_coef = 0.0
    return c


def kepo(c: RunConfig, *, samples: int) -> RunConfig:
    """`c` with KEPO (arXiv 2602.00400), in place: plain GRPO with `samples` samples a prompt, the divergence from a
    teacher on right responses, and hints for prompts without any.

    Read in the code: one on-policy step a rollout, the mean over the tokens of each response, no KL to a reference; a
    divergence of weight 1 over the whole vocabulary on responses of reward 1; up to five attempts with hints, two
    responses replaced; learning rate 2e-6. Its teacher is a model sixteen times the size: set teacher.kind=model and
    teacher.path.

    Ours: beta = 0, KL(teacher || policy); the teacher stays as it is in `c`, by default the policy itself, shown the
    gold answer. hint.source=solution is for tasks whose vocabulary has no words.
    """
    plain_grpo(c, samples=samples)
    c.objective.update({"name": "grpo", "aggregate": "seq-mean-token-mean"})
    c.update.update({"minibatches": 1, "epochs": 1, "kl_coef": 0.0})
    c.distill.update({"coef": 1.0, "beta": 0.0, "min_reward": 1.0, "top_k": 0})
    c.hint.update({"attempts": 5, "replaced": min(2, samples)})
    c.train.refills = 0
    c.optim.lr = 2e-6
    return c


def paper(c: RunConfig) -> RunConfig:
    """`c` with IIB-LPO as the paper's words and the released hyper-parameters have it, in place.

    What the paper leaves open is as the README's section on the method says.
    """
    c.rollout.roots = 2
    c.branch.update({"k": 3, "at": "top", "points": "shared", "per_point": 1, "parent": "root"})
    c.branch.update({"solved": True, "credit": "trajectory", "replace": True})
    c.latent.update({"kind": "gaussian", "z": 128, "siblings": "independent", "prior_power": 1.0})
    c.ib.update({"estimator": "likelihood", "compression": "information", "length_cost": 0.0})
    c.ib.update({"filter": "score", "keep": 0, "reward_coef": 0.1, "entropy_coef": 0.005})
    c.advantage.weight = "none"
    return c


def released(c: RunConfig) -> RunConfig:
    """`c` with what the code that the authors of IIB-LPO released comes to, in place.

    Read in the code: M = 2 and K = 3 at the one most hesitant token; no score, no filter, no self-reward; a prefix is
    not learnt from in branches; GRPO with the loss term A H, .005; temperature and top-p .9, and samples taken
    for the policy's own. There z has no effect: the projections are never trained, and compiled they are not run. So
    there is no latent here.

    Not copied: entropies at temperature 1, a stop token or the first token as t*, masks on padding, prefixes and roots
    that belong to other prompts, a pattern that loses nested braces.
    """
    plain_grpo(c, samples=2)
    _branches(c, k=3, at="argmax", min_suffix=1, prefix_loss=False)
    c.ib.entropy_coef = 0.005
    c.objective.name = "grpo"
    c.rollout.update({"temperature": 0.9, "top_k": 0, "top_p": 0.9, "min_p": 0.0})
    c.update.update({"importance_cap": 0.0, "kl_coef": 0.0})
    return c


def treerl(c: RunConfig) -> RunConfig:
    """`c` with TreeRL (arXiv 2506.11902), in place.

    Read in the code: six chains; on each the two least likely tokens, begun anew twice each: 30 leaves, of which 16 are
    trained on, drawn at random but for a right one if any is; values along the tree (objectives/credit/treerl.py);
    temperature 1.2 and top-p .95; learning rate 1.5e-6, clip .2, no KL. It has 16 prompts a step, prompts of 1024
    and responses of 8192 tokens.

    Ours: the mean over tokens; a wrong leaf is kept, too, where there is any; neither the first nor the last tokens
    are branched at.
    """
    plain_grpo(c, samples=6)
    _branches(c, k=4, at="logp", points="distinct", per_point=2, credit="treerl")
    c.ib.update({"filter": "random", "keep": 16, "keep_contrast": True})
    c.objective.name = "grpo"
    c.rollout.update({"temperature": 1.2, "top_k": 0, "top_p": 0.95, "min_p": 0.0})
    c.optim.lr = 1.5e-6
    c.update.kl_coef = 0.0
    return c


def treepo(c: RunConfig) -> RunConfig:
    """`c` with TreePO (arXiv 2508.17445), in place.

    Read in the code: segments of 512 tokens, at the end of each two ways to go on, until there are 16 leaves; what
    a leaf gains on its subgroups, averaged and whitened (objectives/credit/treepo.py); DAPO besides, the last 512
    tokens penalised. It has 512 prompts a step and responses of 7 * 1024 tokens.

    Ours: eight first segments (there two to eight), all of which divide once. Where responses are short, set
    branch.segment and reward.overlong_buffer.
    """
    dapo(c, samples=8)
    _branches(c, k=1, at="segments", segment=512, credit="treepo")
    c.reward.overlong_buffer = 512
    return c


def fr3e(c: RunConfig) -> RunConfig:
    """`c` with FR3E (arXiv 2507.07017), in place.

    Read in the paper: one base trajectory, its most hesitant tokens as states, M rollouts from each, 16 together;
    advantages modulated by how the value changes from state to state (objectives/credit/fr3e.py); groups of one outcome
    dropped; clip .22 and .28.

    Ours: four states with four rollouts each, since the paper gives neither number; the group is the prompt's, and the
    loss a mean over tokens.
    """
    plain_grpo(c, samples=1)
    _branches(c, k=16, at="argmax", points="distinct", per_point=4, credit="fr3e")
    c.ib.update({"filter": "contrast", "keep": 0})
    c.objective.update({"name": "dapo", "clip_low": 0.22, "clip_high": 0.28})
    c.update.kl_coef = 0.0
    return c


def _branches(c: RunConfig, **chosen: Any) -> None:
    """The section `branch`: what is not chosen has its default."""
    defaults = {key.partition(".")[2]: knob.default for key, knob in KNOBS.items() if key.startswith("branch.")}
    c.branch.update(defaults | chosen)
