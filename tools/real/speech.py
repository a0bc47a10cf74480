"""Speech by espeak-ng, for models that listen."""

import subprocess
import tempfile
import wave
from functools import cache
from pathlib import Path

import numpy as np

from adapter import alone, stub

RATE = 16000
# Whole turns, and turns that break off.
TURNS = [
    "I would like to book a table for four people on Friday evening.",
    "I would like to book a table for",
    "Could you tell me what the weather will be like tomorrow?",
    "Could you tell me what the",
    "My order number is seven four two nine.",
    "My order number is seven four",
    "Yes, that is all, thank you.",
    "Well, I was thinking that maybe we could, um",
    "Please turn off the lights in the kitchen.",
    "The reason I am calling is because",
    "No, I do not want to change anything.",
    "So if we take the train at nine and then",
]
VOICES = ["en-us", "en-gb", "en-us+f3"]


@cache
def spoken(text, voice, speed=160):
    """Samples at 16 kHz in -1 to 1. espeak-ng speaks at 22.05 kHz; the spectrum is cut at 8 kHz."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "speech.wav"
        subprocess.run(["espeak-ng", "-v", voice, "-s", str(speed), "-w", path, text], check=True)
        with wave.open(str(path)) as file:
            rate, raw = file.getframerate(), file.readframes(file.getnframes())
    sound = np.frombuffer(raw, np.int16).astype(np.float64) / 32768
    length = len(sound) * RATE // rate
    spectrum = np.fft.rfft(sound)[: length // 2 + 1]
    return (np.fft.irfft(spectrum, length) * length / len(sound)).astype(np.float32)


def quiet(seconds, seed):
    return (np.random.default_rng(seed).normal(size=int(seconds * RATE)) * 1e-3).astype(np.float32)


def turns(session):
    """pipecat's features of the last 8 s; whether the turn is over, as its analyzer decides."""
    features = alone("pipecat-ai", "pipecat/audio/turn/smart_turn/_whisper_features.py", "_whisper_features")
    decisions = []
    for i, text in enumerate(TURNS):
        sound = np.concatenate([spoken(text, VOICES[i % len(VOICES)]), quiet(0.3, i)])
        sound = np.pad(sound, (max(0, 8 * RATE - len(sound)), 0))[-8 * RATE :]
        log_mel = features.compute_whisper_log_mel_features(sound, do_normalize=True)
        probability = float(session.run(None, {"input_features": log_mel[None]})[0].ravel()[0])
        decisions.append(("over" if probability > 0.5 else "goes on", probability))
    return decisions


def activity(session):
    """Windows of 32 ms with the model's state carried on, at both of its rates; whether somebody speaks. The class is pipecat's,
    which runs the same file."""
    stub("loguru", logger=None)
    stub("pipecat.audio.vad.vad_analyzer", VADAnalyzer=object, VADParams=object, VADState=object)
    silero = alone("pipecat-ai", "pipecat/audio/vad/silero.py", "_silero")
    decisions = []
    for i, rate in enumerate((16000, 8000)):
        parts = [quiet(0.4, i), spoken(TURNS[2 * i], VOICES[i]), quiet(0.5, i + 9), spoken(TURNS[4], VOICES[2])]
        sound = np.concatenate(parts)[:: RATE // rate]
        model = object.__new__(silero.SileroOnnxModel)
        model.session, model.sample_rates = session, [8000, 16000]
        model.reset_states()
        window = 512 if rate == 16000 else 256
        for begin in range(0, len(sound) - window, window):
            probability = float(model(sound[begin : begin + window], rate).ravel()[0])
            decisions.append(("speech" if probability > 0.5 else "none", probability))
    return decisions
