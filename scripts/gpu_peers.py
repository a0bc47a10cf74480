"""PyTorch, eager and compiled, on the GPU: the peers of `kiln gpu-check`.

usage: gpu_peers.py LAYERS WIDTH HEADS INNER WORDS POSITIONS BATCH SEQ

Prints one JSON object per line: {"runner", "precision", "p50_ms", "p99_ms", "runs"} or {"runner", "precision", "not_run"}.
The encoder has random weights: only its time is looked at. It takes torch alone.
"""
import json
import sys
import time

try:
    import torch
    import torch.nn.functional as F
except ImportError as e:
    print(json.dumps({"runner": "PyTorch", "precision": "fp32", "not_run": f"torch is not installed ({e})"}))
    sys.exit(0)

layers, width, heads, inner, words, positions, batch, seq = map(int, sys.argv[1:9])


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv = torch.nn.ModuleList(torch.nn.Linear(width, width) for _ in range(3))
        self.out = torch.nn.Linear(width, width)
        self.up = torch.nn.Linear(width, inner)
        self.down = torch.nn.Linear(inner, width)
        self.norms = torch.nn.ModuleList(torch.nn.LayerNorm(width) for _ in range(2))

    def forward(self, x, mask):
        b, s, _ = x.shape
        q, k, v = (p(x).view(b, s, heads, width // heads).transpose(1, 2) for p in self.qkv)
        o = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.norms[0](x + self.out(o.transpose(1, 2).reshape(b, s, width)))
        return self.norms[1](x + self.down(F.gelu(self.up(x))))


class Encoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.words = torch.nn.Embedding(words, width)
        self.positions = torch.nn.Embedding(positions, width)
        self.norm = torch.nn.LayerNorm(width)
        self.layers = torch.nn.ModuleList(Layer() for _ in range(layers))

    def forward(self, ids, mask):
        x = self.words(ids) + self.positions(torch.arange(ids.shape[1], device=ids.device))
        x = self.norm(x)
        mask = mask[:, None, None, :].bool()
        for layer in self.layers:
            x = layer(x, mask)
        return x


def report(runner, precision, **more):
    print(json.dumps({"runner": f"PyTorch {torch.__version__} {runner}", "precision": precision, **more}), flush=True)


if not torch.cuda.is_available():
    report("eager", "fp32", not_run="torch sees no CUDA device")
    sys.exit(0)

# As the references of kiln: products in FP32 do not round to TF32.
torch.backends.cuda.matmul.allow_tf32 = False
torch.backends.cudnn.allow_tf32 = False
ids = torch.randint(0, words, (batch, seq), device="cuda")
mask = torch.ones(batch, seq, dtype=torch.long, device="cuda")

for precision in ("fp32", "fp16"):
    torch.manual_seed(0)
    model = Encoder().eval().cuda()
    if precision == "fp16":
        model = model.half()
    for runner in ("eager", "torch.compile"):
        try:
            # reduce-overhead replays CUDA graphs, as kiln's own measurement does.
            run = model if runner == "eager" else torch.compile(model, mode="reduce-overhead")
            with torch.inference_mode():
                times = []
                for _ in range(30):
                    run(ids, mask)
                torch.cuda.synchronize()
                began = time.perf_counter()
                while len(times) < 200 or time.perf_counter() - began < 2:
                    start = time.perf_counter()
                    run(ids, mask)
                    torch.cuda.synchronize()
                    times.append((time.perf_counter() - start) * 1e3)
            times.sort()
            report(runner, precision, p50_ms=times[len(times) // 2], p99_ms=times[int(len(times) * 0.99)], runs=len(times))
        except Exception as e:  # a peer that fails is reported, not hidden
            report(runner, precision, not_run=f"{type(e).__name__}: {str(e).splitlines()[0] if str(e) else ''}")
