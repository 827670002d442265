"""Every knob of a run, its default and its unit.

The defaults are the released hyper-parameters of the paper (arXiv 2601.05870) where nothing better was found, and else
what docs/findings.md shows; `paper` is the literal reading. Where the paper is silent, the README's section on the
method lists our definitions.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


class RunConfig(ConfigDict):
    """A ConfigDict whose section `update` reads as config.update; ConfigDict has a method of that name."""

    @property
    def update(self):
        return self["update"] if "update" in self else super().update


def default_config() -> RunConfig:
    """A locked config with every knob; config files change values and cannot add keys."""
    c = RunConfig()

    c.model = model = ConfigDict()
    model.path = "package:iiblpo_jax/data/assets/arithmetic"  # Hugging Face directory, .gguf file, or package:PKG/FILE
    model.dtype = "float32"  # of the update's matmuls; master weights are always float32; bfloat16 on accelerators

    c.data = data = ConfigDict()
    data.seed = 0  # order of the prompts and of generated problems
    data.recorded = ""  # files of recorded rollouts to learn from in place of new ones: a folder, a file or a glob
    data.verifiers = 2  # processes that check answers with math-verify or reasoning-gym
    data.verifier_timeout = 1.0  # seconds an answer may take; then it scores 0 and is counted

    c.task = task = ConfigDict()
    task.name = "arithmetic"  # a name of the task registry; "gym:NAME" is a reasoning-gym task
    task.data_dir = ""  # folder with the task's local files; not used by procedural tasks
    task.options = ConfigDict()  # arguments of the task; with a mix: one dict a task name
    task.mix = ConfigDict()  # task name -> weight, in place of task.name; empty = task.name alone

    c.train = train = ConfigDict()
    train.steps = 1000  # rollouts; each is followed by update.minibatches * update.epochs optimiser steps
    train.seed = 0  # of sampling, branching and latents
    train.prompts_per_step = 32  # P
    train.max_bad_steps = 5  # updates in a row, not finite or exploded and so skipped, that stop the run
    train.memory_report = False  # before step 1: a table of what every program needs, refused if it cannot fit

    c.rollout = rollout = ConfigDict()
    rollout.roots = 4  # M root trajectories a prompt
    rollout.slots = 64  # B sequences decoded at a time
    rollout.refill_at = 4  # idle slots that trigger a refill
    rollout.temperature = 0.9  # divides the logits
    rollout.top_k = 0  # most probable tokens kept; 0 = all
    rollout.top_p = 0.9  # probability mass kept; 1 = all
    rollout.min_p = 0.0  # tokens under min_p * the largest probability are dropped; 0 = none
    rollout.max_prompt = 2048  # S tokens; longer prompts are dropped and counted
    rollout.max_tokens = 4096  # T response tokens
    rollout.min_tokens = 0  # response tokens before a stop token may be sampled
    rollout.dtype = "float32"  # of decoding; bfloat16 on accelerators
    rollout.weights = ""  # of the decoding matrices: empty = rollout.dtype | int8, one scale an output channel
    rollout.kv_dtype = ""  # of the KV cache: empty = rollout.dtype | float32 | bfloat16
    rollout.unroll = True  # decode unrolled over layers; False: a scan, slower, but compile time constant in depth

    c.branch = branch = ConfigDict()
    branch.k = 1  # K branches a root, and with branch.parent = previous a branch; 0 = none
    branch.fraction = 0.05  # share of a parent's own tokens, highest entropy first, from which t* is drawn (at least 2)
    branch.points = "shared"  # shared: one t* a parent, K latents | distinct: K different t*
    branch.parent = "root"  # what branches grow on: root | previous: branches too, down to branch.depth levels
    branch.depth = 2  # levels of branches with parent = previous: 1 + K + ... + K^depth trajectories; root: not used
    branch.min_suffix = 8  # the last min(this, length / 4) tokens of a root are no candidates
    branch.min_entropy = 0.0  # nats; a root whose most hesitant candidate is surer than this gets no branches
    branch.solved = True  # a root that has given the gold answer gets branches too
    branch.credit = "trajectory"  # trajectory: one advantage each | tree, siblings: along segments (objectives/tree.py)
    branch.local_credit = 1.0  # weight of the comparison with siblings in tree credit
    branch.prefix_loss = True  # tokens inherited from the parent count in a branch's loss too

    c.latent = latent = ConfigDict()
    latent.kind = "gaussian"  # gaussian: a conditional VAE | codes: k-means of what follows
    latent.z = 0  # Z, width of the latent; codes: how many; 0 = no latent: branches are plain resamples
    latent.siblings = "independent"  # z's of a tree: independent | stratified: they share out the prior
    latent.prior_power = 1.0  # branches draw z from the prior to this power: below 1 flatter, 0 = all codes alike
    latent.condition = "marginal"  # marginal: branches scored without z, importance-weighted | conditioned: with z
    latent.hidden = 256  # width of the CVAE's hidden layers
    latent.window = 0  # tokens from t* on that a code is about; codes only
    latent.prompts = 512  # training prompts from which features are collected
    latent.samples = 4  # own samples of the model a prompt
    latent.steps = 1000  # optimiser steps of the CVAE
    latent.batch = 256  # feature pairs a CVAE step
    latent.lr = 1e-4  # Adam, CVAE
    latent.kl_weight = 1.0  # w_kl of the ELBO
    latent.free_bits = 0.1  # nats a dimension that the KL may cost nothing
    latent.kl_warmup = 200  # steps over which the KL weight rises linearly from 0
    latent.psa_steps = 200  # optimiser steps of the PSA projections, language model frozen
    latent.prior_weight = 0.0  # share of PSA's training rows whose z comes from the prior: how often z may mislead
    latent.psa_lr = 1e-3  # Adam, PSA projections in the latent stage

    c.psa = psa = ConfigDict()
    psa.layers = "all"  # injected layers: all, or the last n as "n"
    psa.half_life = 256.0  # tokens in which the strength of z halves; inf = no decay
    psa.strength = 1.0  # strength at t*; 0 = z has no effect

    c.ib = ib = ConfigDict()
    ib.estimator = "none"  # of S_IB: likelihood, a reference forward a step | entropy (IBRO) | none: no score
    ib.compression = "description"  # of likelihood: description length of r | information: I(q;r), the paper's words
    ib.beta = 1.0  # weight of the answer term against the compression term, both standardised
    ib.filter = "contrast"  # right and wrong in turns, best score first, none of a group of one kind | score: the
    # best by score | random: the control | none: keep all
    ib.distinct = False  # of trajectories of a prompt with the same tokens only the first one counts
    ib.keep = 0  # N trajectories kept a prompt; 0 = half of the group, with contrast all that is left
    ib.keep_contrast = True  # with score and random: a group with right and wrong answers keeps both kinds
    ib.reward_coef = 0.0  # * clip(score, -1, 1), added to the advantage in groups with reward spread
    ib.surprise = 0.5  # advantages are weighed by (-log2 of the prompt's share of right answers) ** this; 0 = off
    ib.entropy_coef = 0.0  # of the loss term mean(A_t H_t)
    ib.length_cost = 0.5  # nats a token, the explicit price of verbosity; 0 = none

    c.objective = objective = ConfigDict()
    objective.name = "grpo"  # a name of the objective registry
    objective.clip_low = placeholder(float)  # ratio is clipped below at 1 - this; None = the method's own
    objective.clip_high = placeholder(float)  # ratio is clipped above at 1 + this; None = the method's own
    objective.aggregate = placeholder(str)  # how token losses become one number; None = the method's own
    objective.options = ConfigDict()  # further arguments of the method, such as alpha of entropy_adv

    c.optim = optim = ConfigDict()
    optim.lr = 1e-6  # AdamW, language model
    optim.psa_lr = 1e-5  # AdamW, PSA projections during RL (conditioned only)
    optim.schedule = "constant"  # constant | cosine, to 0 at the last step
    optim.warmup = 0  # optimiser steps of linear warm-up
    optim.b1 = 0.9  # decay of the gradient average
    optim.b2 = 0.999  # decay of the squared-gradient average
    optim.weight_decay = 0.01  # not on norms and biases
    optim.clip_norm = 1.0  # global gradient norm

    c.update = update = ConfigDict()
    update.minibatches = 4  # optimiser steps an epoch over one rollout
    update.epochs = 1  # passes over one rollout
    update.packed = True  # compute what trajectories have in common once; False: padded rows
    update.microbatch = 0  # trajectories a forward/backward pass, packed: as many tokens; 0 = 8192 tokens a device
    update.remat = True  # recompute activations in the backward pass; False is faster and holds them all
    update.importance_cap = 2.0  # truncation of pi_old / mu of sampled tokens; 0 = no importance weights
    update.kl_coef = 0.0  # of the k3 KL to the reference model

    c.attention = attention = ConfigDict()
    attention.impl = "blocks"  # of packed forwards: blocks, any backend | pallas, a CUDA kernel (on a CPU interpreted)

    c.mesh = mesh = ConfigDict()
    mesh.data = -1  # devices over which prompts are split; -1 = all that the other axes leave
    mesh.fsdp = 1  # devices over which weights, optimiser state and prompts are split
    mesh.sequence = 1  # devices over which the tokens of one forward are split: long responses
    mesh.tensor = 1  # devices over which heads, MLP and vocabulary are split

    c.checkpoint = checkpoint = ConfigDict()
    checkpoint.every = 50  # steps; 0 = only at the end and on SIGTERM
    checkpoint.keep = 2  # newest checkpoints that stay on disk
    checkpoint.best = True  # the best evaluation's stays too, and a new best is saved at once (mean pass@1)

    c.eval = evaluation = ConfigDict()
    evaluation.tasks = ()  # registry names; empty = the held-out set of the training task
    evaluation.problems = 256  # problems a task
    evaluation.samples = 4  # samples a problem
    evaluation.temperature = 0.6  # divides the logits
    evaluation.top_p = 0.95  # probability mass kept
    evaluation.k = (1, 4)  # the k of pass@k and maj@k, none above eval.samples
    evaluation.greedy = True  # one greedy answer a problem as well
    evaluation.every = 0  # steps between evaluations; the first and the last step always have one
    evaluation.seed = 1234  # of problems and samples

    c.log = log = ConfigDict()
    log.every = 1  # steps between rows of metrics.jsonl
    log.rollouts = 1  # steps between files of rollouts/; 0 = none
    log.logprobs = False  # rollouts/ also hold log-probs of the behaviour (`logp`), which off-line training weighs by
    return c.lock()


def plain_grpo(c: RunConfig, *, samples: int) -> RunConfig:
    """`c` with `samples` independent samples a prompt and all that IIB-LPO adds switched off, in place."""
    c.rollout.roots = samples
    c.branch.k = 0
    c.latent.z = 0
    c.ib.estimator = "none"
    c.ib.filter = "none"
    c.ib.reward_coef = 0.0
    c.ib.entropy_coef = 0.0
    c.ib.surprise = 0.0
    return c


def paper(c: RunConfig) -> RunConfig:
    """`c` with IIB-LPO as the paper's words and the released hyper-parameters have it, in place.

    What the paper leaves open is as the README's section on the method says.
    """
    c.rollout.roots = 2
    c.branch.update({"k": 3, "points": "shared", "parent": "root", "solved": True, "credit": "trajectory"})
    c.latent.update({"kind": "gaussian", "z": 128, "siblings": "independent", "prior_power": 1.0})
    c.ib.update({"estimator": "likelihood", "compression": "information", "length_cost": 0.0})
    c.ib.update({"filter": "score", "keep": 0, "surprise": 0.0, "reward_coef": 0.1, "entropy_coef": 0.005})
    return c
