"""Every knob of a run: value, unit, range and what it does, in one table. docs/configuration.md is made of it.

The defaults are the released hyper-parameters of the paper (arXiv 2601.05870) where nothing better was found, and else
what docs/findings.md shows; `paper` is the literal reading. Where the paper is silent, the README's section on the
method lists our definitions.
"""

import math
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from iiblpo_jax.config.knobs import knob
from iiblpo_jax.config.methods import LOSSES, METHODS

MESH_REST = (-1,)  # all devices that the other axes leave

OWN_CODE = "file.py:name or package.module:name"  # how knobs name code of the user's own
OWN_TASK = "own"  # the name of the task of task.path in a mix

OF_ADVANTAGES = ("arm", "darling", "mara", "tspo", "ucpo")  # what they are is their advantages
UNGROUPED = ("reinforce_pp",)  # their advantages do not compare the trajectories of a prompt
OF_RIGHT = ("arm", "disco", "imentor", "mara", "ucpo")  # they ask which answers are right, beside what they are paid
WHOLE_GROUPS = ("disco",)  # their minibatches hold all trajectories of a prompt, packed or not
UNBOUNDED = ("cispo",)  # a ratio has no lower bound with clip_low = 1, as published

# What an adapter may be beside, by the names that PEFT has for them, in the order of a layer.
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

SECTIONS = {
    "model": "the language model",
    "lora": "an adapter that is trained in place of the weights",
    "data": "prompts and verifiers",
    "task": "what is asked",
    "train": "the run",
    "rollout": "how trajectories are sampled",
    "turns": "responses of several turns, which an environment answers",
    "branch": "where and how trees branch",
    "latent": "where z comes from: the latent stage",
    "codes": "codes that whole responses are drawn under: z from the root on",
    "psa": "how z enters the model",
    "reward": "what a response is paid, and verifiers of your own",
    "reward_model": "a reward model of preferences: a stage of its own",
    "ib": "the information bottleneck: which trajectories are kept",
    "advantage": "what a prompt weighs",
    "objective": "what a token is worth",
    "teacher": "who teaches besides the reward, where distill.coef or hint.attempts ask",
    "distill": "the distance to the teacher in the loss",
    "hint": "hint exploration: prompts without any reward are asked again",
    "optim": "the optimiser",
    "update": "how the policy moves",
    "attention": "which attention packed forwards run",
    "mesh": "how devices share the work",
    "checkpoint": "what stays on disk",
    "eval": "held-out evaluation",
    "log": "what a run writes down",
    "tracker": "where metrics go besides the workdir",
    "offline": "what the verbs sft and preferences learn from, and how",
}

KNOBS = {
    "model.path": knob(
        "package:iiblpo_jax/data/assets/arithmetic", "Hugging Face directory, .gguf file, or package:PKG/FILE"
    ),
    "model.dtype": knob(
        "float32",
        "of the update's matmuls; master weights are always float32; bfloat16 on accelerators",
        choices=("float32", "bfloat16"),
    ),
    "lora.rank": knob(
        0, "r of a LoRA adapter (arXiv 2106.09685), trained in place of the weights; 0 = none", at_least=0
    ),
    "lora.alpha": knob(32.0, "the adapter counts alpha / rank times", above=0),
    "lora.targets": knob(LORA_TARGETS, f"projections with an adapter, of {', '.join(LORA_TARGETS)}", of=str),
    "lora.base": knob(
        "float32",
        "how the frozen weights are stored; int8: the matrices of layers, one scale an output channel, the rest in "
        "bfloat16",
        choices=("float32", "bfloat16", "int8"),
    ),
    "lora.path": knob("", "folder of a PEFT adapter to begin with; empty = one that adds nothing"),
    "data.seed": knob(0, "order of the prompts and of generated problems"),
    "data.recorded": knob(
        "", "files of recorded rollouts to learn from in place of new ones: a folder, a file or a glob; empty = none"
    ),
    "data.verifiers": knob(
        2, "processes that check answers with math-verify or reasoning-gym", at_least=1, unit="processes"
    ),
    "data.verifier_timeout": knob(
        1.0, "how long an answer may take; then it scores 0 and is counted", above=0, below=math.inf, unit="seconds"
    ),
    "task.name": knob("arithmetic", "a name of the task registry; 'gym:NAME' is a reasoning-gym task"),
    "task.path": knob(
        "", f"a function of your own that makes the task, in place of task.name; {OWN_CODE}; in a mix it is 'own'"
    ),
    "task.data_dir": knob("", "folder with the task's local files; not used by procedural tasks"),
    "task.options": knob({}, "arguments of the task; with a mix: one dict a task name"),
    "task.mix": knob({}, "task name -> weight, in place of task.name; empty = task.name alone"),
    "task.system": knob(
        True, "chats have the task's system message, in the user's turn where the template takes none; False: none"
    ),
    "task.template_args": knob(
        {}, "what chat templates are told besides, such as enable_thinking = False; refused where one does not read it"
    ),
    "train.steps": knob(
        1000, "each is followed by update.minibatches * update.epochs optimiser steps", at_least=1, unit="rollouts"
    ),
    "train.seed": knob(0, "of sampling, branching and latents"),
    "train.prompts_per_step": knob(32, "P, prompts of one rollout", at_least=1, unit="prompts"),
    "train.refills": knob(
        0,
        "dynamic sampling (DAPO): most further rollouts of a step, of P other prompts each, until the rewards of P "
        "prompts differ; 0 = none",
        at_least=0,
        unit="rollouts",
    ),
    "train.max_bad_steps": knob(
        5, "updates in a row, not finite or exploded and so skipped, that stop the run", at_least=1, unit="steps"
    ),
    "train.max_empty_steps": knob(
        20,
        "steps in a row with nothing to learn from that stop the run: no token counts, or every advantage is 0",
        at_least=1,
        unit="steps",
    ),
    "train.memory_report": knob(False, "before step 1: a table of what every program needs, refused if it cannot fit"),
    "rollout.roots": knob(4, "M, root trajectories of a prompt", at_least=1, unit="trajectories"),
    "rollout.slots": knob(64, "B, sequences decoded at a time", at_least=1, unit="sequences"),
    "rollout.refill_at": knob(4, "idle slots that trigger a refill", at_least=1, unit="slots"),
    "rollout.temperature": knob(0.9, "divides the logits", above=0),
    "rollout.top_k": knob(0, "the most probable ones are kept; 0 = all", at_least=0, unit="tokens"),
    "rollout.top_p": knob(0.9, "probability mass kept; 1 = all", above=0, at_most=1),
    "rollout.min_p": knob(
        0.0, "tokens under min_p * the largest probability are dropped; 0 = none", at_least=0, below=1
    ),
    "rollout.max_prompt": knob(
        2048, "S, the longest prompt; longer ones are dropped and counted", at_least=1, unit="tokens"
    ),
    "rollout.max_tokens": knob(4096, "T, the longest response", at_least=1, unit="tokens"),
    "rollout.min_tokens": knob(0, "of a response before a stop token may be sampled", at_least=0, unit="tokens"),
    "rollout.dtype": knob("float32", "of decoding; bfloat16 on accelerators", choices=("float32", "bfloat16")),
    "rollout.weights": knob(
        "", "of the decoding matrices; empty = rollout.dtype; int8: one scale an output channel", choices=("", "int8")
    ),
    "rollout.kv_dtype": knob("", "of the KV cache; empty = rollout.dtype", choices=("", "float32", "bfloat16")),
    "rollout.unroll": knob(
        True, "decode unrolled over layers; False: a scan, slower, but compile time constant in depth"
    ),
    "turns.most": knob(
        0,
        "turns of a response that the environment of its task answers; what is said after them is not; 0 = a response "
        "is one turn",
        at_least=0,
        unit="turns",
    ),
    "turns.observation": knob(64, "of an observation; what is longer is cut", at_least=1, unit="tokens"),
    "turns.timeout": knob(
        10.0,
        "how long an environment of your own may take for a turn; then the response ends there and is counted",
        above=0,
        below=math.inf,
        unit="seconds",
    ),
    "branch.k": knob(
        1, "K, branches of a root, and with branch.parent = previous of a branch; 0 = none", at_least=0, unit="branches"
    ),
    "branch.at": knob(
        "top",
        "which of a parent's tokens t* may be; top: drawn among the branch.fraction of highest entropy; argmax: the "
        "highest; random: any; threshold: any of branch.min_entropy; proportional: any, in proportion to its entropy; "
        "logp: the least likely; segments: multiples of branch.segment, the first ones",
        choices=("top", "argmax", "random", "threshold", "proportional", "logp", "segments"),
    ),
    "branch.fraction": knob(
        0.05,
        "of top: share of a parent's own tokens, highest entropy first, among which t* is drawn (at least 2)",
        above=0,
        at_most=1,
    ),
    "branch.segment": knob(512, "between the t* of segments", at_least=1, unit="tokens"),
    "branch.points": knob(
        "shared",
        "shared: one t* a parent, K latents; distinct: K / branch.per_point different t*",
        choices=("shared", "distinct"),
    ),
    "branch.per_point": knob(
        1, "that share a t* with branch.points = distinct; divides branch.k", at_least=1, unit="branches"
    ),
    "branch.parent": knob(
        "root",
        "what branches grow on; previous: branches too, down to branch.depth levels",
        choices=("root", "previous"),
    ),
    "branch.depth": knob(
        2,
        "levels of branches with branch.parent = previous: 1 + K + ... + K^depth trajectories; root: not used",
        at_least=1,
        unit="levels",
    ),
    "branch.after": knob(
        0.0,
        "share of a parent's own tokens, the first ones, that are no candidates: late branches are short, and more of "
        "them cost as much",
        at_least=0,
        below=1,
    ),
    "branch.min_suffix": knob(
        8, "the last min(this, length / 4) tokens of a root are no candidates", at_least=1, unit="tokens"
    ),
    "branch.min_entropy": knob(
        0.0, "a root whose most hesitant candidate is surer than this gets no branches", at_least=0, unit="nats"
    ),
    "branch.solved": knob(True, "a root that has given the gold answer gets branches too"),
    "branch.replace": knob(
        True,
        "a branch may begin with the token that its parent drew at t*; False: its first token is drawn from those that "
        "its parent and elder siblings did not draw there, and trajectories count for what they stand for",
    ),
    "branch.correction": knob(
        1.0,
        "power of these weights: 1 = what they stand for, 0 = all alike; not used with replacement",
        at_least=0,
        at_most=1,
    ),
    "branch.credit": knob(
        "trajectory",
        "trajectory: one advantage each; the others look at what trajectories have in common, a file each of "
        "objectives/credit: tree, siblings, treerl, treepo, fr3e, ib_tpo",
        choices=("trajectory", "tree", "siblings", "treerl", "treepo", "fr3e", "ib_tpo"),
    ),
    "branch.local_credit": knob(1.0, "weight of the comparison with siblings in credit tree and siblings", at_least=0),
    "branch.ib_credit": knob(0.1, "of credit ib_tpo: weight of what a segment pays for being likely", at_least=0),
    "branch.prefix_loss": knob(
        True,
        "tokens inherited from the parent count in a branch's loss too; with trajectory credit not where only some "
        "roots have branches (branch.solved, branch.min_entropy)",
    ),
    "latent.kind": knob(
        "gaussian", "gaussian: a conditional VAE; codes: k-means of what follows", choices=("gaussian", "codes")
    ),
    "latent.z": knob(
        0, "Z, width of the latent; codes: how many; 0 = no latent: branches are plain resamples", at_least=0
    ),
    "latent.siblings": knob(
        "independent", "z's of a tree; stratified: they share out the prior", choices=("independent", "stratified")
    ),
    "latent.prior_power": knob(
        1.0, "branches draw z from the prior to this power: below 1 flatter, 0 = all codes alike", at_least=0
    ),
    "latent.condition": knob(
        "marginal",
        "marginal: branches scored without z, importance-weighted; conditioned: with z",
        choices=("marginal", "conditioned"),
    ),
    "latent.hidden": knob(256, "width of the CVAE's hidden layers", at_least=1),
    "latent.window": knob(0, "from t* on that a code is about; codes only", at_least=0, unit="tokens"),
    "latent.prompts": knob(512, "training prompts from which features are collected", at_least=1, unit="prompts"),
    "latent.samples": knob(4, "own samples of the model a prompt", at_least=1, unit="samples"),
    "latent.steps": knob(1000, "optimiser steps of the CVAE", at_least=1, unit="steps"),
    "latent.batch": knob(256, "feature pairs a CVAE step", at_least=1, unit="pairs"),
    "latent.lr": knob(1e-4, "learning rate of the CVAE (Adam)", above=0),
    "latent.kl_warmup": knob(
        200, "over which the weight of the KL in the ELBO rises linearly from 0 to 1", at_least=0, unit="steps"
    ),
    "latent.psa_steps": knob(
        200, "optimiser steps of the PSA projections, language model frozen", at_least=0, unit="steps"
    ),
    "latent.prior_weight": knob(
        0.0, "share of PSA's training rows whose z comes from the prior: how often z may mislead", at_least=0, below=1
    ),
    "latent.psa_lr": knob(1e-3, "learning rate of the PSA projections in the latent stage (Adam)", above=0),
    "psa.layers": knob(
        "all",
        "injected layers: all, or the last n as 'n'",
        pattern="all|0*[1-9][0-9]*",
        wanted="all, or the number of last layers, such as 4",
    ),
    "psa.half_life": knob(256.0, "in which the strength of z halves; inf = no decay", above=0, unit="tokens"),
    "psa.strength": knob(1.0, "strength at t*; 0 = z has no effect", at_least=0),
    "codes.n": knob(
        0,
        "N, such as 4: the roots of a prompt share them out, a token of its own each in place of the prompt's last; "
        "0 = none",
        at_least=0,
        at_most=64,
        unit="codes",
    ),
    "codes.noise": knob(
        0.3, "by which a code's embedding differs at first from that of the token it replaces, of its norm", at_least=0
    ),
    "codes.others": knob(
        3,
        "that each response is read under besides its own, a forward each: what it says of its code; 0 = nobody asks",
        at_least=0,
        unit="codes",
    ),
    "codes.dependence": knob(
        0.0, "what a right answer's advantage gains a nat that it says of its code, above the step's mean", at_least=0
    ),
    "reward.timeout": knob(
        10.0, "how long a call of a verifier of your own may take", above=0, below=math.inf, unit="seconds"
    ),
    "reward.processes": knob(2, "in which verifiers of your own run", at_least=1, unit="processes"),
    "reward.batch": knob(
        16,
        "of a call of a verifier of your own, at most; a call that fails is repeated one by one",
        at_least=1,
        unit="responses",
    ),
    "reward.max_failures": knob(
        0.25,
        "share of a step's rewards that may fail (raise, hang, be no number) and score 0; more stop the run",
        at_least=0,
        at_most=1,
    ),
    "reward.overlong": knob(
        "none",
        "of responses cut at rollout.max_tokens; mask: nothing is learnt from them; shape: long ones are paid less",
        choices=("none", "mask", "shape"),
    ),
    "reward.overlong_buffer": knob(
        1024, "last tokens of a response over which shape takes off more and more", at_least=1, unit="tokens"
    ),
    "reward.overlong_penalty": knob(
        1.0, "what shape takes off at full length (DAPO: 1 where right and wrong are 2 apart)", above=0, below=math.inf
    ),
    "reward.model": knob(
        "",
        "folder of a reward model (python -m iiblpo_jax.reward_model) that pays in place of the verifier; empty = none",
    ),
    "reward.model_coef": knob(
        1.0,
        "share of the model's reward, of which the verifier's has the rest; 1 = the model's alone",
        above=0,
        at_most=1,
    ),
    "reward.ibl_coef": knob(
        0.0,
        "lambda of IBL: off the model's reward for each unit of the Mahalanobis distance of a response's latent from "
        "those of the initial policy",
        at_least=0,
    ),
    "reward.mop_alpha": knob(
        0.01,
        "significance level of MOP, the share of responses whose latent is farther than chi-square allows",
        above=0,
        below=1,
    ),
    "reward_model.pairs": knob(
        "", "file of rows {prompt, chosen, rejected}; empty = right and wrong responses of the model to one prompt"
    ),
    "reward_model.prompts": knob(
        512,
        "training prompts that the model is asked, for pairs and for what is typical of it",
        at_least=1,
        unit="prompts",
    ),
    "reward_model.samples": knob(8, "its responses to each of them", at_least=2, unit="samples"),
    "reward_model.backbone": knob(
        "trained",
        "trained: a copy of the model, which is stored too; frozen: the model as it is, and only the head is trained",
        choices=("trained", "frozen"),
    ),
    "reward_model.z": knob(128, "width of the bottleneck", at_least=1),
    "reward_model.beta": knob(0.1, "weight of the KL of its latent to N(0, I), summed over z; 0 = none", at_least=0),
    "reward_model.epochs": knob(1, "passes over the pairs", at_least=1, unit="passes"),
    "reward_model.batch": knob(64, "of an optimiser step", at_least=1, unit="pairs"),
    "reward_model.lr": knob(9e-6, "learning rate (Adam), which decays to 0 along a cosine", above=0),
    "ib.estimator": knob(
        "none",
        "of S_IB; likelihood: a reference forward a step; entropy: IBRO; none: no score",
        choices=("likelihood", "entropy", "none"),
    ),
    "ib.compression": knob(
        "description",
        "of likelihood; description: length of r; information: I(q;r), the paper's words",
        choices=("description", "information"),
    ),
    "ib.beta": knob(1.0, "weight of the answer term against the compression term, both standardised", at_least=0),
    "ib.filter": knob(
        "contrast",
        "contrast: right and wrong in turns, none of a group of one kind; score: the best; random: a control",
        choices=("score", "contrast", "random", "none"),
    ),
    "ib.distinct": knob(False, "of trajectories of a prompt with the same tokens only the first one counts"),
    "ib.keep": knob(
        0, "N, kept of a prompt; 0 = half of the group, with contrast all that is left", at_least=0, unit="trajectories"
    ),
    "ib.keep_contrast": knob(True, "with score and random: a group with right and wrong answers keeps both kinds"),
    "ib.reward_coef": knob(
        0.0, "times clip(score, -1, 1), added to the advantage in groups with reward spread", at_least=0
    ),
    "ib.entropy_coef": knob(0.0, "of the loss term mean(A_t H_t)", at_least=0),
    "ib.length_cost": knob(0.5, "the explicit price of verbosity; 0 = none", at_least=0, unit="nats a token"),
    "advantage.weight": knob(
        "surprise",
        "of a prompt by its share p of right answers: surprise (-log2 p)^power, maxrl 1/p, f_grpo (1-p)^power, "
        "pass_at_k k(1-p)^(k-1) with k = power",
        choices=("none", "surprise", "maxrl", "f_grpo", "pass_at_k"),
    ),
    "advantage.power": knob(0.5, "of advantage.weight; maxrl and none have none", above=0),
    "objective.name": knob("grpo", "a method of iiblpo_jax/objectives", choices=tuple(METHODS)),
    "objective.path": knob("", f"a function of your own that makes the method, in place of objective.name; {OWN_CODE}"),
    "objective.clip_low": knob(
        None, "ratio is clipped below at 1 - this; None = the method's own", at_least=0, kind=float
    ),
    "objective.clip_high": knob(
        None, "ratio is clipped above at 1 + this; None = the method's own", at_least=0, kind=float
    ),
    "objective.aggregate": knob(
        None,
        "how token losses become one number; None = the method's own",
        choices=("token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"),
        kind=str,
    ),
    "objective.options": knob({}, "further arguments of the method, such as alpha of entropy_adv"),
    "teacher.kind": knob(
        "answer",
        "answer: the policy itself, shown the gold answer in its prompt; average: an exponential average of past "
        "policies; model: that of teacher.path",
        choices=("answer", "average", "model"),
    ),
    "teacher.path": knob(
        "",
        "of kind model: as model.path, of any size, with the same tokenizer; a checkpoint of a run is exported first",
    ),
    "teacher.decay": knob(0.99, "of kind average: what is left of it after a rollout", at_least=0, below=1),
    "distill.coef": knob(
        0.0, "of the divergence from the teacher, the mean over tokens, nats (KEPO: 1); 0 = no teacher", at_least=0
    ),
    "distill.beta": knob(
        0.0,
        "of the generalised Jensen-Shannon divergence: 0 = KL(teacher || policy), 1 = KL(policy || teacher)",
        at_least=0,
        at_most=1,
    ),
    "distill.min_reward": knob(1.0, "least reward of a response whose tokens are distilled; 0 = of all"),
    "distill.top_k": knob(
        0,
        "likeliest tokens of the teacher that are told apart, such as 64, all others as one; 0 = the whole vocabulary",
        at_least=0,
        unit="tokens",
    ),
    "hint.attempts": knob(
        0, "most rollouts with hints of a step, for prompts without any reward (KEPO: 5); 0 = none", at_least=0
    ),
    "hint.source": knob(
        "teacher",
        "teacher: it writes a hint, shown the gold answer, that is put into the prompt; solution: the first half of "
        "the task's own solution begins the response",
        choices=("teacher", "solution"),
    ),
    "hint.tokens": knob(64, "of the longest hint", at_least=1, unit="tokens"),
    "hint.replaced": knob(2, "most responses of a prompt that give way to right ones", at_least=1, unit="trajectories"),
    "optim.lr": knob(1e-6, "learning rate of the language model (AdamW)", at_least=0),
    "optim.psa_lr": knob(1e-5, "learning rate of the PSA projections during RL (AdamW, conditioned only)", at_least=0),
    "optim.schedule": knob(
        "constant",
        "of both learning rates, by rollouts that moved the policy; cosine: to 0 after optim.decay_steps of them",
        choices=("constant", "cosine"),
    ),
    "optim.decay_steps": knob(0, "length of a cosine, warm-up included; 0 = train.steps", at_least=0, unit="rollouts"),
    "optim.warmup": knob(0, "of linear warm-up, whatever update.minibatches is", at_least=0, unit="rollouts"),
    "optim.b1": knob(0.9, "decay of the gradient average", at_least=0, below=1),
    "optim.b2": knob(0.999, "decay of the squared-gradient average", at_least=0, below=1),
    "optim.weight_decay": knob(0.01, "of matrices, not of norms and biases", at_least=0),
    "optim.clip_norm": knob(1.0, "the global gradient norm is cut to this", above=0),
    "update.minibatches": knob(4, "optimiser steps an epoch over one rollout", at_least=1, unit="steps"),
    "update.epochs": knob(1, "passes over one rollout", at_least=1, unit="passes"),
    "update.packed": knob(True, "compute what trajectories have in common once; False: padded rows"),
    "update.microbatch": knob(
        0,
        "of a forward and backward pass, packed: as many tokens; 0 = 8192 tokens a device",
        at_least=0,
        unit="trajectories",
    ),
    "update.remat": knob(True, "recompute activations in the backward pass; False is faster and holds them all"),
    "update.importance": knob(
        "token_truncate",
        "weights pi_old / mu of tokens, or of whole responses; truncate: cut to the bounds; mask: 0 outside",
        choices=("token_truncate", "token_mask", "sequence_truncate", "sequence_mask"),
    ),
    "update.importance_floor": knob(0.0, "lower bound of pi_old / mu; 0 = none", at_least=0, at_most=1),
    "update.importance_cap": knob(2.0, "upper bound of pi_old / mu; 0 = no importance weights", at_least=0),
    "update.entropy_bonus": knob(
        0.0, "of the mean entropy of tokens, nats, taken off the loss (Entropy-Reg: .001 to .005)", at_least=0
    ),
    "update.kl_coef": knob(0.0, "of the KL of the policy to the reference model; 0 = none", at_least=0),
    "update.kl_form": knob(
        "k3",
        "k3, k2: a loss token by token, weighed by pi / mu; k1: off the reward, a token answers for all that follow",
        choices=("k3", "k2", "k1"),
    ),
    "attention.impl": knob(
        "blocks",
        "of packed forwards; blocks: any backend; pallas: a CUDA kernel (on a CPU interpreted)",
        choices=("blocks", "pallas"),
    ),
    "mesh.data": knob(
        -1,
        "over which prompts are split; -1 = all that the other axes leave",
        at_least=1,
        also=MESH_REST,
        unit="devices",
    ),
    "mesh.fsdp": knob(
        1, "over which weights, optimiser state and prompts are split", at_least=1, also=MESH_REST, unit="devices"
    ),
    "mesh.sequence": knob(
        1, "over which the tokens of one forward are split: long responses", at_least=1, also=MESH_REST, unit="devices"
    ),
    "mesh.tensor": knob(
        1, "over which heads, MLP and vocabulary are split", at_least=1, also=MESH_REST, unit="devices"
    ),
    "checkpoint.every": knob(
        50, "between checkpoints; 0 = only at the end, on SIGTERM and Ctrl-C", at_least=0, unit="steps"
    ),
    "checkpoint.keep": knob(2, "the newest ones that stay on disk", at_least=1, unit="checkpoints"),
    "checkpoint.best": knob(True, "the best evaluation's stays too, and a new best is saved at once (mean pass@1)"),
    "eval.tasks": knob((), "registry names; empty = the held-out set of the training task", of=str),
    "eval.problems": knob(256, "of each task", at_least=1, unit="problems"),
    "eval.samples": knob(4, "of each problem", at_least=1, unit="samples"),
    "eval.task_samples": knob({}, "task name -> samples of each of its problems, in place of eval.samples"),
    "eval.temperature": knob(0.6, "divides the logits", at_least=0),
    "eval.top_p": knob(0.95, "probability mass kept", above=0, at_most=1),
    "eval.k": knob(
        (1, 4), "the k of pass@k and maj@k; of a task those up to its samples, none above all", of=int, at_least=1
    ),
    "eval.avg": knob((), "the k of avg@k, the mean over the first k samples, likewise", of=int, at_least=1),
    "eval.greedy": knob(True, "one greedy answer a problem as well"),
    "eval.every": knob(0, "between evaluations; the first and the last step always have one", at_least=0, unit="steps"),
    "eval.seed": knob(1234, "of problems and samples"),
    "log.every": knob(1, "between rows of metrics.jsonl", at_least=1, unit="steps"),
    "log.rollouts": knob(1, "between files of rollouts/; 0 = none", at_least=0, unit="steps"),
    "log.logprobs": knob(
        False, "rollouts/ also hold log-probs of the behaviour, key `logp`, which off-line training weighs by"
    ),
    "log.entropies": knob(False, "rollouts/ also hold the entropy of every token in nats, key `entropies`"),
    "tracker.path": knob("", f"a class or function of your own that gets every row of metrics; {OWN_CODE}"),
    "tracker.options": knob({}, "arguments of the tracker, such as the name of a project"),
    "offline.data": knob(
        "",
        "a file to learn from: of sft {prompt, response} a row, empty = the gold solutions of the task's problems; of "
        "preferences {prompt, chosen, rejected}",
    ),
    "offline.heldout": knob(
        "", "a file of the same kind that is only evaluated on; empty = with the task's problems those held out"
    ),
    "offline.chat": knob(
        False, "the prompts of a file are the user's turn in the model's chat template; False: the text as it is"
    ),
    "offline.source": knob(
        "file",
        "of pairs; file: offline.data; policy: right and wrong rollouts of the policy as it is; start: of the policy "
        "that the run began with; recorded: those of data.recorded",
        choices=("file", "policy", "start", "recorded"),
    ),
    "offline.loss": knob("dpo", "on pairs, a file of iiblpo_jax/offline/losses", choices=tuple(LOSSES)),
    "offline.options": knob({}, "arguments of the loss, such as beta"),
    "offline.retain": knob("", "a file of {prompt, response}, of which every pair has one to be kept; empty = none"),
    "offline.retain_coef": knob(1.0, "of the likelihood of what is to be kept", above=0),
}

# Knobs of earlier versions: the default they had, and what they did.
REMOVED = {
    "ib.surprise": (0.5, "it is advantage.weight=surprise with advantage.power, or advantage.weight=none for 0"),
    "latent.kl_weight": (1.0, "weight of the KL in the ELBO, which is 1 now"),
    "latent.free_bits": (0.1, "nats a dimension that the KL may cost nothing, which are 0.1 now"),
}


if TYPE_CHECKING:
    _Config = Any  # its sections are attributes that the table below makes; a checker cannot know them
else:
    _Config = ConfigDict


class RunConfig(_Config):
    """A ConfigDict whose section `update` reads as config.update; ConfigDict has a method of that name."""

    @property
    def update(self):
        return self["update"] if "update" in self else super().update


def default_config() -> RunConfig:
    """A config with every knob, locked: config files change values and cannot add keys but in the free-form dicts."""
    config = RunConfig({section: ConfigDict() for section in SECTIONS})
    for key, described in KNOBS.items():
        section, name = key.split(".")
        config[section][name] = described.fresh()
    config.lock()
    for key, described in KNOBS.items():
        if described.kind is dict:
            section, name = key.split(".")
            config[section][name].unlock()
    return config
