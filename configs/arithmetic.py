"""IIB-LPO on chained one-digit sums with written steps, `6+5+3=` -> `6+5=11;11+3=14;#14`: the default of everything.

    python -m iiblpo_jax.train --config=configs/arithmetic.py --workdir=runs/arithmetic

Model: the embedded Qwen3-style checkpoint (3 layers, width 64), warm-started on worked sums.
Time: 2 to 3 minutes on 2 idle CPU cores, the latent stage included; memory below 3 GiB.
Result: held-out pass@1 from .49 to .82, greedy from .66 to .91 (one seed).
"""

from iiblpo_jax.defaults import RunConfig, default_config


def get_config() -> RunConfig:
    c = default_config()

    c.task.name = "arithmetic"
    c.task.options = {"k_min": 2, "k_max": 4}

    c.train.steps = 300
    c.train.prompts_per_step = 32

    c.rollout.slots = 32
    c.rollout.refill_at = 2
    c.rollout.temperature = 1.0
    c.rollout.top_p = 1.0
    c.rollout.max_prompt = 8  # "9+9+9+9="
    c.rollout.max_tokens = 32  # "9+9=18;18+9=27;27+9=36;#36" and the stop token are 27

    # Latents and the score are off by default and on here, so that the shipped run goes through the whole method.
    c.ib.estimator = "likelihood"
    c.latent.z = 16
    c.latent.prompts = 1024
    c.latent.samples = 2
    c.latent.steps = 400
    c.latent.lr = 1e-3
    c.latent.kl_warmup = 100
    c.latent.psa_steps = 150
    c.psa.half_life = 32.0

    c.optim.lr = 3e-4
    c.optim.psa_lr = 3e-4
    c.optim.warmup = 10
    c.optim.b2 = 0.95
    c.optim.clip_norm = 0.5
    c.optim.weight_decay = 0.0
    c.update.minibatches = 1
    c.update.microbatch = 32

    c.checkpoint.every = 100
    c.eval.problems = 512
    c.eval.samples = 16
    c.eval.temperature = 1.0
    c.eval.top_p = 1.0
    c.eval.k = (1, 4, 16)
    c.log.rollouts = 10
    return c
