"""The methods of objective.name and the losses of offline.loss, with what their options may be: value, unit, range.

They stand beside the knobs and not beside the functions, because a config is checked before jax is imported; tests
compare the two.
"""

from iiblpo_jax.config.knobs import knob

# The policy-optimisation methods, and what objective.options may set of each.
METHODS = {
    "arm": {
        "alpha": knob(0.3, "weight of c(q) - c(o | q), the prompt's likelihood and the answer's", at_least=0),
        "fraction": knob(0.2, "of an answer's tokens, the least likely, that its c is taken from", above=0, at_most=1),
        "all_right": knob(True, "also in groups whose answers are all right, which then differ"),
    },
    "bapo": {
        "target": knob(0.4, "share of the surrogate that positive tokens must carry", at_least=0, at_most=1),
        "low": knob(0.6, "where the lower bound of the ratio starts", at_least=0, at_most=1),
        "low_max": knob(0.9, "where it ends", at_least=0, at_most=1),
        "low_step": knob(0.02, "by how much it rises", above=0),
        "high": knob(1.2, "where the upper bound of the ratio starts", at_least=1),
        "high_max": knob(3.0, "where it ends", at_least=1),
        "high_step": knob(0.05, "by how much it rises", above=0),
    },
    "cispo": {},
    "clip_cov": {
        "share": knob(2e-4, "of the tokens of a minibatch that lose their gradient", at_least=0, at_most=1),
        "cov_low": knob(1.0, "of tokens whose covariance is above this"),
        "cov_high": knob(5.0, "and below this"),
    },
    "dapo": {},
    "darling": {},
    "disco": {
        "score": knob("ratio", "of a response: mean of pi / pi_old, or of log pi", choices=("ratio", "logp")),
        "negatives": knob("hardest", "how wrong answers weigh; mean: equally (DisCO-b)", choices=("hardest", "mean")),
        "tau": knob(None, "temperature among wrong answers; None = 1 of ratio, 10 of logp", above=0, kind=float),
        "beta": knob(1e3, "strength of the constraint", at_least=0),
        "delta": knob(1e-4, "KL that costs nothing", at_least=0, unit="nats a token"),
    },
    "dppo": {
        "divergence": knob("tv", "of the sampled token against all others", choices=("tv", "kl")),
        "delta_low": knob(None, "bound where A <= 0; None = .15 of tv, .05 of kl", at_least=0, kind=float),
        "delta_high": knob(None, "bound where A > 0; None = .15 of tv, .05 of kl", at_least=0, kind=float),
        "cap": knob(20.0, "truncation of the ratio", above=0),
        "anchor": knob("rollout", "the ratio is to the policy that sampled, or to pi_old", choices=("rollout", "old")),
        "top_k": knob(
            0, "likeliest tokens of the rollout that are compared, such as 20; 0 = the sampled one", at_least=0
        ),
    },
    "dr_grpo": {},
    "entropy_adv": {
        "alpha": knob(0.4, "weight of the entropy in the bonus", at_least=0),
        "kappa": knob(2.0, "the bonus is at most |A| / kappa", above=0),
    },
    "forking_tokens": {
        "fraction": knob(0.2, "of the tokens of a minibatch, highest entropy first, that learn", above=0, at_most=1),
    },
    "grpo": {},
    "gspo": {},
    "imentor": {
        "bonus": knob(0.5, "what the newest wrong answer of a batch is worth at the start", at_least=0),
        "decay": knob(40.0, "after which the bonus is half of that", above=0, unit="rollouts"),
    },
    "kl_cov": {
        "share": knob(2e-3, "of the tokens of a minibatch, largest covariance first, that pay", at_least=0, at_most=1),
        "kl_coef": knob(1.0, "what they pay for each nat by which they moved", at_least=0),
    },
    "mara": {},
    "reinforce_pp": {},
    "reinforce_pp_baseline": {},
    "rloo": {},
    "sapo": {
        "tau_pos": knob(1.0, "sharpness of the gate where A > 0", above=0),
        "tau_neg": knob(1.05, "sharpness of the gate where A <= 0", above=0),
    },
    "spine": {
        "fraction": knob(0.2, "of the tokens of a minibatch, highest entropy first, that learn", above=0, at_most=1),
        "band_coef": knob(0.01, "of the loss of an entropy outside the band, on these tokens", at_least=0),
        "low": knob(0.5, "lower end of the band", at_least=0, unit="nats"),
        "high": knob(2.5, "upper end of the band", at_least=0, unit="nats"),
    },
    "tspo": {
        "alpha": knob(
            0.5, "reward of the turns of a wrong response up to the one in which the answer was seen", above=0
        ),
    },
    "ucpo": {
        "tau": knob(0.3, "share of the right answers' mass that goes by how unlikely they are", at_least=0, at_most=1),
    },
}

# The losses on pairs, and what offline.options may set of each.
LOSSES = {
    "dipo": {
        "beta": knob(0.1, "strength", above=0),
        "alpha": knob(1.0, "by which the likeliest tokens are raised and lowered; 1 lowers them to the next", above=0),
        "k": knob(5, "likeliest tokens of a distribution", at_least=1, unit="tokens"),
    },
    "dpo": {"beta": knob(0.1, "strength", above=0)},
    "flex_dpo": {
        "beta_chosen": knob(0.1, "strength for the chosen response", above=0),
        "beta_rejected": knob(0.05, "strength for the rejected one", above=0),
    },
    "gradient_ascent": {},
    "npo": {"beta": knob(0.1, "strength", above=0)},
    "sft_dpo": {
        "beta": knob(0.1, "strength", above=0),
        "weight": knob(0.1, "of the log-likelihood of the chosen response", at_least=0),
    },
}
