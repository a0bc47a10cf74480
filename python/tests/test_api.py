"""The package against the real binary. `KILN_BINARY` names it where the package is not installed; needs ONNX Runtime."""

import doctest
import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import kiln_compiler as kiln
from kiln_compiler import _errors, _verbs

ROOT = Path(__file__).resolve().parents[2]
MODEL = Path(os.environ.get("KILN_TEST_MODEL", ROOT / "fixtures/models/bert-tiny.ts.eager.opset11.onnx"))


class Options(unittest.TestCase):
    """What the command is given."""

    def setUp(self) -> None:
        self.given: list[str] = []
        run = _verbs._binary.run

        def record(arguments, progress):
            self.given = list(arguments)[:-3]
            return 0, '{"parity_outcome": "passes"}', ""

        _verbs._binary.run = record
        self.addCleanup(setattr, _verbs._binary, "run", run)

    def test_compile(self) -> None:
        result = kiln.compile(
            "some/model.onnx", target=["sm_86", "sm_89"], fp16=True, int8="dynamic", dim={"batch": (1, 8, 32), "seq": 128},
            input={"sr": 16000, "flag": True, "widths": [320, 640]}, keep="-x", latency=False, keep_op=["Softmax", "Erf"],
            require="fp16", report=Path("r.html"), extra=["--tf32"],
        )  # fmt: skip
        self.assertEqual(
            self.given,
            ["compile", "some/model.onnx", "--target=sm_86,sm_89", "--fp16", "--keep=-x", "--keep-op=Softmax", "--keep-op=Erf",
             "--no-latency", "--require=fp16", "--report=r.html", "--int8=dynamic", "--dim=batch=1:8:32", "--dim=seq=128",
             "--input=sr=16000", "--input=flag=true", "--input=widths=320,640", "--output=some/model.kiln", "--tf32"],
        )  # fmt: skip
        self.assertEqual(result.path, Path("some/model.kiln"))
        self.assertTrue(result.proved)

    def test_forms_of_a_precision(self) -> None:
        for value, option in [(True, ["--int4"]), (64, ["--int4=64"]), (False, [])]:
            kiln.compile("m.onnx", "o", int4=value)
            self.assertEqual(self.given, ["compile", "m.onnx", *option, "--output=o"])

    def test_check_and_bench(self) -> None:
        kiln.check("m.kiln", "m.onnx", tolerance="fp16", limit=["y:cosine=0.9"], layers=True)
        self.assertEqual(
            self.given,
            ["check", "m.kiln", "--reference=m.onnx", "--tolerance=fp16", "--limit=y:cosine=0.9", "--layers"],
        )
        kiln.bench("a.onnx", "b.kiln", grid={"batch": [1, 8]}, duration=0.5)
        self.assertEqual(self.given, ["bench", "a.onnx", "b.kiln", "--duration=0.5", "--grid=batch=1,8"])


class Errors(unittest.TestCase):
    def test_every_exit_code_has_its_exception(self) -> None:
        for code in [*range(1, 10), 130, 143]:
            error = _errors.of(code, "warning: w\nkiln: it is so\n  and so\n")
            self.assertIs(type(error), _errors.BY_CODE[code])
            self.assertEqual((error.exit_code, error.message), (code, "it is so\n  and so"))
            self.assertIn("warning: w", error.stderr)

    def test_a_crash_is_a_defect_that_names_the_signal(self) -> None:
        error = _errors.of(-11, "")
        self.assertIsInstance(error, kiln.Defect)
        self.assertIn("signal 11", str(error))


class Real(unittest.TestCase):
    """Runs of the binary."""

    def setUp(self) -> None:
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def compiled(self) -> kiln.Result:
        return kiln.compile(MODEL, self.folder / "b.kiln", fp16=True, target="cpu", latency=False)

    def test_compile_check_bench(self) -> None:
        result = self.compiled()
        self.assertTrue(result.model.is_file() and result.proved)
        self.assertIsNone(result.engine)
        self.assertEqual(result.report["target"], "cpu")
        self.assertEqual(result.report["kiln"], kiln.version())
        checked = kiln.check(result.path, MODEL)
        self.assertTrue(checked.report["parity"]["cases"])
        timed = kiln.bench(MODEL, result.path, runs=2, warmup=1, duration=0.01)
        self.assertTrue(timed.report)
        # A wrong model is told from the right one, and what was found comes with the exception.
        with self.assertRaises(kiln.GateFailed) as failed:
            kiln.check(result.path, MODEL, tolerance="fp32-exact")
        self.assertTrue(failed.exception.report["parity"]["cases"])

    def test_differences_are_no_exception(self) -> None:
        result = self.compiled()
        found = kiln.diff(MODEL, result.path)
        self.assertFalse(found.same)
        self.assertIn("convert-fp16", [p["pass"] for p in found.report["passes"]])
        self.assertTrue(kiln.diff(MODEL, MODEL).same)
        with self.assertRaises(kiln.ModelError):
            kiln.diff(MODEL, self.folder / "none.onnx")

    def test_a_cache_gives_the_same_again(self) -> None:
        hits = [
            kiln.compile(
                MODEL, self.folder / f"{k}.kiln", target="cpu", latency=False, cache=self.folder / "cache"
            ).report["cache"]["hit"]
            for k in range(2)
        ]
        self.assertEqual(hits, [False, True])

    def test_a_gate_leaves_no_bundle_and_a_report(self) -> None:
        with self.assertRaises(kiln.GateFailed) as failed:
            kiln.compile(MODEL, self.folder / "b.kiln", target="cpu", latency=False, max_size_ratio=0.01)
        self.assertIn("size", str(failed.exception))
        self.assertEqual(failed.exception.exit_code, 1)
        self.assertTrue(failed.exception.report["gates"])
        self.assertFalse((self.folder / "b.kiln").exists())

    def test_usage_and_models(self) -> None:
        with self.assertRaises(kiln.UsageError):
            kiln.compile(MODEL, target="sm_1")
        bad = self.folder / "bad.onnx"
        bad.write_text("no model")
        with self.assertRaises(kiln.ModelError) as failed:
            kiln.compile(bad, target="cpu")
        self.assertIn("bad.onnx", failed.exception.message)

    def test_a_missing_runtime_is_named(self) -> None:
        with self.assertRaises(kiln.RuntimeMissing) as failed:
            kiln.compile(MODEL, self.folder / "b", target="cpu", extra=["--ort-lib", str(self.folder / "none")])
        self.assertIn("pip install onnxruntime", failed.exception.message)

    def test_an_interrupt_leaves_nothing(self) -> None:
        code = (
            "import kiln_compiler, sys\n"
            "kiln_compiler.compile(sys.argv[1], sys.argv[2], target='cpu', progress=True)\n"
        )
        place = self.folder / "b.kiln"
        run = subprocess.Popen(
            [sys.executable, "-c", code, str(MODEL), str(place)], stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        )  # fmt: skip
        time.sleep(0.3)
        # To the interpreter alone, as a notebook does it.
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=120)
        if run.returncode != 0:
            self.assertEqual([p.name for p in self.folder.iterdir()], [])

    def test_the_module_is_the_command(self) -> None:
        env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        ran = subprocess.run(
            [sys.executable, "-m", "kiln_compiler", "--version"], env=env, stdout=subprocess.PIPE, text=True, check=True
        )
        self.assertEqual(ran.stdout.split(), ["kiln", kiln.version()])


def load_tests(loader, tests, pattern):
    tests.addTests(doctest.DocTestSuite(kiln))
    return tests


if __name__ == "__main__":
    unittest.main()
