"""Hugging Face transformers on torch: `generate`, and one GRPO step, as a peer process (protocol.py).

    python torch_peer.py --model=DIR --dtype=float32

Weights come from a directory in Hugging Face format. Attention is torch's scaled_dot_product_attention; threads are
torch's default. Runs on a GPU where torch finds one.
"""

import argparse
import ctypes
import re
import time
import warnings
from pathlib import Path

import numpy as np
import torch
import transformers
from protocol import serve

STATUS = Path("/proc/self/status")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def main():
    """Loads the model and serves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", category=FutureWarning)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        options.model, dtype=getattr(torch, options.dtype), attn_implementation="sdpa"
    ).to(DEVICE)
    peer = TorchPeer(model)
    facts = {"torch": torch.__version__, "transformers": transformers.__version__, "threads": torch.get_num_threads()}
    serve(facts, {"generate": peer.generate, "grpo": peer.grpo})


class TorchPeer:
    """The model and, for training, its optimizer."""

    def __init__(self, model):
        self.model = model
        self.pad = model.config.pad_token_id
        self.optimizer = None

    def generate(self, prompts: list[list[int]], batch: int, max_tokens: int) -> dict:
        """One response a prompt, `batch` prompts at a time in the order given (left padded where they differ)."""
        self.model.eval()
        responses, seconds = [], 0.0
        for start in range(0, len(prompts), batch):
            rows = prompts[start : start + batch]
            width = max(map(len, rows))
            ids = torch.tensor([[self.pad] * (width - len(row)) + row for row in rows], device=DEVICE)
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=DEVICE)
            began = time.perf_counter()
            with torch.inference_mode():
                out = self.model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    max_new_tokens=max_tokens,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                    top_p=1.0,
                )
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds += time.perf_counter() - began
            responses += out[:, width:].tolist()
        return {"seconds": seconds, "responses": [self._cut(row) for row in responses]}

    def _cut(self, row: list[int]) -> list[int]:
        stop = self.model.config.eos_token_id
        return row[: row.index(stop) + 1] if stop in row else row

    def grpo(
        self,
        rows: str,
        microbatch: int,
        learning_rate: float,
        clip: float,
        checkpointing: bool,
        dtype: str,
        memory: bool,
    ) -> dict:
        """One optimizer step on the rows of an .npz file: tokens_RC, prompt_len_R, mask_RT, advantage_R.

        The loss is that of objectives/grpo.py at the first step of a rollout: token-mean over the whole batch of
        max(-A r, -A clip(r, .8, 1.2)), r = pi / pi_old, and pi_old is the policy itself. `dtype` is that of the
        forward; weights, gradients and moments stay float32. `memory` asks for the growth of the peak, and for the
        gradient norm summed in float64 (torch's own is off by 4e-4 here). Such a step is not to be timed: on a CPU
        everything that was freed goes back to the kernel first.
        """
        data = {name: torch.from_numpy(value).to(DEVICE) for name, value in np.load(rows).items()}
        if self.optimizer is None:
            self.optimizer = self._optimizer(learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        if checkpointing:
            self.model.gradient_checkpointing_enable({"use_reentrant": False})
        elif self.model.is_gradient_checkpointing:
            self.model.gradient_checkpointing_disable()
        before = self._reset_peak() if memory else 0
        began = time.perf_counter()
        with torch.autocast(DEVICE, getattr(torch, dtype), enabled=dtype != "float32"):
            loss, norm = self._step(data, microbatch, clip, exact=memory)
        if DEVICE == "cuda":
            torch.cuda.synchronize()
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "loss": loss,
            "grad_norm": norm,
            "peak_bytes": self._peak() - before if memory else 0,
        }

    def _optimizer(self, learning_rate):
        def decays(name):
            return not name.endswith(("norm.weight", "bias"))

        named = list(self.model.named_parameters())
        groups = [
            {"params": [p for n, p in named if decays(n)], "weight_decay": 0.01},
            {"params": [p for n, p in named if not decays(n)], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.999), eps=1e-8)
        # Moments are allocated at the first step; take it now, with no gradient, so that no measured step pays for it.
        for p in self.model.parameters():
            p.grad = torch.zeros_like(p)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        for state in optimizer.state.values():
            state["step"].zero_()
        return optimizer

    def _step(self, data, microbatch, clip, *, exact: bool):
        total, n = data["mask_RT"].sum(), data["tokens_RC"].shape[0]
        loss = 0.0
        for start in range(0, n, microbatch):
            piece = {name: x[start : start + microbatch] for name, x in data.items()}
            part = self._loss(piece) / total
            part.backward()
            loss += part.item()
        squares = [p.grad.double().square().sum() for p in self.model.parameters()] if exact else []
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), clip).item()
        norm = sum(squares).sqrt().item() if exact else norm
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, norm

    def _loss(self, piece):
        t = piece["mask_RT"].shape[1]
        hidden = self.model.model(input_ids=piece["tokens_RC"].long()).last_hidden_state
        at = piece["prompt_len_R"].long()[:, None] + torch.arange(t, device=DEVICE) - 1
        at = at.clamp(max=piece["tokens_RC"].shape[1] - 2)
        logits = self.model.lm_head(hidden.gather(1, at[..., None].expand(-1, -1, hidden.shape[-1]))).float()
        targets = piece["tokens_RC"].long().gather(1, at + 1)
        logp = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        ratio = torch.exp(logp - logp.detach())
        advantage = piece["advantage_R"][:, None]
        losses = torch.maximum(-advantage * ratio, -advantage * ratio.clamp(0.8, 1.2))
        return (losses * piece["mask_RT"]).sum()

    def _reset_peak(self) -> int:
        """Bytes in use now, from where the peak starts again."""
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
            return torch.cuda.memory_allocated()
        ctypes.CDLL(None).malloc_trim(0)  # freed pages that the allocator kept would hide growth
        Path("/proc/self/clear_refs").write_text("5")
        return _status_bytes("VmRSS")

    def _peak(self) -> int:
        return torch.cuda.max_memory_allocated() if DEVICE == "cuda" else _status_bytes("VmHWM")


def _status_bytes(field: str) -> int:
    return 1024 * int(re.search(rf"{field}:\s+(\d+) kB", STATUS.read_text()).group(1))


if __name__ == "__main__":
    main()
