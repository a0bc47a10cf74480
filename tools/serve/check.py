#!/usr/bin/env python3
"""Serves bundles that kiln exported with a real Triton, and holds its answers against kiln's proof.

    tools/serve/check.py --kiln target/release/kiln --model MODEL.onnx --tokenizer tokenizer.json

An encoder is compiled for the CPU in FP16 and INT8 and exported; Triton takes the configurations as they are. Asked over HTTP and gRPC,
for tensors and for texts, it must give what kiln proved. Then load: requests a second and the 99th percentile, with requests joined into
batches and without; and a stop under load, in which no request that was accepted may be lost. Writes serve.json and serve.md into --out.
Exit code 1: something does not hold."""

import argparse
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime as ort
import tritonclient.grpc as grpc
import tritonclient.http as http
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
OUTPUT = "461"
TEXTS = ["a kiln is an oven for clay", "the dog sleeps", "rain in the afternoon", "music and a red car for everybody who came along"]
CLIENTS = 8

failures = []


def expect(what, holds, details=""):
    print(f"  {'ok' if holds else 'FAILS':<6} {what}" + (f": {details}" if details else ""), flush=True)
    if not holds:
        failures.append(what)


def kiln(args, *command):
    done = subprocess.run([args.kiln, *map(str, command)], capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"kiln {' '.join(map(str, command))}: exit code {done.returncode}\n{done.stderr}")
    return done.stdout


def exported(args, repository):
    """Compiles and exports; gives the bundles by the models' names."""
    bundles = {}
    for name, options in [("encoder-fp16", ["--fp16"]), ("encoder-int8", ["--int8=dynamic"])]:
        bundle = args.out / f"{name}.kiln"
        kiln(args, "compile", args.model, *options, "--target", "cpu", "--no-latency", "--dim", "batch_size=1:1:8", "-o", bundle)
        common = ["export", "triton", bundle, "-o", repository, "--output-name", OUTPUT, "--force"]
        kiln(args, *common, "--tokenizer", args.tokenizer)
        kiln(args, *common, "--name", f"{name}-alone", "--no-batching")
        # Joined in any case, to see what it gives where kiln's measurement says that it does not pay.
        kiln(args, *common, "--name", f"{name}-joined", "--no-measure")
        bundles[name] = bundle
    return bundles


class Triton:
    """The server of the package nvidia-pytriton, with a backend called onnxruntime."""

    def __init__(self, repository, folder):
        site = Path(sysconfig.get_path("purelib"))
        home = site / "pytriton/tritonserver"
        backends = folder / "backends"
        shutil.rmtree(backends, ignore_errors=True)
        python = backends / "python"
        shutil.copytree(home / "backends/python", python)
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        shutil.copy(home / f"python_backend_stubs/{version}/triton_python_backend_stub", python)
        # The interpreter in Triton's stub reads no PYTHONPATH, and looks here.
        for package in site.iterdir():
            if not (python / package.name).exists():
                (python / package.name).symlink_to(package)
        (backends / "onnxruntime").mkdir()
        shutil.copy(HERE / "onnxruntime_backend.py", backends / "onnxruntime/model.py")
        self.http, self.grpc = free_port(), free_port()
        library = sysconfig.get_config_var("LIBDIR")
        env = {
            **os.environ,
            "LD_LIBRARY_PATH": f"{site}/nvidia_pytriton.libs:{library}",
        }
        self.log = folder / "triton.log"
        command = [
            home / "bin/tritonserver", f"--model-repository={repository}", f"--backend-directory={backends}",
            "--disable-auto-complete-config", f"--http-port={self.http}", f"--grpc-port={self.grpc}", "--allow-metrics=false",
            "--exit-timeout-secs=30",
        ]  # fmt: skip
        self.process = subprocess.Popen(list(map(str, command)), env=env, stdout=open(self.log, "w"), stderr=subprocess.STDOUT)

    def wait(self, seconds=180):
        client = http.InferenceServerClient(f"localhost:{self.http}")
        end = time.time() + seconds
        while time.time() < end and self.process.poll() is None:
            try:
                if client.is_server_ready():
                    # Triton waits for open connections when it ends.
                    client.close()
                    return True
            except Exception:
                pass
            time.sleep(0.3)
        return False

    def stop(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()


def free_port():
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


def client(triton, protocol):
    if protocol == "http":
        return http, http.InferenceServerClient(f"localhost:{triton.http}", concurrency=1, network_timeout=120, connection_timeout=120)
    return grpc, grpc.InferenceServerClient(f"localhost:{triton.grpc}")


def ask(connection, model, inputs):
    module, server = connection
    given = []
    for name, array in inputs.items():
        kind = {"O": "BYTES"}.get(array.dtype.kind) or {"int64": "INT64"}[array.dtype.name]
        tensor = module.InferInput(name, list(array.shape), kind)
        tensor.set_data_from_numpy(array)
        given.append(tensor)
    return server.infer(model, given).as_numpy(OUTPUT)


def cosine(a, b):
    a, b = a.reshape(-1).astype(np.float64), b.reshape(-1).astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def answers(args, triton, bundles):
    tokenizer = Tokenizer.from_file(str(args.tokenizer))
    rows = []
    for name, bundle in bundles.items():
        proof = np.load(bundle / "parity.npz")
        typical = {n.removeprefix("in."): proof[n] for n in proof.files if n.startswith("in.")}
        right = proof[f"out.{OUTPUT}"]
        session = ort.InferenceSession(str(bundle / "model.onnx"), providers=["CPUExecutionProvider"])
        for protocol in ("http", "grpc"):
            connection = client(triton, protocol)
            found = ask(connection, name, typical)
            same = session.run([OUTPUT], typical)[0]
            difference = float(np.abs(found - same).max())
            expect(f"{name} over {protocol}: tensors give what model.onnx gives", difference <= 1e-5, f"max abs {difference:.1e}")
            near = cosine(found, right)
            expect(f"{name} over {protocol}: and what the original gave in kiln's proof", near >= 0.999 if "fp16" in name else near >= 0.98, f"cosine {near:.7f}")
            worst = 1.0
            for text in TEXTS:
                found = ask(connection, f"{name}-text", {"TEXT": np.array([[text.encode()]], dtype=object)})
                encoded = tokenizer.encode(text)
                fields = {"input_ids": encoded.ids, "attention_mask": encoded.attention_mask}
                alone = session.run([OUTPUT], {k: np.array([v], dtype=np.int64) for k, v in fields.items()})[0]
                worst = min(worst, cosine(found, alone))
            # Triton's tokenizer pads to a multiple of 16, which a masked model does not see but for its rounding.
            expect(f"{name} over {protocol}: texts", worst >= 0.9999 if "fp16" in name else worst >= 0.98, f"worst cosine {worst:.7f}")
            rows.append({"model": name, "protocol": protocol, "cosine to the proof": near, "max abs to model.onnx": difference, "worst text": worst})
    return rows


def hammer(triton, model, protocol, seconds, stop=None):
    """Requests of CLIENTS clients: latencies of those that were answered, and errors."""
    inputs = {n: np.ones((1, 32), dtype=np.int64) for n in ("input_ids", "attention_mask")}
    latencies, errors, lock = [], [], threading.Lock()
    end = time.perf_counter() + seconds

    def work():
        connection = client(triton, protocol)
        while time.perf_counter() < end:
            before = time.perf_counter()
            try:
                if ask(connection, model, inputs).shape != (1, 384):
                    raise ValueError("an answer of another shape")
                with lock:
                    latencies.append(time.perf_counter() - before)
            except Exception as e:
                with lock:
                    errors.append((time.perf_counter(), f"{type(e).__name__}: {e}"))
                if stop is not None:
                    return

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    if stop is not None:
        stop()
    for thread in threads:
        thread.join()
    return latencies, errors


def load(triton, bundles, seconds):
    rows = []
    for name in bundles:
        for joined in (f"{name}-joined", f"{name}-alone"):
            hammer(triton, joined, "grpc", 1)
            latencies, errors = hammer(triton, joined, "grpc", seconds)
            expect(f"{joined}: every request is answered", not errors, str(errors[:1]) if errors else "")
            ms = np.array(latencies) * 1e3
            rows.append({
                "model": joined, "batching": "on" if joined.endswith("joined") else "off", "requests/s": len(ms) / seconds,
                "p50 ms": float(np.percentile(ms, 50)), "p99 ms": float(np.percentile(ms, 99)),
            })  # fmt: skip
    return rows


def refused(error):
    """The server said that it takes no more, or was not there any more: the request was not accepted."""
    told = ("unavailable", "exiting", "shutting down", "not accept", "connection refused", "refused", "failed to connect", "model is not ready", "is not ready", "has no available versions", "stopping")
    return any(word in error.lower() for word in told)


def stopping(triton, protocol):
    def stop():
        time.sleep(2)
        triton.process.send_signal(signal.SIGTERM)

    latencies, errors = hammer(triton, "encoder-fp16-joined", protocol, 8, stop)
    code = triton.process.wait(60)
    lost = [e for _, e in errors if not refused(e)]
    expect(f"stopped under load over {protocol}: nothing is lost", not lost, f"{len(latencies)} answered, {len(errors) - len(lost)} refused, {len(lost)} lost" + (f": {lost[0]}" if lost else ""))
    expect("and the server ends with 0", code == 0, f"exit code {code}")
    return {"protocol": protocol, "answered": len(latencies), "refused": len(errors) - len(lost), "lost": len(lost), "exit code": code}


def markdown(result):
    out = [f"Triton {result['triton']} on {result['cores']} cores; ONNX Runtime {ort.__version__} behind a Python backend; {CLIENTS} clients over gRPC, 32 tokens.\n"]
    for title in ("answers", "load", "stop"):
        rows = result[title]
        text = lambda v: f"{v:.7f}" if isinstance(v, float) and 0.9 < v <= 1.0000001 else f"{v:.3g}" if isinstance(v, float) and v < 1 else f"{v:.1f}" if isinstance(v, float) else str(v)
        out.append("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
        out += ["| " + " | ".join(text(v) for v in row.values()) + " |" for row in rows]
        out.append("")
    return "\n".join(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kiln", required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("target/serve"))
    parser.add_argument("--seconds", type=float, default=5)
    args = parser.parse_args()
    args.out = args.out.resolve()
    repository = args.out / "repository"
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir(parents=True)
    bundles = exported(args, repository)
    result = {"cores": os.cpu_count(), "stop": []}
    for protocol in ("http", "grpc"):
        triton = Triton(repository, args.out)
        try:
            ready = triton.wait()
            if not ready:
                sys.exit(f"Triton is not ready:\n{triton.log.read_text()[-4000:]}")
            if protocol == "http":
                expect("Triton takes every configuration as it was written", True, ", ".join(sorted(p.name for p in repository.iterdir())))
                result["triton"] = client(triton, "http")[1].get_server_metadata()["version"]
                result["answers"] = answers(args, triton, bundles)
                result["load"] = load(triton, bundles, args.seconds)
            result["stop"].append(stopping(triton, protocol))
        finally:
            triton.stop()
    (args.out / "serve.json").write_text(json.dumps(result, indent=1))
    (args.out / "serve.md").write_text(markdown(result))
    print("\n" + markdown(result))
    if failures:
        sys.exit(f"{len(failures)} do not hold: " + "; ".join(failures))


if __name__ == "__main__":
    main()
